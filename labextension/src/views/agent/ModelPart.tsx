/** Which model answers, what it can do, and how it is asked. */
import React from 'react';

import { ErrorBox, Field } from '../../components';
import { useFarm, useResource } from '../../context';
import type { Definition, ModelSpec } from '../../protocol';
import { JsonField, NumberField } from './fields';

/** One line of `GET /model/v1/models`. */
export interface Offered {
  id: string;
  owned_by: string;
  note?: string;
  error?: string;
  default: boolean;
  price: { [side: string]: number } | number[] | null;
  inputs: string[];
  context: number | null;
}

const NUMBERS = ['temperature', 'max_tokens', 'top_p', 'seed'] as const;

export function ModelPart({ draft, edit, readOnly }: {
  draft: Definition;
  edit: (change: (draft: Definition) => Definition) => void;
  readOnly: boolean;
}): JSX.Element {
  const { t } = useFarm();
  const { value, problem, resource } = useResource<{ data: Offered[] }>('/model/v1/models', () => false);
  const model = draft.model ?? {};
  const parameters = model.parameters ?? {};
  const set = (change: Partial<ModelSpec>): void => edit(now => ({ ...now, model: without({ ...now.model, ...change }) }));
  const setParameter = (name: string, to: unknown): void => set({ parameters: without({ ...parameters, [name]: to }) });
  const others = Object.fromEntries(Object.entries(parameters).filter(([name]) => !(NUMBERS as readonly string[]).includes(name)));
  const offered = value?.data ?? [];
  const usual = offered.find(one => one.default);
  const chosen = offered.find(one => one.id === model.name) ?? (model.name ? undefined : usual);
  const words: Record<(typeof NUMBERS)[number], string> = {
    temperature: t('Temperature'), max_tokens: t('Longest reply, tokens'), top_p: t('Top p'), seed: t('Seed')
  };
  return (
    <>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      <Field label={t('Model')} hint={chosen ? canDo(chosen, t) : model.name && value ? t('No model server of this farm offers it now.') : ''}>
        {ids => (
          <select {...ids} name="model" value={model.name ?? ''} disabled={readOnly} onChange={event => set({ name: event.target.value || undefined })}>
            <option value="">{usual ? t('the farm\'s default: %1', usual.id) : t('the farm\'s default')}</option>
            {offered.map(one => <option key={`${one.owned_by}/${one.id}`} value={one.id}>{one.id}</option>)}
            {model.name && !offered.some(one => one.id === model.name) && <option value={model.name}>{model.name}</option>}
          </select>
        )}
      </Field>
      {chosen?.error && <p className="af-bad" role="alert">{chosen.error}</p>}
      <div className="af-grid">
        {NUMBERS.map(name => (
          <NumberField
            key={name} label={words[name]} value={parameters[name] as number | undefined} usual={t('not said')} readOnly={readOnly}
            onChange={to => setParameter(name, to)}
          />
        ))}
      </div>
      <details>
        <summary>{t('More about the model')}</summary>
        <JsonField
          label={t('Other parameters (JSON)')} value={others} rows={3} readOnly={readOnly}
          onChange={to => set({ parameters: without({ ...Object.fromEntries(NUMBERS.map(name => [name, parameters[name]])), ...to }) })}
        />
        <div className="af-line">
          <Field label={t('Provider')}>
            {ids => <input {...ids} value={model.provider ?? ''} readOnly={readOnly} placeholder={t('any')} onChange={event => set({ provider: event.target.value || undefined })} />}
          </Field>
          <NumberField
            label={t('Context, tokens')} value={model.context} usual={chosen?.context ? String(chosen.context) : t('not known')} readOnly={readOnly}
            onChange={to => set({ context: to })}
          />
          <NumberField
            label={t('Attempts')} value={model.retry?.attempts} usual="8" readOnly={readOnly}
            onChange={to => set({ retry: to === undefined ? undefined : { ...model.retry, attempts: to } })}
          />
        </div>
      </details>
    </>
  );
}

/** Without what is not said: a default is left out, so that the hash of a version is of what differs. */
function without<T extends object>(value: { [key in keyof T]?: T[key] | undefined }): T {
  return Object.fromEntries(Object.entries(value).filter(([, one]) => one !== undefined)) as T;
}

function canDo(model: Offered, t: ReturnType<typeof useFarm>['t']): string {
  const price = model.price === null ? t('no price known') : priceWords(model.price, t);
  return [
    t('takes %1', model.inputs.length ? model.inputs.join(', ') : 'text'), model.context ? t('%1 tokens of context', model.context.toLocaleString()) : t('context not known'),
    price, t('by %1', model.owned_by), model.note
  ].filter(Boolean).join(' · ');
}

function priceWords(price: NonNullable<Offered['price']>, t: ReturnType<typeof useFarm>['t']): string {
  const [input, output] = Array.isArray(price) ? price : Object.values(price);
  return input === 0 && output === 0 ? t('costs nothing') : t('$%1 in, $%2 out per million tokens', input ?? '?', output ?? '?');
}
