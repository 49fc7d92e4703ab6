/** A run: how it came out, what proves it, and its events as they happen, however many. */
import React from 'react';

import { Badge, ErrorBox, Head, Loading, stepKey, StepRow, Text, useSteps, VirtualList } from '../components';
import { useFarm, useResource, useTokens } from '../context';
import { runIcon } from '../icons';
import { movesTasks } from '../model';
import type { RunView, TaskView } from '../protocol';
import type { Step } from '../timeline';
import { actor, ENDED, statusWord } from '../words';
import { useStepActs } from './stepActs';
import { ModeBadge } from './mode';
import { RunFacts, TaskLinks, TaskOutcome, Waits } from './task/About';
import { useTaskActs } from './task/Acts';
import { Evidence, VerifiedBadge } from './task/Proof';
import { useMay } from './useMay';
import type { Params, View } from './view';

export function RunOf({ run_id }: { run_id: string }): JSX.Element {
  const { t } = useFarm();
  const { value: run, problem, resource } = useResource<RunView>(
    `/runs/${run_id}`, change => change.event.run === run_id && movesTasks(change)
  );
  const { steps, count, complete, problem: cut } = useSteps(run_id);
  const live = run !== undefined && !ENDED.has(run.status);
  const words = useTokens(run_id, live);
  const may = useMay();
  const { dialog, acts } = useStepActs(run?.agent ?? '', run?.mode, undefined, may(run, 'chat') && !run?.agent.startsWith('~'));
  const delegates = steps.some(step => step.kind === 'call' && step.events.some(event => event.kind === 'child.submitted'));
  const { buttons, below } = useTaskActs(run?.task_id ? { ...run, task_id: run.task_id } : undefined);
  return (
    <section className="af-view af-run" aria-label={t('Run')}>
      <Head
        title={run ? actor(run.agent, t) : t('Run')}
        beside={run && (
          <><Badge state={run.status} word={statusWord(run.status, run.waiting, t)} /><ModeBadge mode={run.mode} />{!live && <VerifiedBadge run_id={run_id} />}</>
        )}
      >
        {run && <Evidence run_id={run_id} />}
        {buttons}
      </Head>
      {run && <RunFacts run={run} steps={steps} count={count} />}
      {run?.task_id && <OfTask task_id={run.task_id} run_id={run_id} delegates={delegates} />}
      {run?.waiting && <Waits run_id={run_id} />}
      <ErrorBox problem={problem ?? cut} onRetry={resource.refresh} />
      {below}
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

/** A run that a person's kernel drives has no task. */
function OfTask({ task_id, run_id, delegates }: { task_id: string; run_id: string; delegates: boolean }): JSX.Element | null {
  const { value: task, problem, resource } = useResource<TaskView>(`/tasks/${task_id}`, movesTasks);
  return (
    <>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {task && <TaskLinks task={task} delegates={delegates} />}
      {task && <TaskOutcome task={task} run_id={run_id} />}
    </>
  );
}

/** Whether the model is speaking just now: its words so far stand under the steps. */
export const asking = (last: Step | undefined): boolean => last?.kind === 'model' && last.replied === null;

function Run({ params }: { params: Params }): JSX.Element {
  return <RunOf run_id={params.id ?? ''} key={params.id} />;
}

export const runView: View = { id: 'run', title: t => t('Run'), icon: runIcon, route: 'runs/:id', under: 'tasks', Component: Run };
