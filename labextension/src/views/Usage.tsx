/** What was used: requests, tokens and cost by day, agent, model or owner; a chart, and beside it the figures. */
import React from 'react';

import { Bars, Card, Empty, ErrorBox, Field, Loading, Meter } from '../components';
import { useFarm, useResource } from '../context';
import { count, daysUntil } from '../figures';
import type { Listed, Used } from '../protocol';
import { money } from '../timeline';

type Key = 'day' | 'agent' | 'model' | 'owner';

const tokens = (one: Used): number => one.tokens_in + one.tokens_out;

export function Usage(): JSX.Element {
  const { t } = useFarm();
  const [key, setKey] = React.useState<Key>('day');
  const [days, setDays] = React.useState(30);
  const spanned = daysUntil(new Date(), days);
  const { state, value, problem, resource } = useResource<Listed<Used>>(`/usage?by=${key}&since=${spanned[0]}`, change => /^(run\.(succeeded|failed|cancelled)|model\.failed)$/.test(change.event.kind));
  const names = { day: t('Day'), agent: t('Agent'), model: t('Model'), owner: t('Owner') };
  const items = value?.items ?? [];
  const sorted = key === 'day' ? items : [...items].sort((a, b) => tokens(b) - tokens(a));
  return (
    <>
      <div className="af-line af-narrow">
        <Field label={t('By')}>
          {ids => (
            <select {...ids} name="by" value={key} onChange={event => setKey(event.target.value as Key)}>
              {(Object.keys(names) as Key[]).map(one => <option key={one} value={one}>{names[one]}</option>)}
            </select>
          )}
        </Field>
        <Field label={t('Of the last')}>
          {ids => (
            <select {...ids} name="days" value={days} onChange={event => setDays(Number(event.target.value))}>
              {[7, 30, 90].map(one => <option key={one} value={one}>{t('%1 days', one)}</option>)}
            </select>
          )}
        </Field>
      </div>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value && items.length === 0 && <Empty title={t('Nothing was used in these days.')} />}
      {items.length > 0 && (
        <>
          {key === 'day' && <ByDay items={items} days={spanned} />}
          <Figures items={sorted} by={key} title={names[key]} />
        </>
      )}
    </>
  );
}

/** Days without use stand in their place, so that a week looks like a week. */
function ByDay({ items, days }: { items: Used[]; days: string[] }): JSX.Element {
  const { t } = useFarm();
  const known = new Map(items.map(one => [one.day, one]));
  const bars = days.map(day => {
    const one = known.get(day);
    return { name: day, amount: one ? tokens(one) : 0, words: one ? t('%1 tokens, %2', count(tokens(one)), money(one.cost)) : t('nothing') };
  });
  return (
    <Card title={t('Tokens by day (UTC)')} beside={<span className="af-quiet">{t('at most %1', count(Math.max(...bars.map(bar => bar.amount))))}</span>}>
      <Bars bars={bars} label={t('Tokens by day; the figures are in the table below')} />
      <div className="af-ends af-quiet"><span>{days[0]}</span><span>{days[days.length - 1]}</span></div>
    </Card>
  );
}

function Figures({ items, by, title }: { items: Used[]; by: Key; title: string }): JSX.Element {
  const { t } = useFarm();
  const most = Math.max(...items.map(tokens));
  const sum = (of: (one: Used) => number): number => items.reduce((all, one) => all + of(one), 0);
  const flawed = items.some(one => one.estimated || one.unpriced);
  return (
    <>
      <table className="af-plain" aria-label={t('Usage by %1', title.toLowerCase())}>
        <thead>
          <tr>
            <th scope="col">{title}</th><th scope="col">{t('Share')}</th><th scope="col" className="af-figure-cell">{t('Requests')}</th>
            <th scope="col" className="af-figure-cell">{t('Tokens in')}</th><th scope="col" className="af-figure-cell">{t('Tokens out')}</th><th scope="col" className="af-figure-cell">{t('Cost')}</th>
            {flawed && <th scope="col">{t('Not exact')}</th>}
          </tr>
        </thead>
        <tbody>
          {items.map(one => (
            <tr key={one[by]}>
              <th scope="row">{one[by] || t('nobody')}</th>
              <td className="af-wide"><Meter whole={most} words={t('%1 tokens', count(tokens(one)))} parts={[{ name: 'tokens', amount: tokens(one), look: 'full' }]} /></td>
              <td className="af-figure-cell">{count(one.requests)}</td><td className="af-figure-cell">{count(one.tokens_in)}</td>
              <td className="af-figure-cell">{count(one.tokens_out)}</td><td className="af-figure-cell">{money(one.cost)}</td>
              {flawed && <td className="af-quiet">{inexact(one, t)}</td>}
            </tr>
          ))}
        </tbody>
        <tfoot>
          <tr>
            <th scope="row">{t('in all')}</th><td />
            <td className="af-figure-cell">{count(sum(one => one.requests))}</td><td className="af-figure-cell">{count(sum(one => one.tokens_in))}</td>
            <td className="af-figure-cell">{count(sum(one => one.tokens_out))}</td><td className="af-figure-cell">{money(sum(one => one.cost))}</td>{flawed && <td />}
          </tr>
        </tfoot>
      </table>
    </>
  );
}

function inexact(one: Used, t: ReturnType<typeof useFarm>['t']): string {
  return [one.estimated ? t('%1 estimated', one.estimated) : '', one.unpriced ? t('%1 without a price', one.unpriced) : ''].filter(Boolean).join(', ');
}
