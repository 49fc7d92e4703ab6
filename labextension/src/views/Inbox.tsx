/** What waits for a person: the list, and beside it the one that is chosen, with what is known and the decision. */
import React from 'react';

import { Badge, effectWord, Empty, ErrorBox, Go, Head, Json, Loading, Tabs, Text, Time, Value } from '../components';
import { useFarm, useResource, useStore } from '../context';
import { kindWord, resultOf, subject } from '../decisions';
import { inboxIcon } from '../icons';
import type { InboxView, Listed } from '../protocol';
import { actor, oneLine } from '../words';
import { Decide } from './Decide';
import type { Params, View } from './view';

const DECIDED = '/inbox?decided=true&limit=100';

function Inbox({ params }: { params: Params }): JSX.Element {
  const { t, model, navigate, page } = useFarm();
  const [tab, setTab] = React.useState(params.tab === 'decided' ? 'decided' : 'waiting');
  const waiting = useStore(model.inbox);
  const items = waiting.value?.items ?? [];
  const [own, choose] = React.useState(params.id);
  const chosen = (page ? params.id : own) ?? items[0]?.inbox_id;
  // on farm pages the address says which; in JupyterLab one tab shows one after the other
  const open = page ? (inbox_id: string | undefined): void => navigate(inbox_id ? `inbox/${inbox_id}` : 'inbox') : choose;
  const next = (): void => {
    const at = items.findIndex(item => item.inbox_id === chosen);
    open((items[at + 1] ?? items.find(item => item.inbox_id !== chosen))?.inbox_id);
  };
  return (
    <section className="af-view" aria-label={t('Inbox')}>
      <Head title={t('Inbox')} beside={items.length > 0 && <Badge state="waiting" word={t('%1 waiting', items.length)} />} />
      <div className="af-inbox">
        <Tabs
          label={t('Inbox')} chosen={tab} onChoose={setTab}
          tabs={[
            {
              id: 'waiting', label: t('Waiting'), content: () => (
                <>
                  <ErrorBox problem={waiting.problem} onRetry={model.inbox.refresh} />
                  {waiting.state === 'loading' && <Loading />}
                  {waiting.value && <Items items={items} chosen={chosen} open={open} empty={t('Nothing waits for a person.')} />}
                </>
              )
            },
            { id: 'decided', label: t('Decided'), content: () => <Past chosen={chosen} open={open} /> }
          ]}
        />
        <div className="af-inbox-item">
          {chosen && <Item key={chosen} inbox_id={chosen} onDecided={next} />}
          {!chosen && items.length > 0 && <Empty title={t('Choose one to see what is asked.')} />}
        </div>
      </div>
    </section>
  );
}

interface Chosen {
  chosen: string | undefined;
  open: (inbox_id: string) => void;
}

function Past({ chosen, open }: Chosen): JSX.Element {
  const { t } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<InboxView>>(DECIDED, change => /^(approval|tool|question|simulation|budget)\./.test(change.event.kind));
  return (
    <>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value && <Items items={value.items} chosen={chosen} open={open} empty={t('Nothing was decided yet.')} />}
    </>
  );
}

/** The list; up and down move between its items, Enter opens one. */
function Items({ items, chosen, open, empty }: Chosen & { items: InboxView[]; empty: string }): JSX.Element {
  const { t } = useFarm();
  const list = React.useRef<HTMLUListElement>(null);
  const onKeyDown = (event: React.KeyboardEvent): void => {
    const way = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (way) {
      const buttons = [...(list.current?.querySelectorAll('button') ?? [])];
      const at = buttons.indexOf(document.activeElement as HTMLButtonElement);
      buttons[Math.min(Math.max(at + way, 0), buttons.length - 1)]?.focus();
      event.preventDefault();
    }
  };
  if (items.length === 0) {
    return <Empty title={empty} />;
  }
  return (
    <ul className="af-items" ref={list} onKeyDown={onKeyDown} aria-label={t('Items')}>
      {items.map(item => (
        <li key={item.inbox_id}>
          <button
            type="button" aria-current={item.inbox_id === chosen || undefined} onClick={() => open(item.inbox_id)}
          >
            <span className="af-items-head">
              <Badge state={item.decided_at ? 'quiet' : item.kind === 'in_doubt' ? 'in_doubt' : 'waiting'} word={item.decided_at ? decidedWord(item, t) : kindWord(item.kind, t)} />
              <span className="af-spring" />
              <Time at={item.decided_at ?? item.asked_at} />
            </span>
            <strong>{oneLine(subject(item, t), 90)}</strong>
            <span className="af-quiet">{actor(item.agent, t)}</span>
          </button>
        </li>
      ))}
    </ul>
  );
}

