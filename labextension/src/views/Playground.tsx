/** Try an agent: one conversation with its draft beside one with its published version, and forks of both. */
import React from 'react';

import { Button, Empty, ErrorBox, Go, Head, Loading } from '../components';
import { useAction, useFarm, useResource } from '../context';
import { agentIcon } from '../icons';
import { movesAgents, movesTasks } from '../model';
import type { AgentView, Listed, Mode, TaskView, ThreadView } from '../protocol';
import { reaches } from '../rights';
import { manages } from './Agent';
import { CaseForm } from './agent/CaseForm';
import { agentBadge } from './Agents';
import { useStepActs } from './stepActs';
import { ModeField } from './mode';
import { Composer, listOf, Thread, type OfTurns } from './playground/Talk';
import { Turn } from './playground/Turn';
import type { Params, View } from './view';

type Side = 'draft' | 'published';

/** What is open, by agent; kept in this browser, so that a reload shows it again. */
interface Open {
  threads: { [side in Side]?: string };
  forks: string[];
}

const NOTHING: Open = { threads: {}, forks: [] };

function useOpen(agent: string): [Open, (change: (now: Open) => Open) => void] {
  const { person } = useFarm();
  const key = `agentfarm:playground:${person}:${agent}`;
  const [open, setOpen] = React.useState<Open>(() => read(key));
  const change = React.useCallback((by: (now: Open) => Open) => setOpen(now => {
    const next = by(now);
    try {
      localStorage.setItem(key, JSON.stringify(next));
    } catch {
      // a browser that keeps nothing: a reload begins anew, the conversations stay in the list of tasks
    }
    return next;
  }), [key]);
  return [open, change];
}

function read(key: string): Open {
  try {
    return { ...NOTHING, ...(JSON.parse(localStorage.getItem(key) ?? '{}') as Partial<Open>) };
  } catch {
    return NOTHING;
  }
}

function Playground({ params }: { params: Params }): JSX.Element {
  const { t } = useFarm();
  const name = params.name ?? '';
  const { value, problem, resource } = useResource<AgentView>(`/agents/${name}`, movesAgents);
  return value
    ? <Talk key={name} agent={value} />
    : <section className="af-view" aria-label={t('Playground')}>{problem ? <ErrorBox problem={problem} onRetry={resource.refresh} /> : <Loading />}</section>;
}

function Talk({ agent }: { agent: AgentView }): JSX.Element {
  const { t, api, model } = useFarm();
  const [open, change] = useOpen(agent.name);
  const [mode, setMode] = React.useState<Mode>('ask');
  const speaks = agent.retired_at === null && reaches(agent.rights, 'chat');
  const edits = manages(agent); // the draft is for those who manage it
  const [both, setBoth] = React.useState(agent.published !== null);
  const [keeping, setKeeping] = React.useState<TaskView | null>(null);
  const keep = edits ? setKeeping : undefined;
  const fork = useStepActs(agent.name, mode, task => change(now => ({ ...now, forks: [task.task_id, ...now.forks].slice(0, 10) })));
  const sides: Side[] = [...(edits ? ['draft' as const] : []), ...(agent.published && (both || !edits) ? ['published' as const] : [])];
  const say = useAction(async (input: string) => {
    await Promise.all(sides.map(async side => {
      const thread_id = open.threads[side] ?? await begin(side);
      const task = await api.post<TaskView>('/tasks', { target: agent.name, input, mode, thread_id, ...(side === 'draft' ? { version: 'draft' } : {}) });
      model.resource<Listed<TaskView>>(listOf(thread_id), movesTasks).patch(now => ({ ...now, items: [task, ...now.items] }));
    }));
  });
  const begin = async (side: Side): Promise<string> => {
    const { thread_id } = await api.post<ThreadView>('/threads', { agent: agent.name, title: `Playground: ${side}` });
    change(now => ({ ...now, threads: { ...now.threads, [side]: thread_id } }));
    return thread_id;
  };
  return (
    <section className="af-view af-playground" aria-label={t('Playground')}>
      <Head title={t('Playground: %1', agent.name)} beside={agentBadge(agent, t)}>
        <Button look="quiet" onClick={() => change(() => NOTHING)}>{t('Begin anew')}</Button>
        <Go to={`agents/${agent.name}`}>{edits ? t('Edit the draft') : t('The agent')}</Go>
      </Head>
      <div className="af-talks">
        {sides.map(side => (
          <Column
            key={side} title={side === 'draft' ? t('Draft') : t('Version %1', agent.published ?? 0)} thread={open.threads[side]} acts={fork.acts} keep={keep}
          />
        ))}
        {open.forks.length > 0 && <Forks tasks={open.forks} acts={fork.acts} keep={keep} onClose={() => change(now => ({ ...now, forks: [] }))} />}
      </div>
      {!speaks && <p className="af-quiet">{agent.retired_at ? t('This agent is retired: it takes no work, its record stays.') : t('You may see it and its runs; giving it work is for those to whom its owner gives that right.')}</p>}
      {speaks && sides.length === 0 && <p className="af-quiet">{t('Nothing is published yet: until then it works for those who manage it.')}</p>}
      {speaks && sides.length > 0 && <Composer busy={say.busy} onSay={say.run}>
        <ModeField mode={mode} onChange={setMode} />
        {edits && agent.published !== null && (
          <label className="af-check"><input type="checkbox" checked={both} onChange={event => setBoth(event.target.checked)} /> {t('ask version %1 too', agent.published)}</label>
        )}
      </Composer>}
      {mode === 'live' && <p className="af-bad" role="status">{t('Live: what its tools do really happens.')}</p>}
      <ErrorBox problem={say.problem} />
      {fork.dialog}
      {keeping && <CaseForm agent={agent.name} task={keeping} onClose={() => setKeeping(null)} />}
    </section>
  );
}

function Column({ title, thread, ...turns }: OfTurns & { title: string; thread: string | undefined }): JSX.Element {
  const { t } = useFarm();
  return (
    <section className="af-talk" aria-label={title}>
      <h3>{title}</h3>
      {thread ? <Thread thread={thread} {...turns} /> : <Empty title={t('Say something below.')} />}
    </section>
  );
}

function Forks({ tasks, onClose, ...turns }: OfTurns & { tasks: string[]; onClose: () => void }): JSX.Element {
  const { t } = useFarm();
  return (
    <section className="af-talk" aria-label={t('Forks')}>
      <div className="af-talk-head"><h3>{t('Forks')}</h3><span className="af-spring" /><Button look="quiet" onClick={onClose}>{t('Close')}</Button></div>
      <div className="af-turns" tabIndex={0}>{tasks.map(id => <Forked key={id} task_id={id} {...turns} />)}</div>
    </section>
  );
}

function Forked({ task_id, acts, keep }: OfTurns & { task_id: string }): JSX.Element {
  const { value, problem } = useResource<TaskView>(`/tasks/${task_id}`, movesTasks);
  return value ? <Turn task={value} acts={acts} keep={keep} open /> : problem ? <ErrorBox problem={problem} /> : <Loading />;
}

export const playgroundView: View = {
  id: 'playground', title: t => t('Playground'), icon: agentIcon, route: 'agents/:name/playground', Component: Playground
};
