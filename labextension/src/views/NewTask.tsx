/** The form that submits one task. */
import React from 'react';

import { Button, ErrorBox, Field } from '../components';
import { useAction, useFarm } from '../context';
import type { TaskView } from '../protocol';
import { ChoiceFields, MoreFields, useChoice } from './task/Choice';

export function NewTask({ first, onSubmitted }: { first?: string | undefined; onSubmitted: (task: TaskView) => void }): JSX.Element {
  const { t, api, navigate } = useFarm();
  const chosen = useChoice(first);
  const [input, setInput] = React.useState('');
  const [key, setKey] = React.useState('');
  const submit = useAction(async () => {
    const task = await api.post<TaskView>('/tasks', { ...chosen.asked, input, ...(key ? { key } : {}) });
    setInput('');
    setKey('');
    onSubmitted(task);
    navigate(`tasks/${task.task_id}`);
  });
  return (
    <form
      className="af-form"
      onSubmit={event => {
        event.preventDefault();
        void submit.run();
      }}
    >
      <ChoiceFields of={chosen} />
      <Field label={t('What is to be done?')}>
        {ids => (
          <textarea
            {...ids} name="input" rows={2} value={input} required
            onChange={event => setInput(event.target.value)}
            onKeyDown={event => {
              if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
                event.currentTarget.form?.requestSubmit();
              }
            }}
          />
        )}
      </Field>
      <MoreFields of={chosen}>
        <Field label={t('Key')} hint={t('The same key again is the same task.')}>
          {ids => <input {...ids} name="key" value={key} onChange={event => setKey(event.target.value)} />}
        </Field>
      </MoreFields>
      <div className="af-line">
        <Button type="submit" look="primary" busy={submit.busy} disabled={!chosen.asked}>{t('Submit')}</Button>
      </div>
      <ErrorBox problem={submit.problem} />
    </form>
  );
}