function decidedWord(item: InboxView, t: ReturnType<typeof useFarm>['t']): string {
  const word = item.decision?.replace(/_/g, ' ') ?? t('decided');
  return item.decided_by ? t('%1 by %2', word, item.decided_by.replace(/^user:/, '')) : word;
}

/** One item: what is asked, what is known, and the decision where it is still open. */
function Item({ inbox_id, onDecided }: { inbox_id: string; onDecided: () => void }): JSX.Element {
  const { t, page, approver, href } = useFarm();
  const { state, value: item, problem, resource } = useResource<InboxView>(`/inbox/${inbox_id}`, change => /^(approval|tool|question|simulation|budget|run|worker)\./.test(change.event.kind));
  if (!item) {
    return state === 'loading' ? <Loading /> : <ErrorBox problem={problem} onRetry={resource.refresh} />;
  }
  const address = href(`inbox/${inbox_id}`);
  return (
    <article aria-label={kindWord(item.kind, t)}>
      <h3 className="af-items-head">{subject(item, t)} <Badge state={item.decided_at ? 'quiet' : 'waiting'} word={kindWord(item.kind, t)} /></h3>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      <Facts item={item} />
      {item.decided_at
        ? <p role="status">{decidedWord(item, t)}: {item.reason || t('no reason given')}</p>
        : page
          ? approver && item.may_decide !== false
            ? <Decide item={item} onDecided={onDecided} onRecorded={resource.refresh} />
            : <p className="af-quiet">{approver ? t('You may see this, not decide it: that is for those who manage %1.', actor(item.agent, t)) : t('You may see this, not decide it: that takes the right to approve.')}</p>
          : address
            ? <p><a className="af-go" href={address} target="_blank" rel="noreferrer">{t('Decide it at the farm page')}</a></p>
            : <p className="af-quiet">{t('It is decided at the farm page, or by: agentfarm inbox resolve %1', inbox_id)}</p>}
    </article>
  );
}

function Facts({ item }: { item: InboxView }): JSX.Element {
  const { t } = useFarm();
  const { detail } = item;
  const words = (name: string): string => (typeof detail[name] === 'string' ? (detail[name] as string) : '');
  const rows: [string, React.ReactNode][] = [
    [t('Run'), <Go to={`runs/${item.run_id}`}>{actor(item.agent, t)}</Go>],
    [t('Asked'), <Time at={item.asked_at} />],
    [t('Why'), item.kind === 'budget' ? '' : words('why') || words('reason')], // a budget's stands above
    [t('Effect'), words('effect') && effectWord(words('effect'), t)],
    [t('Worker'), item.worker ?? ''],
    [t('Key'), words('key') && <code>{words('key')}</code>],
    [t('Approvals'), approvals(item, t)],
    [t('Expires'), item.expires_at ? new Date(item.expires_at).toLocaleString() : ''],
    [t('Escalated'), item.escalated_at ? t('to %1', item.escalate_to ?? t('operators')) : '']
  ];
  return (
    <>
      <dl className="af-facts">
        {rows.filter(([, said]) => said).map(([name, said]) => (
          <React.Fragment key={name}><dt>{name}</dt><dd>{said}</dd></React.Fragment>
        ))}
      </dl>
      {item.kind === 'question' && Array.isArray(detail.choices) && <Text>{(detail.choices as string[]).map(one => `· ${one}`).join('\n')}</Text>}
      {detail.arguments !== undefined && (
        <div className="af-asked"><h4>{t('Arguments')}</h4><Value value={typeof detail.arguments === 'string' ? resultOf(detail.arguments) : detail.arguments} /></div>
      )}
      <details>
        <summary>{t('All of the record')}</summary>
        <Json value={detail} open={1} />
      </details>
    </>
  );
}

function approvals(item: InboxView, t: ReturnType<typeof useFarm>['t']): string {
  const needed = Number(item.detail.approvers ?? 1);
  const people = (item.votes ?? []).map(vote => String(vote.by));
  return needed > 1 ? t('%1 of %2', people.length, needed) + (people.length ? `: ${people.join(', ')}` : '') : '';
}

export const inboxView: View = {
  id: 'inbox', title: t => t('Inbox'), icon: inboxIcon, route: 'inbox', nav: 30, Component: Inbox
};
export const inboxItemView: View = {
  id: 'inbox-item', title: t => t('Inbox'), icon: inboxIcon, route: 'inbox/:id', Component: Inbox
};
