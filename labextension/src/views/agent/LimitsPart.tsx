/** Where a run of the agent ends by itself, and what the agent may spend in all. */
import React from 'react';

import { Button, ErrorBox, Field } from '../../components';
import { useAction, useFarm, useResource } from '../../context';
import type { BudgetView, Definition, Limits, Listed, NewBudget } from '../../protocol';
import { money } from '../../timeline';
import { NumberField } from './fields';

const USUAL: Record<keyof Limits, number | null> = { steps: 20, calls: 50, tokens: 200_000, seconds: 1800, cost: null };

export function LimitsPart({ draft, edit, readOnly }: {
  draft: Definition;
  edit: (change: (draft: Definition) => Definition) => void;
  readOnly: boolean;
}): JSX.Element {
  const { t } = useFarm();
  const limits = draft.limits ?? {};
  const words: Record<keyof Limits, string> = {
    steps: t('Steps'), calls: t('Calls of tools'), tokens: t('Tokens'), seconds: t('Seconds'), cost: t('Cost, USD')
  };
  const set = (name: keyof Limits, to: number | undefined): void => edit(now => {
    const { [name]: _, ...others } = now.limits ?? {};
    return { ...now, limits: to === undefined ? others : { ...others, [name]: to } };
  });
  return (
    <>
      <div className="af-grid">
        {(Object.keys(USUAL) as (keyof Limits)[]).map(name => (
          <NumberField
            key={name} label={words[name]} value={limits[name]} readOnly={readOnly} onChange={to => set(name, to)}
            usual={limits[name] === null || USUAL[name] === null ? t('no limit') : String(USUAL[name])}
          />
        ))}
      </div>
      <label className="af-check">
        <input
          type="checkbox" name="fresh-kernel" checked={draft.fresh_kernel ?? false} disabled={readOnly}
          onChange={event => edit(now => ({ ...now, fresh_kernel: event.target.checked }))}
        />
        {t('each run begins in a kernel of its own: slower, and nothing of an earlier run is left in it')}
      </label>
    </>
  );
}

/** The agent's budget: over all of its runs; what is reached waits or ends, as the budget says. */
export function BudgetPart({ agent, readOnly }: { agent: string; readOnly: boolean }): JSX.Element {
  const { t, api, page, href } = useFarm();
  const { value, problem, resource } = useResource<Listed<BudgetView>>('/budgets', change => change.event.kind.startsWith('budget.'));
  const own = (value?.items ?? []).filter(one => one.scope === 'agent' && one.name === agent);
  const [wish, setWish] = React.useState({ unit: 'usd', period: 'month', action: 'ask' });
  const [amount, setAmount] = React.useState<number | undefined>();
  const put = useAction(async (budget: NewBudget) => {
    await api.put('/budgets', budget);
    resource.refresh();
  });
  const units: { [unit: string]: string } = { usd: 'USD', tokens: t('tokens') };
  const periods: { [period: string]: string } = { day: t('a day'), month: t('a month'), total: t('in all') };
  const actions: { [action: string]: string } = { ask: t('wait for a person'), stop: t('fail') };
  const choice = (name: 'unit' | 'period' | 'action', label: string, of: { [value: string]: string }): JSX.Element => (
    <Field label={label}>
      {ids => (
        <select {...ids} value={wish[name]} onChange={event => setWish({ ...wish, [name]: event.target.value })}>
          {Object.entries(of).map(([id, word]) => <option key={id} value={id}>{word}</option>)}
        </select>
      )}
    </Field>
  );
  return (
    <>
      <ErrorBox problem={problem ?? put.problem} onRetry={problem ? resource.refresh : undefined} />
      {value && own.length === 0 && <p className="af-quiet">{t('No budget: its runs are limited one by one alone.')}</p>}
      {own.map(one => (
        <div key={`${one.unit}-${one.period}`} className="af-tool-head">
          <span>
            {one.unit === 'usd' ? money(one.amount) : t('%1 tokens', (one.amount ?? 0).toLocaleString())} {periods[one.period] ?? one.period}
            {' · '}{t('spent %1', one.unit === 'usd' ? money(one.spent) : one.spent.toLocaleString())} · {t('then: %1', actions[one.action] ?? one.action)}
          </span>
          {one.warning && <span className="af-bad">{one.warning}</span>}
          <span className="af-spring" />
          {page && !readOnly && (
            <Button
              look="quiet" busy={put.busy}
              onClick={() => void put.run({ scope: 'agent', name: agent, unit: one.unit as 'usd', period: one.period as 'day', amount: null })}
            >
              {t('Take away')}
            </Button>
          )}
        </div>
      ))}
      {page && !readOnly && (
        <div className="af-grid af-roomy">
          <NumberField label={t('Amount')} value={amount} onChange={setAmount} />
          {choice('unit', t('Unit'), units)}
          {choice('period', t('Period'), periods)}
          {choice('action', t('When it is reached, runs'), actions)}
          <Button
            busy={put.busy} disabled={!amount}
            onClick={() => void put.run({ scope: 'agent', name: agent, amount: amount ?? null, ...wish } as NewBudget).then(done => done && setAmount(undefined))}
          >
            {t('Set the budget')}
          </Button>
        </div>
      )}
      {!page && !readOnly && <p><a href={href(`agents/${agent}`)} target="_blank" rel="noopener">{t('Budgets are set at the farm page.')}</a></p>}
    </>
  );
}
