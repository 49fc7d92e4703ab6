/** Above a run's steps: what it came to, what it used, and what it belongs to. */
import React from 'react';

import { Badge, Go, Outcome, Text, Time } from '../../components';
import { useFarm, useResource, useStore } from '../../context';
import { kindWord } from '../../decisions';
import { addressOf } from '../../filters';
import { movesTasks } from '../../model';
import type { Listed, RunView, TaskView } from '../../protocol';
import { duration, money, type Step } from '../../timeline';
import { totals } from '../../totals';
import { ENDED, oneLine, statusWord } from '../../words';

/** One quiet line: whose it is, how long it took, what it used. */
export function RunFacts({ run, steps, count }: { run: RunView; steps: readonly Step[]; count: number }): JSX.Element {
  const { t } = useFarm();
  const used = totals(steps, count);
  const seconds = run.ended_at ? (Date.parse(run.ended_at) - Date.parse(run.created_at)) / 1000 : null;
  const facts = [
    run.run_id, run.version ? t('version %1', run.version) : t('draft'), run.owner, seconds !== null && t('ended after %1', duration(seconds)),
    used.replies > 0 && t('replies: %1', used.replies), used.replies > 0 && t('%1 tokens in, %2 out', used.input, used.output), used.estimated && t('estimated'), money(used.cost)
  ];
  return <p className="af-quiet">{facts.filter(Boolean).join(' · ')} · <Time at={run.created_at} /></p>;
}

/** How it came out, as soon as it has, and before why it does not begin; a task that goes on in another run says so. */
export function TaskOutcome({ task, run_id }: { task: TaskView; run_id: string }): JSX.Element | null {
  const { t } = useFarm();
  if (task.run_id && task.run_id !== run_id) {
    return <p className="af-quiet">{t('This is an earlier run of its task.')} <Go to={`runs/${task.run_id}`}>{t('The latest')}</Go></p>;
  }
  if (!ENDED.has(task.status)) {
    return task.run_id && task.note ? <div className="af-quiet" role="status"><Text>{task.note}</Text></div> : null;
  }
  const { type, message } = task.error ?? {};
  return (
    <div className="af-outcome" role="group" aria-label={t('Outcome')} data-look={task.error ? 'bad' : 'good'}>
      {task.error
        ? <><b className="af-bad">{String(type ?? t('Error'))}</b><Text>{String(message ?? '')}</Text></>
        : <Outcome run_id={run_id} value={task.result} />}
    </div>
  );
}

/** What of the inbox it waits for: whoever may decide finds it there. */
export function Waits({ run_id }: { run_id: string }): JSX.Element | null {
  const { t, model } = useFarm();
  const items = (useStore(model.inbox).value?.items ?? []).filter(item => item.run_id === run_id);
  return items.length > 0 ? (
    <p className="af-line">
      {items.map(item => <Go key={item.inbox_id} to={`inbox/${item.inbox_id}`}>{t('Waits for a person: %1', kindWord(item.kind, t))}</Go>)}
    </p>
  ) : null;
}

/** What it belongs to: thread, batch, the run that delegated it; and what it delegated. */
export function TaskLinks({ task, delegates }: { task: TaskView; delegates: boolean }): JSX.Element | null {
  const { t } = useFarm();
  const links = [
    task.parent_run && <Go key="parent" to={`runs/${task.parent_run}`}>{t('Delegated by another run')}</Go>,
    task.thread_id && <Go key="thread" to={addressOf(`agents/${task.agent ?? task.target}`, { tab: 'threads', thread: task.thread_id })}>{t('Its conversation')}</Go>,
    task.batch_id && <Go key="batch" to={`batches/${task.batch_id}`}>{t('Its batch')}</Go>
  ].filter(Boolean);
  const facts = [
    task.priority !== 0 && t('priority %1', task.priority), task.key && t('key %1', task.key), task.submitted_by !== task.owner && t('submitted by %1', task.submitted_by)
  ].filter(Boolean);
  return (
    <>
      {(links.length > 0 || facts.length > 0 || task.deadline) && (
        <p className="af-line af-quiet">
          {links}{facts.length > 0 && <span>{facts.join(' · ')}</span>}{task.deadline && <span>{t('to end by %1', new Date(task.deadline).toLocaleString())}</span>}
        </p>
      )}
      {delegates && task.run_id && <Children run_id={task.run_id} />}
    </>
  );
}

function Children({ run_id }: { run_id: string }): JSX.Element | null {
  const { t } = useFarm();
  const { value } = useResource<Listed<TaskView>>(`/tasks?limit=20&parent=${run_id}`, movesTasks);
  return value && value.items.length > 0 ? (
    <ul className="af-children" aria-label={t('Delegated tasks')}>
      {value.items.map(child => (
        <li key={child.task_id}>
          <Badge state={child.status} word={statusWord(child.status, child.waiting, t)} /> <Go to={`tasks/${child.task_id}`}>{oneLine(child.input, 80)}</Go> <span className="af-quiet">{child.agent ?? child.target}</span>
        </li>
      ))}
      {value.next != null && <li><Go to={`tasks?parent=${run_id}`}>{t('All of them')}</Go></li>}
    </ul>
  ) : null;
}
