/** A run: its events as they happen, however many. */
import React from 'react';

import { Badge, Button, ErrorBox, Head, Loading, stepKey, StepRow, Text, useSteps, VirtualList } from '../components';
import { useAction, useFarm, useResource, useTokens } from '../context';
import { runIcon } from '../icons';
import { movesTasks } from '../model';
import type { RunView } from '../protocol';
import type { Step } from '../timeline';
import { ENDED, statusWord } from '../words';
import { useStepActs } from './stepActs';
import { ModeBadge } from './mode';
import type { Params, View } from './view';

export function RunOf({ run_id }: { run_id: string }): JSX.Element {
  const { t, api } = useFarm();
  const { value: run, problem, resource } = useResource<RunView>(
    `/runs/${run_id}`, change => change.event.run === run_id && movesTasks(change)
  );
  const { steps, count, complete, problem: cut } = useSteps(run_id);
  const live = run !== undefined && !ENDED.has(run.status);
  const words = useTokens(run_id, live);
  const { dialog, acts } = useStepActs(run?.agent ?? '', run?.mode);
  const cancel = useAction(() => api.post(`/tasks/${run?.task_id}/cancel`, { reason: t('at the panel') }));
  return (
    <section className="af-view af-run" aria-label={t('Run')}>
      <Head title={run?.agent ?? t('Run')} beside={run && <><Badge state={run.status} word={statusWord(run.status, run.waiting)} /><ModeBadge mode={run.mode} /></>}>
        {live && <Button busy={cancel.busy} onClick={() => void cancel.run()}>{t('Cancel')}</Button>}
      </Head>
      {run && (
        <p className="af-quiet">
          {[run.run_id, run.version ? t('version %1', run.version) : t('draft'), run.owner].join(' · ')}
        </p>
      )}
      <ErrorBox problem={problem ?? cut ?? cancel.problem} onRetry={resource.refresh} />
      {!complete && count === 0 && !cut && <Loading />}
      <VirtualList<Step>
        items={steps} count={count} label={t('Steps')} estimate={56} stick={live} className="af-steps" keyOf={stepKey}
        row={step => <StepRow run_id={run_id} step={step} rev={step.rev} acts={acts} />}
      />
      {words && asking(steps[count - 1]) && <Text>{words}</Text>}
      {dialog}
    </section>
  );
}

/** Whether the model is speaking just now: its words so far stand under the steps. */
export const asking = (last: Step | undefined): boolean => last?.kind === 'model' && last.replied === null;

function Run({ params }: { params: Params }): JSX.Element {
  return <RunOf run_id={params.id ?? ''} key={params.id} />;
}

export const runView: View = { id: 'run', title: t => t('Run'), icon: runIcon, route: 'runs/:id', Component: Run };
