/** The conversations with an agent: which there are, one of them in order, and its continuation. */
import React from 'react';

import { Button, Empty, ErrorBox, Loading, Table, Time } from '../../components';
import { useAction, useFarm, useResource } from '../../context';
import { movesTasks } from '../../model';
import type { AgentView, Listed, Mode, TaskView, ThreadView } from '../../protocol';
import { reaches } from '../../rights';
import { ModeField } from '../mode';
import { Composer, listOf, Thread } from '../playground/Talk';
import { useStepActs } from '../stepActs';

/** `thread`: the one that is shown; '' or none: all of them. */
export function ThreadsTab({ agent, thread, onOpen }: { agent: AgentView; thread: string | undefined; onOpen: (thread: string) => void }): JSX.Element {
  return thread ? <One agent={agent} thread={thread} onBack={() => onOpen('')} /> : <All agent={agent} onOpen={onOpen} />;
}

function All({ agent, onOpen }: { agent: AgentView; onOpen: (thread: string) => void }): JSX.Element {
  const { t, api } = useFarm();
  const path = `/threads?limit=100&agent=${agent.name}`;
  const { state, value, problem, resource } = useResource<Listed<ThreadView>>(path, change => change.agent === agent.name && change.event.kind === 'run.created');
  const [older, setOlder] = React.useState<Listed<ThreadView>>({ items: [] });
  const cursor = older.items.length ? older.next : value?.next;
  const more = useAction(async () => {
    const page = await api.get<Listed<ThreadView>>(`${path}&cursor=${String(cursor)}`);
    setOlder(now => ({ ...page, items: [...now.items, ...page.items] }));
  });
  return (
    <>
      <ErrorBox problem={problem ?? more.problem} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value && (
        <Table<ThreadView>
          items={[...value.items, ...older.items]} label={t('Conversations')} keyOf={one => one.thread_id} onOpen={one => onOpen(one.thread_id)}
          more={cursor == null || more.busy ? undefined : () => void more.run()}
          empty={<Empty title={t('No conversation yet: the playground begins one, and so does a program by its first message.')} />}
          columns={[
            { id: 'title', title: t('Conversation'), width: 'minmax(0, 2fr)', cell: one => <strong>{one.title || one.thread_id}</strong> },
            { id: 'owner', title: t('Owner'), cell: one => one.owner },
            { id: 'policy', title: t('A message meets a run that is active'), cell: one => policyWord(one.policy, t) },
            { id: 'at', title: t('Begun'), width: '8rem', cell: one => <Time at={one.created_at} /> }
          ]}
        />
      )}
    </>
  );
}

function policyWord(policy: string, t: ReturnType<typeof useFarm>['t']): string {
  const words: { [policy: string]: string } = { enqueue: t('it waits its turn'), reject: t('it is refused'), interrupt: t('it interrupts') };
  return words[policy] ?? policy;
}

function One({ agent, thread, onBack }: { agent: AgentView; thread: string; onBack: () => void }): JSX.Element {
  const { t, api, model, person } = useFarm();
  const { value, problem, resource } = useResource<ThreadView>(`/threads/${thread}`, () => false);
  const [mode, setMode] = React.useState<Mode>('ask');
  const { acts, dialog } = useStepActs(agent.name, mode, undefined, reaches(agent.rights, 'chat'));
  const may = reaches(agent.rights, 'chat') && agent.retired_at === null && value?.owner === person;
  const say = useAction(async (input: string) => {
    const draft = agent.published ? {} : { version: 'draft' };
    const task = await api.post<TaskView>('/tasks', { target: agent.name, input, mode, thread_id: thread, ...draft });
    model.resource<Listed<TaskView>>(listOf(thread), movesTasks).patch(now => ({ ...now, items: [task, ...now.items] }));
  });
  return (
    <div className="af-thread">
      <div className="af-line af-middle">
        <Button look="quiet" onClick={onBack}>{t('All conversations')}</Button>
        {value && <b>{value.title || value.thread_id}</b>}
        {value && <span className="af-quiet">{value.owner} · <Time at={value.created_at} /> · {t('a message that meets an active run: %1', policyWord(value.policy, t))}</span>}
      </div>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {value && <section className="af-talk" aria-label={t('Conversation')}><Thread thread={thread} acts={acts} keep={undefined} /></section>}
      {may && <Composer busy={say.busy} onSay={say.run}><ModeField mode={mode} onChange={setMode} /></Composer>}
      {value && !may && <p className="af-quiet">{t('It belongs to %1, who alone goes on with it.', value.owner)}</p>}
      <ErrorBox problem={say.problem} />
      {dialog}
    </div>
  );
}
