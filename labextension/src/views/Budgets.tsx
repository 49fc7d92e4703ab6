/** Limits of agents, owners and the farm with what is spent, reserved and left; and what was used, day by day. */
import React from 'react';

import { Button, Card, Empty, ErrorBox, Field, Go, Head, Loading, Meter, Tabs } from '../components';
import { useAction, useFarm, useResource, type Translate } from '../context';
import { count } from '../figures';
import { budgetIcon } from '../icons';
import { movesAgents } from '../model';
import type { AgentView, BudgetView, Listed, NewBudget } from '../protocol';
import { money } from '../timeline';
import { AGENTS } from './Agents';
import { Usage } from './Usage';
import type { Params, View } from './view';

const BUDGETS = '/budgets';

/** Amounts as the unit has them. */
export const inUnit = (unit: string, amount: number, t: Translate): string => (unit === 'usd' ? money(amount) : t('%1 tokens', count(amount)));

function Budgets({ params }: { params: Params }): JSX.Element {
  const { t } = useFarm();
  const [tab, setTab] = React.useState(params.tab === 'usage' ? 'usage' : 'limits');
  return (
    <section className="af-view" aria-label={t('Budgets and usage')}>
      <Head title={t('Budgets and usage')} />
      <Tabs
        label={t('Budgets and usage')} chosen={tab} onChoose={setTab}
        tabs={[
          { id: 'limits', label: t('Limits'), content: () => <Limits /> },
          { id: 'usage', label: t('Usage'), content: () => <Usage /> }
        ]}
      />
    </section>
  );
}

function Limits(): JSX.Element {
  const { t, page, operator, href } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<BudgetView>>(BUDGETS, change => /^(run|budget|model\.replied)/.test(change.event.kind));
  const agents = useResource<Listed<AgentView>>(AGENTS, movesAgents);
  const mine = (agents.value?.items ?? []).filter(one => !one.retired_at && /^(owner|manage|operator)$/.test(one.rights)).map(one => one.name);
  const maySet = page && (operator || mine.length > 0);
  const address = href('budgets');
  return (
    <>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value?.items.length === 0 && <Empty title={t('No budget is set: what agents spend is limited run by run alone.')} />}
      {value && value.items.length > 0 && (
        <table className="af-plain" aria-label={t('Limits')}>
          <thead>
            <tr>
              <th scope="col">{t('Of')}</th><th scope="col">{t('Limit')}</th><th scope="col">{t('Used')}</th><th scope="col">{t('Left')}</th>
              <th scope="col">{t('When reached')}</th><th scope="col">{t('Set by')}</th>{maySet && <th scope="col">{t('Change')}</th>}
            </tr>
          </thead>
          <tbody>
            {value.items.map(one => (
              <Limit key={[one.scope, one.name, one.unit, one.period].join(' ')} one={one} column={maySet} may={operator || (one.scope === 'agent' && mine.includes(one.name))} onSet={resource.refresh} />
            ))}
          </tbody>
        </table>
      )}
      {maySet && <SetLimit agents={mine} onSet={resource.refresh} />}
      {!page && address && <p><a className="af-go" href={address} target="_blank" rel="noreferrer">{t('Budgets are set at the farm page')}</a></p>}
    </>
  );
}

const periodWord = (period: string, t: Translate): string => ({ day: t('a day'), month: t('a month'), total: t('in all') })[period] ?? period;
const actionWord = (action: string, t: Translate): string => ({ ask: t('runs wait for a person'), stop: t('runs fail') })[action] ?? action;

function Limit({ one, column, may, onSet }: { one: BudgetView; column: boolean; may: boolean; onSet: () => void }): JSX.Element {
  const { t, api } = useFarm();
  const end = useAction(async () => {
    const { scope, name, unit, period } = one;
    await api.put(BUDGETS, { scope, name, unit, period, amount: null });
    onSet();
  });
  const [sure, ask] = React.useState(false);
  const words = [t('%1 spent', inUnit(one.unit, one.spent, t)), one.reserved > 0 ? t('%1 reserved', inUnit(one.unit, one.reserved, t)) : ''].filter(Boolean).join(', ');
  const whole = one.amount ?? 0;
  return (
    <tr>
      <th scope="row">{one.scope === 'agent' ? <Go to={`agents/${one.name}`}>{one.name}</Go> : one.scope === 'farm' ? t('the whole farm') : t('all agents of %1', one.name)}</th>
      <td>{inUnit(one.unit, whole, t)} {periodWord(one.period, t)}</td>
      <td className="af-wide">
        <Meter whole={whole} words={words} parts={[
          { name: 'spent', amount: one.spent, look: whole > 0 && one.spent / whole > 0.9 ? 'bad' : 'full' },
          { name: 'reserved', amount: one.reserved, look: 'held' }
        ]} />
        <span className="af-quiet">{words}</span>
        {one.warning && <div className="af-bad">{one.warning}</div>}
      </td>
      <td>{inUnit(one.unit, one.left ?? 0, t)}</td>
      <td>{actionWord(one.action, t)}</td>
      <td>{one.set_by}</td>
      {column && (
        <td>
          {may && (sure
            ? <Button look="danger" busy={end.busy} onClick={() => void end.run()}>{t('End it')}</Button>
            : <Button look="quiet" aria-label={t('End the limit of %1', one.name || t('the farm'))} onClick={() => ask(true)}>{t('End')}</Button>)}
          <ErrorBox problem={end.problem} />
        </td>
      )}
    </tr>
  );
}

