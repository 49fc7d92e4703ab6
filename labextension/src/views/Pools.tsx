/** Pools: agents that share tasks. Who is in each, whose server is up, and how many may be. */
import React from 'react';

import { Badge, Button, Card, Dialog, Empty, ErrorBox, Field, Go, Head, Loading, Text } from '../components';
import { useFarm, useForm, useResource, type Translate } from '../context';
import { shortly } from '../figures';
import { agentIcon } from '../icons';
import type { Listed, PoolRules, PoolView } from '../protocol';
import type { View } from './view';

const POOLS = '/pools';
const MINUTE = 60; // s

function Pools(): JSX.Element {
  const { t, page, href } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<PoolView>>(POOLS, change => /^(agent|pool)\./.test(change.event.kind));
  const address = href('pools');
  return (
    <section className="af-view af-scrolls" aria-label={t('Pools')}>
      <Head title={t('Pools')}><Go to="agents">{t('all agents')}</Go></Head>
      <p className="af-quiet">{t('A task that is given to a pool is done by the member that has room for it first.')}</p>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value?.items.length === 0 && (
        <Empty title={t('No agent is in a pool. An agent is given its pool when it is made, or on its page, at Server.')}><Go to="new-agent">{t('New agent')}</Go></Empty>
      )}
      <div className="af-frames">{value?.items.map(one => <Pool key={one.name} one={one} />)}</div>
      {!page && address && value && value.items.length > 0 && (
        <p><a className="af-go" href={address} target="_blank" rel="noreferrer">{t('How many servers a pool has is set at the farm page')}</a></p>
      )}
    </section>
  );
}

function Pool({ one }: { one: PoolView }): JSX.Element {
  const { t, page, navigate } = useFarm();
  const [asked, ask] = React.useState(false);
  return (
    <Card title={one.name} beside={<Badge state={one.up ? 'ready' : 'stopped'} word={t('%1 of %2 servers are up', one.up, one.members.length)} />}>
      <ul className="af-lines">
        {one.members.map(member => (
          <li key={member.agent}>
            <Go to={`agents/${member.agent}`} className="af-grow">{member.agent}</Go>
            <Badge state={member.ready ? 'ready' : 'stopped'} word={member.ready ? t('on %1', member.microserver ?? '?') : t('off')} />
          </li>
        ))}
      </ul>
      <Text>{ruled(one, t)}</Text>
      <div className="af-line">
        <Button onClick={() => navigate(`tasks?target=pool:${one.name}`)}>{t('Give it a task')}</Button>
        {page && one.may_change && <Button onClick={() => ask(true)}>{t('Change the rules')}</Button>}
      </div>
      {page && !one.may_change && <p className="af-quiet">{t('Its rules are for those who manage all of its members.')}</p>}
      {asked && <Rules one={one} onClose={() => ask(false)} />}
    </Card>
  );
}

/** The rules of a pool in words. */
function ruled({ min_servers = 0, max_servers, idle_seconds }: PoolView, t: Translate): string {
  const least = min_servers === 0 ? t('Servers are started when there is work') : min_servers === 1 ? t('At least 1 server is kept up') : t('At least %1 servers are kept up', min_servers);
  const most = max_servers == null ? t('as many as it has members') : max_servers === 1 ? t('1 at most') : t('%1 at most', max_servers);
  const idle = idle_seconds == null ? t('An idle one is stopped after the farm’s usual time.')
    : idle_seconds === 0 ? t('None is stopped for being idle.') : t('An idle one is stopped after %1.', shortly(idle_seconds));
  return `${least}, ${most}. ${idle}`;
}

/** Of a pool: how many servers are kept up, how many may be, how long an idle one stays. */
function Rules({ one, onClose }: { one: PoolView; onClose: () => void }): JSX.Element {
  const { t, api, model } = useFarm();
  const [least, setLeast] = React.useState(String(one.min_servers ?? 0));
  const [most, setMost] = React.useState(one.max_servers == null ? '' : String(one.max_servers));
  const [idle, setIdle] = React.useState(one.idle_seconds == null ? '' : String(one.idle_seconds / MINUTE));
  const save = useForm(async () => {
    const rules: PoolRules = {
      min_servers: Number(least), max_servers: most === '' ? null : Number(most), idle_seconds: idle === '' ? null : Number(idle) * MINUTE
    };
    await api.put(`${POOLS}/${encodeURIComponent(one.name)}`, rules);
    model.refresh(POOLS);
  }, onClose);
  const id = React.useId();
  return (
    <Dialog title={t('Rules of pool %1', one.name)} onClose={onClose} acts={<Button type="submit" form={id} look="primary" busy={save.busy}>{t('Save')}</Button>}>
      <form id={id} className="af-fields" onSubmit={event => void save.submit(event)}>
        <Field label={t('Servers that are kept up')}>
          {ids => <input {...ids} name="min_servers" type="number" min={0} max={500} required value={least} autoFocus onChange={event => setLeast(event.target.value)} />}
        </Field>
        <Field label={t('Servers at most')} hint={t('Empty: as many as it has members. The farm starts no more; people may.')}>
          {ids => <input {...ids} name="max_servers" type="number" min={1} max={500} value={most} onChange={event => setMost(event.target.value)} />}
        </Field>
        <Field label={t('Minutes after which an idle one is stopped')} hint={t('Empty: the farm’s usual time. 0: never.')}>
          {ids => <input {...ids} name="idle_minutes" type="number" min={0} step="any" value={idle} onChange={event => setIdle(event.target.value)} />}
        </Field>
        <ErrorBox problem={save.problem} />
      </form>
    </Dialog>
  );
}

export const poolsView: View = { id: 'pools', title: t => t('Pools'), icon: agentIcon, route: 'pools', under: 'agents', Component: Pools };
