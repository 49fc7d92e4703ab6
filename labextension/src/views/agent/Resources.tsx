/** What the agent's server is promised: its own settings over the farm's. They hold from its next start. */
import React from 'react';

import { Button, ErrorBox, Field, Loading } from '../../components';
import { useAction, useFarm, useResource } from '../../context';
import type { Resources as Settings, ResourcesView } from '../../protocol';
import { read, written } from '../Marks';
import { NumberField, Section } from './fields';

const MIB = 1 << 20;
type T = ReturnType<typeof useFarm>['t'];

export function Resources({ agent, manages }: { agent: string; manages: boolean }): JSX.Element {
  const { t, api, operator, page, href } = useFarm();
  const path = `/agents/${agent}/resources`;
  const address = page ? '' : href(`agents/${agent}?tab=server`);
  const { state, value, problem, resource } = useResource<ResourcesView>(path, () => false);
  const [edited, edit] = React.useState<Settings | null>(null);
  const save = useAction(async () => {
    await api.put(path, edited);
    edit(null);
    resource.refresh();
  });
  const whole = (value?.effective ?? {}) as Settings;
  const usual = (own: unknown, farm: unknown): string => (own === undefined && farm ? String(farm) : '');
  const own: Settings = edited ?? ((value?.resources ?? {}) as Settings);
  const set = (change: Partial<Settings>): void => {
    const next = { ...own, ...change } as { [name: string]: unknown };
    edit(Object.fromEntries(Object.entries(next).filter(([, one]) => one !== undefined)) as Settings);
  };
  return (
    <Section title={t('What its server is promised')}>
        <ErrorBox problem={problem} onRetry={resource.refresh} />
        {state === 'loading' && <Loading />}
        {value && <p className="af-quiet">{told(whole, value.unheld ?? '', t)}</p>}
        {value && value.feasible !== 'now' && value.change && <p role="status">{t('No microserver takes it now: %1', value.change)}</p>}
        {manages && address && <p><a className="af-go" href={address} target="_blank" rel="noreferrer">{t('What its server is promised is set at the farm page')}</a></p>}
        {value && manages && page && (
          <form className="af-fields" onSubmit={event => { event.preventDefault(); void save.run(); }}>
            <div className="af-line af-narrow">
              <NumberField
                label={t('Memory (MiB)')} value={own.memory === undefined ? undefined : own.memory / MIB} usual={usual(own.memory, (whole.memory ?? 0) / MIB)}
                onChange={mib => set({ memory: mib === undefined ? undefined : Math.round(mib * MIB) } as Partial<Settings>)}
              />
              <NumberField label={t('CPUs')} value={own.cpu} usual={usual(own.cpu, whole.cpu)} onChange={cpu => set({ cpu } as Partial<Settings>)} />
              <NumberField label={t('GPUs')} step={1} value={own.gpus} onChange={gpus => set({ gpus } as Partial<Settings>)} />
              <NumberField label={t('Processes')} step={1} value={own.tasks} usual={usual(own.tasks, whole.tasks)} onChange={tasks => set({ tasks } as Partial<Settings>)} />
            </div>
            <Lines label={t('Labels that its microserver must have')} value={own.labels} onChange={labels => set({ labels })} />
            <Field label={t('Near the tick store')} hint={t('The value of the label ticks where its streams are kept.')}>
              {ids => <input {...ids} name="ticks" value={own.ticks ?? ''} onChange={event => set({ ticks: event.target.value || undefined } as Partial<Settings>)} />}
            </Field>
            <Field label={t('From others of its pool')}>
              {ids => (
                <select {...ids} name="apart" value={own.apart ?? 'soft'} onChange={event => set({ apart: event.target.value as 'soft' })}>
                  <option value="soft">{t('apart where there is room')}</option>
                  <option value="hard">{t('always apart')}</option>
                  <option value="no">{t('it does not matter')}</option>
                </select>
              )}
            </Field>
            {operator && <Places value={own.egress} farm={whole.egress} onChange={egress => set({ egress })} />}
            {operator && (
              <Field label={t('Pinned to')} hint={t('The only microserver for it. Set by operators.')}>
                {ids => <input {...ids} name="pin" value={own.pin ?? ''} onChange={event => set({ pin: event.target.value || undefined } as Partial<Settings>)} />}
              </Field>
            )}
            <ErrorBox problem={save.problem} />
            <Button type="submit" disabled={edited === null} busy={save.busy}>{t('Save; it holds from the next start')}</Button>
          </form>
        )}
    </Section>
  );
}

/** Pairs as lines; kept as typed until they are left. */
function Lines({ label, value, onChange }: { label: string; value: { [name: string]: string } | undefined; onChange: (value: { [name: string]: string }) => void }): JSX.Element {
  const { t } = useFarm();
  const [text, setText] = React.useState(written(value));
  return (
    <Field label={label} hint={t('One a line, name=value.')}>
      {ids => <textarea {...ids} name="labels" rows={2} value={text} onChange={event => { setText(event.target.value); onChange(read(event.target.value)); }} />}
    </Field>
  );
}

/** Where the server may go besides the farm, one a line; empty: the farm's list. */
function Places({ value, farm, onChange }: { value: string[] | null | undefined; farm: string[] | null | undefined; onChange: (value: string[] | undefined) => void }): JSX.Element {
  const { t } = useFarm();
  const [text, setText] = React.useState((value ?? []).join('\n') || (value ? 'none' : ''));
  const change = (typed: string): void => {
    setText(typed);
    const lines = typed.split('\n').map(line => line.trim()).filter(Boolean);
    onChange(lines.length === 0 ? undefined : lines[0] === 'none' ? [] : lines);
  };
  return (
    <Field label={t('Where it may go besides the farm')} hint={t('One host:port a line, e.g. api.example.com:443 or 10.0.0.0/8:5432; none: nowhere; nothing: the farm\'s list. Set by operators.')}>
      {ids => <textarea {...ids} name="egress" rows={2} value={text} placeholder={value ? '' : (farm ?? []).join('\n')} onChange={event => change(event.target.value)} />}
    </Field>
  );
}

function told(has: Settings, unheld: string, t: T): string {
  const places = has.egress?.length ? t('to the farm and to %1', has.egress.join(', ')) : t('nowhere but to the farm');
  const parts = [
    has.memory ? t('%1 MiB of memory', Math.round(has.memory / MIB)) : '', has.cpu ? t('%1 CPUs', has.cpu) : '', has.gpus ? t('%1 GPUs', has.gpus) : '',
    has.tasks ? t('%1 processes', has.tasks) : '', ...Object.entries(has.labels ?? {}).map(([name, value]) => `${name}=${value}`),
    ...(has.flags ?? []), has.ticks ? t('near %1', has.ticks) : '', has.pin ? t('pinned to %1', has.pin) : '',
    unheld ? t('is meant to go %1, but this is %2', places, unheld) : t('may go %1', places)
  ];
  return parts.filter(Boolean).join(' · ');
}
