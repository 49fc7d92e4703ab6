/** A run: its events as they happen, however many. */
import React from 'react';

import { Badge, Button, ErrorBox, Head, Loading, Text, Time, VirtualList } from '../components';
import { useAction, useFarm, useResource, useRun, useTokens } from '../context';
import { runIcon } from '../icons';
import type { Event, RunView } from '../protocol';
import { ENDED, sayEvent, statusWord } from '../words';
import type { Params, View } from './view';

export function RunOf({ run_id }: { run_id: string }): JSX.Element {
  const { t, api } = useFarm();
  const { value: run, problem, resource } = useResource<RunView>(
    `/runs/${run_id}`, change => change.event.run === run_id && !change.event.kind.startsWith('model.')
  );
  const { events, count, complete, problem: cut } = useRun(run_id);
  const live = run !== undefined && !ENDED.has(run.status);
  const kind = events[count - 1]?.kind;
  const words = useTokens(run_id, live);
  const cancel = useAction(() => api.post(`/tasks/${run?.task_id}/cancel`, { reason: t('at the panel') }));
  return (
    <section className="af-view af-run" aria-label={t('Run')}>
      <Head title={run?.agent ?? t('Run')} beside={run && <Badge state={run.status} word={statusWord(run.status, run.waiting)} />}>
        {live && <Button busy={cancel.busy} onClick={() => void cancel.run()}>{t('Cancel')}</Button>}
      </Head>
      {run && (
        <p className="af-quiet">
          {[run.run_id, run.version ? t('version %1', run.version) : t('draft'), t('mode %1', run.mode), run.owner].join(' · ')}
        </p>
      )}
      <ErrorBox problem={problem ?? cut ?? cancel.problem} onRetry={resource.refresh} />
      {!complete && count === 0 && !cut && <Loading />}
      <VirtualList<Event>
        items={events} count={count} label={t('Steps')} estimate={56} stick={live} className="af-steps" keyOf={event => event.seq}
        row={event => <Step event={event} />}
      />
      {kind === 'model.requested' && words && <Text>{words}</Text>}
    </section>
  );
}

const Step = React.memo(function Step({ event }: { event: Event }): JSX.Element {
  const { title, text, look } = sayEvent(event);
  return (
    <div className="af-step" data-look={look} data-kind={event.kind} data-seq={event.seq}>
      <div className="af-step-head">
        <b>{title}</b>
        <span className="af-spring" />
        <Time at={event.at} exact />
      </div>
      {text && <Text>{text}</Text>}
    </div>
  );
});

function Run({ params }: { params: Params }): JSX.Element {
  return <RunOf run_id={params.id ?? ''} key={params.id} />;
}

export const runView: View = { id: 'run', title: t => t('Run'), icon: runIcon, route: 'runs/:id', Component: Run };
