/** The form that submits one task. */
import React from 'react';

import { Button, ErrorBox, Field } from '../components';
import { useAction, useFarm, useResource } from '../context';
import { movesAgents } from '../model';
import type { AgentView, Listed, Mode, TaskView } from '../protocol';

const MODES: Mode[] = ['live', 'ask'];

export function NewTask({ first, onSubmitted }: { first?: string | undefined; onSubmitted: (task: TaskView) => void }): JSX.Element {
  const { t, api, navigate } = useFarm();
  const { value } = useResource<Listed<AgentView>>('/agents?limit=500', movesAgents);
  const [target, setTarget] = React.useState(first ?? '');
  const [input, setInput] = React.useState('');
  const [mode, setMode] = React.useState<Mode>('live');
  const open = (value?.items ?? []).filter(agent => agent.published && agent.rights !== 'view');
  const pools = [...new Set(open.flatMap(agent => (agent.pool ? [`pool:${agent.pool}`] : [])))];
  const chosen = target || open[0]?.name || '';
  const submit = useAction(async () => {
    const task = await api.post<TaskView>('/tasks', { target: chosen, input, mode });
    setInput('');
    onSubmitted(task);
    navigate(`tasks/${task.task_id}`);
  });
  const modeWords: Record<Mode, string> = { live: t('live'), ask: t('ask before each effect'), simulate: t('simulate') };
  return (
    <form
      className="af-form"
      onSubmit={event => {
        event.preventDefault();
        void submit.run();
      }}
    >
      <div className="af-line">
        <Field label={t('Agent')}>
          {ids => (
            <select {...ids} name="target" value={chosen} onChange={event => setTarget(event.target.value)} required>
              {[...open.map(agent => agent.name), ...pools].map(name => <option key={name} value={name}>{name}</option>)}
            </select>
          )}
        </Field>
        <Field label={t('Mode')}>
          {ids => (
            <select {...ids} name="mode" value={mode} onChange={event => setMode(event.target.value as Mode)}>
              {MODES.map(one => <option key={one} value={one}>{modeWords[one]}</option>)}
            </select>
          )}
        </Field>
      </div>
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
      <div className="af-line">
        <Button type="submit" look="primary" busy={submit.busy} disabled={!chosen}>{t('Submit')}</Button>
      </div>
      <ErrorBox problem={submit.problem} />
    </form>
  );
}
