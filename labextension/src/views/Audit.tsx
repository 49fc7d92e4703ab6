/** Is the record whole? The farm checked on demand, its anchors, and what happened to the farm itself. */
import React from 'react';

import { Badge, Button, Card, Empty, ErrorBox, Go, Head, Loading, Time, VirtualList } from '../components';
import { useAction, useFarm, useResource, useRun } from '../context';
import { count } from '../figures';
import { auditIcon } from '../icons';
import type { AnchorView, Event, Listed, Whole } from '../protocol';
import { oneLine } from '../words';
import type { View } from './view';

const ANCHORS = '/audit/anchors?newest=true&limit=20';
const FARM = 'farm'; // the id of the farm's own chain

function Audit(): JSX.Element {
  const { t, operator } = useFarm();
  return (
    <section className="af-view af-scrolls" aria-label={t('Audit')}>
      <Head title={t('Audit')} />
      {operator ? <Verify /> : <p className="af-quiet">{t('The whole farm is checked by operators. Your own runs are checked where each is shown.')}</p>}
      <Anchors />
      {operator && <Chain />}
    </section>
  );
}

function Verify(): JSX.Element {
  const { t, api } = useFarm();
  const [whole, setWhole] = React.useState<Whole | null>(null);
  const check = useAction(async () => setWhole(await api.get<Whole>('/audit/verify')));
  return (
    <Card title={t('Is the record whole?')} beside={<Button look="primary" busy={check.busy} onClick={() => void check.run()}>{t('Verify now')}</Button>}>
      <ErrorBox problem={check.problem} />
      {check.busy && <Loading what={t('Every event of every run is hashed again …')} />}
      {!whole && !check.busy && <p className="af-quiet">{t('Hashes each event of each run again, and holds the runs against the signed anchors.')}</p>}
      {whole && (
        <div role="status">
          <p><Badge state={whole.ok ? 'verified' : 'broken'} word={whole.ok ? t('whole') : t('not whole; findings: %1', whole.broken.length)} /> {reach(whole, t)}</p>
        </div>
      )}
      {whole && whole.broken.length > 0 && (
        <table className="af-plain" aria-label={t('What is not whole')}>
          <thead><tr><th scope="col">{t('Run')}</th><th scope="col">{t('First bad event')}</th><th scope="col">{t('Why')}</th></tr></thead>
          <tbody>
            {whole.broken.map((one, at) => (
              <tr key={at}>
                <th scope="row">{one.run_id && one.run_id !== FARM ? <Go to={`runs/${one.run_id}`}>{one.run_id}</Go> : one.run_id || t('the farm')}</th>
                <td>{one.bad_seq ?? ''}</td>
                <td>{one.why}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </Card>
  );
}

function reach(whole: Whole, t: ReturnType<typeof useFarm>['t']): string {
  const checked = whole.runs === 1 ? t('%1 events in one run.', count(whole.events)) : t('%1 events in %2 runs.', count(whole.events), count(whole.runs));
  return whole.anchor === null
    ? `${checked} ${t('No anchor holds them yet.')}`
    : `${checked} ${t('Anchor %1 holds the record up to %2; %3 events came after it.', whole.anchor, new Date(whole.anchored_at ?? '').toLocaleString(), count(whole.since))}`;
}

/** What of an anchor's signed text is shown. */
interface Signed {
  at?: string;
  leaves?: number;
  root?: string;
}

function Anchors(): JSX.Element {
  const { t, api } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<AnchorView>>(ANCHORS, () => false);
  const [older, setOlder] = React.useState<AnchorView[]>([]);
  const [ended, end] = React.useState(false);
  const first = value?.items ?? [];
  const last = first[first.length - 1]?.number ?? 0;
  const items = [...first, ...older.filter(one => one.number < last)];
  const more = useAction(async () => {
    const page = await api.get<Listed<AnchorView>>(`${ANCHORS}&cursor=${items[items.length - 1]?.number ?? 0}`);
    setOlder(before => [...before, ...page.items]);
    end(page.next == null);
  });
  return (
    <Card title={t('Anchors')} beside={<Button look="quiet" onClick={resource.refresh}>{t('Look again')}</Button>}>
      <p className="af-quiet">{t('A signed root over the heads of all runs that moved, each minute in which something changes. Keep copies elsewhere: what they hold cannot be rewritten unseen.')}</p>
      <ErrorBox problem={problem ?? more.problem} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value && items.length === 0 && <Empty title={t('No anchor yet: the first one comes a minute after the first event.')} />}
      {items.length > 0 && (
        <table className="af-plain" aria-label={t('Anchors')}>
          <thead>
            <tr><th scope="col">{t('Number')}</th><th scope="col">{t('Signed')}</th><th scope="col" className="af-figure-cell">{t('Runs moved')}</th><th scope="col">{t('Root')}</th><th scope="col">{t('Signature')}</th></tr>
          </thead>
          <tbody>{items.map(one => <Anchor key={one.number} one={one} />)}</tbody>
        </table>
      )}
      {value?.next != null && !ended && <Button busy={more.busy} onClick={() => void more.run()}>{t('Older anchors')}</Button>}
    </Card>
  );
}

function Anchor({ one }: { one: AnchorView }): JSX.Element {
  const signed = React.useMemo(() => JSON.parse(one.anchor) as Signed, [one.anchor]);
  return (
    <tr>
      <th scope="row">{one.number}</th>
      <td><Time at={signed.at} /></td>
      <td className="af-figure-cell">{signed.leaves}</td>
      <td><code title={signed.root}>{signed.root?.slice(0, 16)}…</code></td>
      <td><code title={one.signature}>{one.signature.slice(0, 16)}…</code></td>
    </tr>
  );
}

/** The farm's own chain, the newest first: agents made and shared, versions, secrets' names, cordons, backups. */
function Chain(): JSX.Element {
  const { t } = useFarm();
  const { events, count: many, complete, problem } = useRun(FARM);
  const newest = React.useMemo(() => [...events].reverse(), [events, many]);
  return (
    <Card title={t('What happened to the farm')} beside={<span className="af-quiet">{t('%1 events', count(many))}</span>}>
      <ErrorBox problem={problem} />
      {!complete && many === 0 && !problem && <Loading />}
      {complete && many === 0 && <p className="af-quiet">{t('Nothing yet.')}</p>}
      {many > 0 && (
        <VirtualList<Event>
          items={newest} keyOf={event => event.seq} label={t('What happened to the farm')} className="af-chain"
          row={event => (
            <div className="af-chain-row">
              <span className="af-quiet">{event.seq}</span>
              <strong>{event.kind}</strong>
              <span>{event.by.replace(/^user:/, '')}</span>
              <span className="af-grow">{event.body === null ? t('erased') : facts(event.body)}</span>
              <Time at={event.at} />
            </div>
          )}
        />
      )}
    </Card>
  );
}

/** The fields of an event in one line: `agent analyst · rights view`. */
const facts = (body: unknown): string =>
  Object.entries((body ?? {}) as object).filter(([, said]) => said !== '').map(([name, said]) => `${name} ${said === null ? '–' : oneLine(said, 60)}`).join(' · ');

export const auditView: View = {
  id: 'audit', title: t => t('Audit'), icon: auditIcon, route: 'audit', nav: 60, where: 'page', who: 'operator', Component: Audit
};
