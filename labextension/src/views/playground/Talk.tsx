/** A conversation: its messages in order, each with what came of it, and the field for the next one. */
import React from 'react';

import { Button, ErrorBox, Field, Loading, type StepActs } from '../../components';
import { useFarm, useResource } from '../../context';
import { movesTasks } from '../../model';
import type { Listed, TaskView } from '../../protocol';
import { ENDED } from '../../words';
import { Turn } from './Turn';

/** What can be done with each message. */
export interface OfTurns {
  acts: StepActs;
  keep: ((task: TaskView) => void) | undefined;
}

export const listOf = (thread: string): string => `/tasks?thread=${thread}&limit=100`;

export function Thread({ thread, acts, keep }: OfTurns & { thread: string }): JSX.Element {
  const { state, value, problem, resource } = useResource<Listed<TaskView>>(listOf(thread), movesTasks);
  const end = React.useRef<HTMLDivElement>(null);
  const count = value?.items.length ?? 0;
  React.useEffect(() => {
    end.current?.scrollIntoView({ block: 'nearest' });
  }, [count]);
  const turns = [...(value?.items ?? [])].reverse(); // they come newest first
  return (
    <div className="af-turns" tabIndex={0}>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {turns.map((task, at) => <Turn key={task.task_id} task={task} acts={acts} keep={keep} open={at === turns.length - 1 || !ENDED.has(task.status)} />)}
      <div ref={end} />
    </div>
  );
}

export function Composer({ busy, onSay, children }: { busy: boolean; onSay: (input: string) => Promise<boolean>; children: React.ReactNode }): JSX.Element {
  const { t } = useFarm();
  const [input, setInput] = React.useState('');
  return (
    <form
      className="af-form af-composer"
      onSubmit={event => {
        event.preventDefault();
        void onSay(input).then(sent => sent && setInput(''));
      }}
    >
      <Field label={t('Say')} hint={t('Ctrl+Enter sends')}>
        {ids => (
          <textarea
            {...ids} name="say" rows={2} value={input} required onChange={event => setInput(event.target.value)}
            onKeyDown={event => {
              if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
                event.currentTarget.form?.requestSubmit();
              }
            }}
          />
        )}
      </Field>
      <div className="af-line">
        {children}
        <Button type="submit" look="primary" busy={busy}>{t('Send')}</Button>
      </div>
    </form>
  );
}