const SCOPES = ['agent', 'owner', 'farm'] as const;

/** A new limit; of the same unit and period it takes the place of the old one. */
function SetLimit({ agents, onSet }: { agents: string[]; onSet: () => void }): JSX.Element {
  const { t, api, operator } = useFarm();
  const [chosen, setScope] = React.useState<NewBudget['scope']>();
  const scope = chosen ?? (agents.length ? 'agent' : 'farm'); // the agents may come after the form
  const [name, setName] = React.useState('');
  const [amount, setAmount] = React.useState('');
  const [rest, setRest] = React.useState<Pick<NewBudget, 'unit' | 'period' | 'action'>>({ unit: 'tokens', period: 'day', action: 'ask' });
  const [warning, warn] = React.useState('');
  const of = scope === 'farm' ? '' : scope === 'agent' ? name || agents[0] || '' : name;
  const set = useAction(async () => {
    const made = await api.put<BudgetView>(BUDGETS, { scope, name: of, amount: Number(amount), ...rest });
    warn(made.warning ?? '');
    setAmount('');
    onSet();
  });
  const choice = <K extends keyof typeof rest>(key: K, label: string, words: { [value: string]: string }): JSX.Element => (
    <Field label={label}>
      {ids => (
        <select {...ids} name={key} value={rest[key]} onChange={event => setRest({ ...rest, [key]: event.target.value })}>
          {Object.entries(words).map(([value, word]) => <option key={value} value={value}>{word}</option>)}
        </select>
      )}
    </Field>
  );
  const scopes = { agent: t('an agent'), owner: t('all agents of an owner'), farm: t('the whole farm') };
  return (
    <Card title={t('Set a limit')}>
      <form
        className="af-line"
        onSubmit={event => {
          event.preventDefault();
          void set.run();
        }}
      >
        {operator && (
          <Field label={t('Of')}>
            {ids => (
              <select
                {...ids} name="scope" value={scope}
                onChange={event => {
                  setScope(event.target.value as NewBudget['scope']);
                  setName('');
                }}
              >
                {SCOPES.map(one => <option key={one} value={one}>{scopes[one]}</option>)}
              </select>
            )}
          </Field>
        )}
        {scope === 'agent' && (
          <Field label={t('Agent')}>
            {ids => (
              <select {...ids} name="name" value={of} onChange={event => setName(event.target.value)}>
                {agents.map(one => <option key={one} value={one}>{one}</option>)}
              </select>
            )}
          </Field>
        )}
        {scope === 'owner' && (
          <Field label={t('Owner')}>{ids => <input {...ids} name="name" required value={name} onChange={event => setName(event.target.value)} />}</Field>
        )}
        <Field label={t('Amount')}>
          {ids => <input {...ids} name="amount" type="number" min="0" step="any" required value={amount} onChange={event => setAmount(event.target.value)} />}
        </Field>
        {choice('unit', t('Unit'), { tokens: t('tokens'), usd: t('US dollars') })}
        {choice('period', t('Period'), { day: t('a day'), month: t('a month'), total: t('in all') })}
        {choice('action', t('When reached'), { ask: actionWord('ask', t), stop: actionWord('stop', t) })}
        <Button type="submit" look="primary" busy={set.busy}>{t('Set')}</Button>
      </form>
      <ErrorBox problem={set.problem} />
      {warning && <p className="af-bad" role="status">{warning}</p>}
      <p className="af-quiet">{t('Days and months are those of UTC. A limit of the same unit and period is replaced.')}</p>
    </Card>
  );
}

export const budgetsView: View = {
  id: 'budgets', title: t => t('Budgets'), icon: budgetIcon, route: 'budgets', nav: 50, Component: Budgets
};
