/** Who does it and how: what one task and many have in common. The rarer part stands behind "more". */
import React from 'react';

import { Field, Go } from '../../components';
import { useFarm, useResource } from '../../context';
import { variablesOf } from '../../csv';
import { movesAgents } from '../../model';
import type { AgentView, Listed, Mode, NewTask } from '../../protocol';
import { ModeField } from '../mode';

export interface Choice {
  target: string;
  mode: Mode;
  priority: string;
  /** As the browser gives a local time: `2026-11-21T15:00`. */
  deadline: string;
  variables: string;
}

export interface Chosen {
  choice: Choice;
  change: (part: Partial<Choice>) => void;
  /** Agents and pools that this person may give work to. */
  targets: string[];
  /** Whether it is known that there is none. */
  nobody: boolean;
  /** The task without its input; null: a field is wrong, and says so. */
  asked: NewTask | null;
}

export function useChoice(first: string | undefined): Chosen {
  const { value } = useResource<Listed<AgentView>>('/agents?limit=500', movesAgents);
  const [choice, set] = React.useState<Choice>({ target: first ?? '', mode: 'live', priority: '0', deadline: '', variables: '' });
  const open = (value?.items ?? []).filter(agent => agent.published && agent.rights !== 'view');
  const pools = [...new Set(open.flatMap(agent => (agent.pool ? [`pool:${agent.pool}`] : [])))];
  const known = [...open.map(agent => agent.name), ...pools];
  const target = choice.target || (known[0] ?? '');
  // The list may still be on its way, or older than the agent: what was chosen stays choosable, and the farm has the last word.
  const targets = !target || known.includes(target) ? known : [target, ...known];
  const whole = { ...choice, target };
  return { choice: whole, change: part => set(before => ({ ...before, ...part })), targets, nobody: value !== undefined && targets.length === 0, asked: askedOf(whole) };
}

function askedOf({ target, mode, priority, deadline, variables }: Choice): NewTask | null {
  const named = variablesOf(variables);
  const rank = Number(priority);
  if (!target || named === null || !Number.isInteger(rank) || Math.abs(rank) > 100) {
    return null;
  }
  return {
    target, mode, ...(rank ? { priority: rank } : {}), ...(deadline ? { deadline: new Date(deadline).toISOString() } : {}),
    ...(Object.keys(named).length ? { variables: named } : {})
  };
}

export function ChoiceFields({ of: { choice, change, targets, nobody } }: { of: Chosen }): JSX.Element {
  const { t } = useFarm();
  return nobody ? (
    <p>{t('There is no agent yet that takes work from you: publish one of yours, or ask its owner for the right.')} <Go to="agents">{t('Agents')}</Go></p>
  ) : (
    <div className="af-line">
      <Field label={t('Agent or pool')}>
        {ids => (
          <select {...ids} name="target" value={choice.target} onChange={event => change({ target: event.target.value })} required>
            {targets.map(name => <option key={name} value={name}>{name}</option>)}
          </select>
        )}
      </Field>
      <ModeField mode={choice.mode} onChange={mode => change({ mode })} />
    </div>
  );
}

/** `children`: fields that only one of the forms has. */
export function MoreFields({ of: { choice, change }, children }: { of: Chosen; children?: React.ReactNode }): JSX.Element {
  const { t } = useFarm();
  const wrong = variablesOf(choice.variables) === null;
  return (
    <details className="af-more">
      <summary>{t('More: priority, deadline, variables')}</summary>
      <div className="af-line af-top">
        <Field label={t('Priority')} hint={t('-100 to 100; a point is worth a minute of waiting')}>
          {ids => (
            <input
              {...ids} name="priority" type="number" min={-100} max={100} step={1} value={choice.priority} onChange={event => change({ priority: event.target.value })}
            />
          )}
        </Field>
        <Field label={t('Deadline')} hint={t('What has not ended by then is cancelled.')}>
          {ids => <input {...ids} name="deadline" type="datetime-local" value={choice.deadline} onChange={event => change({ deadline: event.target.value })} />}
        </Field>
        {children}
      </div>
      <Field label={t('Variables')} hint={t('Lines of name = value, for the {{name}} in the prompt')} error={wrong ? t('Each line is name = value.') : ''}>
        {ids => <textarea {...ids} name="variables" className="af-mono" rows={2} value={choice.variables} onChange={event => change({ variables: event.target.value })} />}
      </Field>
    </details>
  );
}
