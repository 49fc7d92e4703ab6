/** The farm's machines: how full they are, who is there, and why an agent's server stands where it stands. */
import React from 'react';

import { Badge, Button, Card, Dialog, Empty, ErrorBox, Field, Go, Head, Loading, Text } from '../components';
import { useFarm, useForm, useResource } from '../context';
import { bytes, lasting } from '../figures';
import { microserverIcon } from '../icons';
import { movesAgents } from '../model';
import type { AgentView, Listed, MicroserverView } from '../protocol';
import { AGENTS } from './Agents';
import { DrainDialog, DrainState } from './Drain';
import { Notes, Row, Silence, Strain, Taints } from './machine';
import { Marks } from './Marks';
import { Reasons } from './Placement';
import type { View } from './view';

const MICROSERVERS = '/microservers';
const LOOKS = { ready: 'good', cordoned: 'wait', draining: 'wait', silent: 'bad', lost: 'bad' } as const;

function Microservers(): JSX.Element {
  const { t, page, operator, href } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<MicroserverView>>(MICROSERVERS, () => false); // the stream itself tells of them
  const address = href('microservers');
  return (
    <section className="af-view af-scrolls" aria-label={t('Microservers')}>
      <Head title={t('Microservers')} />
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value?.items.length === 0 && <Empty title={t('The farm has no microserver: nothing can run. Operators: look at the launcher’s log.')} />}
      <div className="af-frames">{value?.items.map(one => <Machine key={one.name} one={one} />)}</div>
      {!page && address && <p><a className="af-go" href={address} target="_blank" rel="noreferrer">{t('Operators cordon microservers at the farm page')}</a></p>}
      {page && !operator && <p className="af-quiet">{t('You see your own agents there. Cordoning is for operators.')}</p>}
      <Placement />
    </section>
  );
}

function Machine({ one }: { one: MicroserverView }): JSX.Element {
  const { t } = useFarm();
  const [verb, ask] = React.useState('');
  const labels = Object.entries(one.labels ?? {});
  const gpus = one.gpus ?? [];
  const facts = [
    one.cpus ? t('%1 CPUs', one.cpus) : '', one.uptime ? t('up for %1', lasting(one.uptime)) : '', one.backend ? t('backend: %1', one.backend) : '',
    one.isolation ? t('isolation: %1', one.isolation) : '', one.own_users == null ? '' : one.own_users ? t('a system user for each agent') : t('one system user for all agents')
  ];
  return (
    <Card title={one.name} beside={<Badge state={one.state} look={LOOKS[one.state as keyof typeof LOOKS] ?? 'quiet'} />}>
      {one.state !== 'ready' && one.reason && one.reason !== one.silent && <Text>{one.reason}</Text>}
      <Silence one={one} />
      <Taints one={one} />
      {one.drain && <DrainState name={one.name} drain={one.drain} details={(one.verbs ?? []).length > 0} />}
      {!!one.cpus && <dl className="af-meters">
        <Use name={t('Load')} used={one.load ?? 0} whole={one.cpus ?? 0} words={t('%1 of %2 CPUs', (one.load ?? 0).toFixed(1), one.cpus ?? 0) + busy(one, t)} />
        <Use name={t('Memory')} {...room(one.memory, one.memory_free, t)} />
        <Use name={t('Promised')} used={one.promised_memory ?? 0} whole={(one.memory ?? 0) - (one.reserve_memory ?? 0)} words={promised(one, t)} />
        <Use name={t('Disk')} {...room(one.disk, one.disk_free, t)} />
        <Strain one={one} />
      </dl>}
      <p>
        {(one.servers ?? 0) === 1 ? t('1 server runs here') : t('%1 servers run here', one.servers ?? 0)}
        {(one.agents ?? []).map((agent, at) => <React.Fragment key={agent}>{at ? ', ' : t('; agents: ')}<Go to={`agents/${agent}`}>{agent}</Go></React.Fragment>)}
        {(one.people ?? []).length > 0 && t('; people: %1', one.people!.map(own => own.person + (own.server ? ` (${own.server})` : '')).join(', '))}
      </p>
      <p className="af-quiet">{facts.filter(Boolean).join(' · ')}</p>
      {gpus.length > 0 && <p className="af-quiet">{t('%1 of %2 GPUs are taken', (one.gpus_taken ?? []).length, gpus.length)} · {[...new Set(gpus.map(gpu => String(gpu.name ?? 'GPU')))].join(', ')}</p>}
      <Notes one={one} />
      {labels.length > 0 && <p className="af-quiet">{t('Labels: %1', labels.map(([key, said]) => `${key}=${said}`).join(' · '))}</p>}
      {(one.verbs ?? []).length > 0 && (
        <div className="af-line">
          {one.verbs!.map(can => <Button key={can} onClick={() => ask(can)}>{can === 'cordon' ? t('Cordon') : can === 'uncordon' ? t('Uncordon') : can === 'drain' ? t('Drain') : can}</Button>)}
          <Button onClick={() => ask('mark')}>{t('Labels and taints')}</Button>
        </div>
      )}
      {verb === 'mark' && <Marks one={one} onClose={() => ask('')} />}
      {verb === 'drain' && <DrainDialog one={one} onClose={() => ask('')} />}
      {verb && verb !== 'mark' && verb !== 'drain' && <Turn name={one.name} verb={verb} onClose={() => ask('')} />}
    </Card>
  );
}

