/** What operators say of a microserver: labels that servers can ask for, taints that keep them away, room for the system. */
import React from 'react';

import { Button, Dialog, ErrorBox, Field } from '../components';
import { useFarm, useForm } from '../context';
import type { MicroserverView } from '../protocol';

export type Pairs = { [name: string]: string };
const MIB = 1 << 20;

/** One pair a line: name=value. */
export function written(pairs: Pairs | undefined): string {
  return Object.entries(pairs ?? {}).map(([name, value]) => `${name}=${value}`).join('\n');
}

export function read(text: string): Pairs {
  const lines = text.split('\n').map(line => line.trim()).filter(Boolean);
  return Object.fromEntries(lines.map(line => [line.split('=', 1)[0]!, line.slice(line.split('=', 1)[0]!.length + 1)]));
}

/** What is to be sent: what is new or other, and null for what is gone. */
export function changed(before: Pairs, after: Pairs): { [name: string]: string | null } {
  const gone = Object.keys(before).filter(name => !(name in after)).map(name => [name, null]);
  return Object.fromEntries([...Object.entries(after).filter(([name, value]) => before[name] !== value), ...gone]);
}

/** The taints of operators: those that come and go by themselves are not for editing. */
export function said(one: MicroserverView): Pairs {
  return Object.fromEntries(Object.entries(one.taints ?? {}).filter(([name, why]) => one.health?.[name]?.reason !== why));
}

export function Marks({ one, onClose }: { one: MicroserverView; onClose: () => void }): JSX.Element {
  const { t, api, model } = useFarm();
  const [labels, setLabels] = React.useState(written(one.labels));
  const own = said(one);
  const [taints, setTaints] = React.useState(written(own));
  const [memory, setMemory] = React.useState(String(Math.round((one.reserve_memory ?? 0) / MIB)));
  const [cpu, setCpu] = React.useState(String(one.reserve_cpu ?? 0));
  const save = useForm(async () => {
    const kept = Number(memory) * MIB;
    await api.patch(`/microservers/${encodeURIComponent(one.name)}`, {
      labels: changed(one.labels ?? {}, read(labels)), taints: changed(own, read(taints)),
      ...(Math.round((one.reserve_memory ?? 0) / MIB) === Number(memory) ? {} : { reserve_memory: kept }),
      ...((one.reserve_cpu ?? 0) === Number(cpu) ? {} : { reserve_cpu: Number(cpu) })
    }, one.rev ?? 0);
    model.refresh('/microservers');
    model.refresh('/placements');
  }, onClose);
  const id = React.useId();
  return (
    <Dialog
      title={t('Labels and taints of %1', one.name)} onClose={onClose}
      acts={<Button type="submit" form={id} look="primary" busy={save.busy}>{t('Save')}</Button>}
    >
      <form id={id} className="af-fields" onSubmit={event => void save.submit(event)}>
        <Field label={t('Labels')} hint={t('One a line, name=value. Agents’ servers can ask for them; ticks=STORE: its streams are kept here.')}>
          {ids => <textarea {...ids} name="labels" rows={3} value={labels} autoFocus onChange={event => setLabels(event.target.value)} />}
        </Field>
        <Field label={t('Taints')} hint={t('One a line, name=reason. They keep servers away that do not tolerate them; what runs there runs on.')}>
          {ids => <textarea {...ids} name="taints" rows={2} value={taints} onChange={event => setTaints(event.target.value)} />}
        </Field>
        <Field label={t('Memory kept for the system (MiB)')}>
          {ids => <input {...ids} name="reserve_memory" type="number" min={0} value={memory} onChange={event => setMemory(event.target.value)} />}
        </Field>
        <Field label={t('CPUs kept for the system')}>
          {ids => <input {...ids} name="reserve_cpu" type="number" min={0} step="0.25" value={cpu} onChange={event => setCpu(event.target.value)} />}
        </Field>
        <ErrorBox problem={save.problem} />
      </form>
    </Dialog>
  );
}
