/** Emptying a microserver: what goes where, before anything is done; and how far it is. */
import React from 'react';

import { Badge, Button, Dialog, ErrorBox, Field, Go, Loading, Text } from '../components';
import { useAction, useFarm, useForm, useResource, type Translate } from '../context';
import { bytes } from '../figures';
import type { Drain, Draining, DrainView, MicroserverView, Resident } from '../protocol';

const MICROSERVERS = '/microservers';
const path = (name: string): string => `${MICROSERVERS}/${encodeURIComponent(name)}/drain`;
const UNTIL = ['finish-step', 'finish-run', 'move', 'kill'] as const;

function words(until: string, t: Translate): string {
  const known: { [until: string]: string } = {
    'finish-step': t('after the step in hand'), 'finish-run': t('after the runs in hand'), move: t('at once, in order'), kill: t('at once, killed')
  };
  return known[until] ?? until;
}

export function DrainDialog({ one, onClose }: { one: MicroserverView; onClose: () => void }): JSX.Element {
  const { t, api, model } = useFarm();
  const [reason, setReason] = React.useState('');
  const [until, setUntil] = React.useState<(typeof UNTIL)[number]>('finish-step');
  const [hours, setHours] = React.useState('');
  const [plan, setPlan] = React.useState<Draining | null>(null);
  const look = useAction(async () => setPlan(await api.post<Draining>(path(one.name), { dry_run: true, until })));
  React.useEffect(() => void look.run(), [one.name, until]);
  const drain = useForm(async () => {
    const wish: Drain = { reason, until, ...(hours ? { deadline: Number(hours) * 3600 } : {}) };
    await api.post(path(one.name), wish);
    model.refresh(MICROSERVERS);
    model.refresh('/placements');
  }, onClose);
  const id = React.useId();
  return (
    <Dialog
      title={t('Drain %1', one.name)} onClose={onClose}
      acts={<Button type="submit" form={id} look="primary" busy={drain.busy}>{t('Drain')}</Button>}
    >
      <form id={id} className="af-fields" onSubmit={event => void drain.submit(event)}>
        <p>{t('Nothing new goes there. Agents go on elsewhere, each with its files; a run goes on from its last recorded step.')}</p>
        <Field label={t('Reason')} hint={t('It is recorded with your name.')}>
          {ids => <input {...ids} name="reason" value={reason} maxLength={2000} required autoFocus onChange={event => setReason(event.target.value)} />}
        </Field>
        <Field label={t('A server is stopped')}>
          {ids => (
            <select {...ids} name="until" value={until} onChange={event => setUntil(event.target.value as typeof until)}>
              {UNTIL.map(value => <option key={value} value={value}>{words(value, t)}</option>)}
            </select>
          )}
        </Field>
        <Field label={t('Hours until what is left is killed')} hint={t('Empty: never.')}>
          {ids => <input {...ids} name="hours" type="number" min="0.01" step="any" value={hours} onChange={event => setHours(event.target.value)} />}
        </Field>
        <ErrorBox problem={look.problem} />
        {look.busy && <Loading />}
        {plan && <Residents items={plan.items} />}
        <ErrorBox problem={drain.problem} />
      </form>
    </Dialog>
  );
}

/** How far a drain is, for everybody; what each workspace waits for, for operators. */
export function DrainState({ name, drain, details }: { name: string; drain: DrainView; details: boolean }): JSX.Element {
  const { t } = useFarm();
  return (
    <>
      <p role="status">
        {t('%1 of %2 workspaces are still there, %3 on their way. Servers are stopped %4.', drain.left ?? 0, drain.of ?? 0, drain.moving ?? 0, words(drain.until, t))}
        {drain.deadline ? ` ${t('What is left is killed at %1.', new Date(String(drain.deadline)).toLocaleString())}` : ''}
      </p>
      {details && <Details name={name} />}
    </>
  );
}

function Details({ name }: { name: string }): JSX.Element {
  const { value, problem, resource } = useResource<Draining>(path(name), () => false); // the stream tells of microservers
  return (
    <>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {value && <Residents items={value.items} />}
    </>
  );
}

function Residents({ items }: { items: Resident[] }): JSX.Element {
  const { t } = useFarm();
  if (items.length === 0) {
    return <p className="af-quiet">{t('No workspace is there.')}</p>;
  }
  return (
    <table className="af-plain">
      <thead><tr><th scope="col">{t('Whose')}</th><th scope="col">{t('Server')}</th><th scope="col">{t('Goes to')}</th><th scope="col">{t('Now')}</th></tr></thead>
      <tbody>
        {items.map(one => (
          <tr key={one.user}>
            <th scope="row">{one.agent ? <Go to={`agents/${one.agent}`}>{one.agent}</Go> : one.user}</th>
            <td><Badge state={one.server} look={one.server === 'unknown' ? 'bad' : 'quiet'} /> {(one.runs ?? 0) > 0 && <span className="af-quiet">{one.runs === 1 ? t('1 run') : t('%1 runs', one.runs ?? 0)}</span>}</td>
            <td>{one.to ?? t('stays')} {one.bytes != null && <span className="af-quiet">{bytes(one.bytes)}</span>}</td>
            <td>{one.part ? t('%1 % copied', Math.round(one.part * 100)) : <Text>{one.waits || one.why || ''}</Text>}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