function Use({ name, used, whole, words }: { name: string; used: number; whole: number; words: string }): JSX.Element {
  return <Row name={name} used={used} whole={whole} bad={whole > 0 && used / whole > 0.9} words={words} />;
}

function busy(one: MicroserverView, t: ReturnType<typeof useFarm>['t']): string {
  return one.cpu_ratio == null ? '' : t(', %1 % busy', Math.round(100 * one.cpu_ratio));
}

function promised(one: MicroserverView, t: ReturnType<typeof useFarm>['t']): string {
  const kept = one.reserve_memory ? t('; %1 kept for the system', bytes(one.reserve_memory)) : '';
  return t('%1 to servers', bytes(one.promised_memory ?? 0)) + (one.promised_cpu ? t(', %1 CPUs', one.promised_cpu) : '') + kept;
}

function room(whole = 0, free = 0, t: ReturnType<typeof useFarm>['t']): { used: number; whole: number; words: string } {
  return { used: whole - free, whole, words: t('%1 of %2 free', bytes(free), bytes(whole)) };
}

/** Cordon or uncordon, with a reason: it is recorded in the farm's own chain. */
function Turn({ name, verb, onClose }: { name: string; verb: string; onClose: () => void }): JSX.Element {
  const { t, api, model } = useFarm();
  const [reason, setReason] = React.useState('');
  const turn = useForm(async () => {
    await api.post(`${MICROSERVERS}/${encodeURIComponent(name)}/${verb}`, { reason });
    model.refresh(MICROSERVERS);
    model.refresh('/placements');
  }, onClose);
  const id = React.useId();
  return (
    <Dialog
      title={verb === 'cordon' ? t('Cordon %1', name) : t('Uncordon %1', name)} onClose={onClose}
      acts={<Button type="submit" form={id} look="primary" busy={turn.busy}>{verb === 'cordon' ? t('Cordon') : t('Uncordon')}</Button>}
    >
      <form id={id} onSubmit={event => void turn.submit(event)}>
        <p>{verb === 'cordon' ? t('Nothing new is started there; what runs there runs on.') : t('It takes servers again.')}</p>
        <Field label={t('Reason')} hint={t('It is recorded with your name.')}>
          {ids => <input {...ids} name="reason" value={reason} maxLength={2000} autoFocus onChange={event => setReason(event.target.value)} />}
        </Field>
        <ErrorBox problem={turn.problem} />
      </form>
    </Dialog>
  );
}

function Placement(): JSX.Element {
  const { t } = useFarm();
  const { value } = useResource<Listed<AgentView>>(AGENTS, movesAgents);
  const [chosen, choose] = React.useState('');
  const agents = (value?.items ?? []).filter(agent => !agent.retired_at);
  return (
    <Card title={t('Why a server stands where it stands')}>
      {value && agents.length === 0 && <p className="af-quiet">{t('There is no agent yet.')}</p>}
      {agents.length > 0 && (
        <div className="af-line af-narrow">
          <Field label={t('Agent')}>
            {ids => (
              <select {...ids} name="placement" value={chosen} onChange={event => choose(event.target.value)}>
                <option value="">{t('choose one')}</option>
                {agents.map(agent => <option key={agent.name} value={agent.name}>{agent.name}</option>)}
              </select>
            )}
          </Field>
        </div>
      )}
      {chosen && <Reasons agent={chosen} up={agents.find(agent => agent.name === chosen)?.server?.ready ?? false} />}
    </Card>
  );
}

export const microserversView: View = {
  id: 'microservers', title: t => t('Microservers'), icon: microserverIcon, route: 'microservers', nav: 40, Component: Microservers
};
