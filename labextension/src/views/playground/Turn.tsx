/** One message to an agent and what came of it: its steps as they happen, each foldable. */
import React from 'react';

import { Badge, Button, ErrorBox, Go, StepRow, Text, useSteps, Value, type StepActs } from '../../components';
import { useAction, useFarm, useTokens } from '../../context';
import type { TaskView } from '../../protocol';
import type { Step } from '../../timeline';
import { plain } from '../../translate';
import { ENDED, sayEvent, statusWord } from '../../words';
import { ModeBadge } from '../mode';

export function Turn({ task, acts, open, keep }: {
  task: TaskView;
  acts: StepActs;
  /** Whether the steps are shown at first; older turns show what came of them. */
  open: boolean;
  /** Keep it as a test case. */
  keep?: ((task: TaskView) => void) | undefined;
}): JSX.Element {
  const { t, api, href, page } = useFarm();
  const [shown, setShown] = React.useState<boolean | null>(null);
  const live = !ENDED.has(task.status);
  const stop = useAction(() => api.post(`/tasks/${task.task_id}/cancel`, { reason: t('stopped in the playground') }));
  const steps = shown ?? open;
  const asks = task.status === 'waiting' && ['approval', 'in_doubt', 'question', 'budget'].includes(task.waiting ?? '');
  return (
    <article className="af-turn" aria-label={t('Message')}>
      <div className="af-said"><Value value={task.input} /></div>
      <div className="af-turn-head">
        <Badge state={task.status} word={statusWord(task.status, task.waiting, t)} />
        <ModeBadge mode={task.mode} />
        <span className="af-spring" />
        {live && <Button look="danger" busy={stop.busy} onClick={() => void stop.run()}>{t('Stop')}</Button>}
        {task.run_id && <Button look="quiet" aria-expanded={steps} onClick={() => setShown(!steps)}>{steps ? t('Hide steps') : t('Show steps')}</Button>}
        {task.run_id && <Go to={`runs/${task.run_id}`}>{t('The whole run')}</Go>}
        {keep && task.status === 'succeeded' && <Button look="quiet" onClick={() => keep(task)}>{t('Save as a test case')}</Button>}
      </div>
      {asks && (page
        ? <p><Go to="inbox">{t('It waits for a person: decide in the inbox.')}</Go></p>
        : <p><a href={href('inbox')} target="_blank" rel="noopener">{t('It waits for a person: decide in the inbox at the farm page.')}</a></p>)}
      {!task.run_id && <p className="af-quiet" role="status">{task.note || t('It has no run yet.')}</p>}
      <ErrorBox problem={stop.problem} />
      {steps && task.run_id
        ? <Steps run_id={task.run_id} live={live} acts={acts} />
        : !live && <Result task={task} />}
    </article>
  );
}

function Result({ task }: { task: TaskView }): JSX.Element | null {
  const { t } = useFarm();
  if (task.error) {
    return <Text>{String(task.error.message ?? t('failed'))}</Text>;
  }
  return task.result === null || task.result === undefined ? null : <div className="af-result"><Value value={task.result} /></div>;
}

/** What matters in a conversation; the whole record is at the run. */
const matters = (step: Step): boolean => step.kind !== 'event' || sayEvent(step.event, plain).look !== 'quiet' && step.event.kind !== 'run.leased';

function Steps({ run_id, live, acts }: { run_id: string; live: boolean; acts: StepActs }): JSX.Element {
  const { steps, count, problem } = useSteps(run_id);
  const words = useTokens(run_id, live);
  const last = steps[count - 1];
  return (
    <div className="af-turn-steps">
      <ErrorBox problem={problem} />
      {steps.filter(matters).map(step => <StepRow key={step.id} run_id={run_id} step={step} rev={step.rev} acts={acts} />)}
      {words && last?.kind === 'model' && last.replied === null && <div className="af-speaks" aria-live="off"><Text>{words}</Text></div>}
    </div>
  );
}
