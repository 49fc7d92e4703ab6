/** The tools of a draft: chosen from what the farm has, with what each does to the world and who is asked before. */
import React from 'react';

import { Badge, Button, effectWord, Empty, ErrorBox, Field, Json, Text } from '../../components';
import { useFarm, useResource } from '../../context';
import type { Definition, Listed, ToolSpec, ToolView } from '../../protocol';
import { Approval, approvalWord } from './Approval';
import { JsonField, NumberField } from './fields';
import { Source, ToolFile } from './ToolFile';

type Edit = (change: (draft: Definition) => Definition, files?: { [name: string]: string }) => void;

export function ToolsPart({ draft, edit, readOnly }: { draft: Definition; edit: Edit; readOnly: boolean }): JSX.Element {
  const { t } = useFarm();
  const { value, problem, resource } = useResource<Listed<ToolView>>('/tools', () => false);
  const tools = draft.tools ?? [];
  const free = (value?.items ?? []).filter(tool => !tools.some(one => one.name === tool.name));
  const add = (name: string): void => {
    const found = free.find(tool => tool.name === name);
    if (found) {
      const { available, reason, ...spec } = found;
      edit(now => ({ ...now, tools: [...(now.tools ?? []), spec as ToolSpec] }));
    }
  };
  const change = (name: string, to: Partial<ToolSpec> | null): void => edit(now => ({
    ...now, tools: (now.tools ?? []).flatMap(tool => (tool.name !== name ? [tool] : to ? [{ ...tool, ...to }] : []))
  }));
  return (
    <>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {tools.length === 0 && <Empty title={t('No tool: the agent can only talk.')} />}
      {tools.map(tool => <Tool key={tool.name} tool={tool} change={to => change(tool.name, to)} readOnly={readOnly} />)}
      {!readOnly && (
        <Field label={t('Add a tool')}>
          {ids => (
            <select {...ids} name="add-tool" value="" onChange={event => add(event.target.value)}>
              <option value="">{t('choose …')}</option>
              {free.map(tool => (
                <option key={tool.name} value={tool.name} disabled={!tool.available}>
                  {`${tool.name}: ${tool.available ? `${effectWord(tool.effect, t)}. ${tool.description.split('\n')[0] ?? ''}` : tool.reason}`.slice(0, 120)}
                </option>
              ))}
            </select>
          )}
        </Field>
      )}
      {!readOnly && (
        <div>
          <ToolFile
            draft={draft}
            onAdd={(added, files) => {
              const names = new Set(added.map(tool => tool.name));
              edit(now => ({ ...now, tools: [...(now.tools ?? []).filter(tool => !names.has(tool.name)), ...added] }), files);
            }}
          />
        </div>
      )}
      {tools.length > 0 && <Choice draft={draft} edit={edit} readOnly={readOnly} />}
    </>
  );
}

const CHOICES = ['auto', 'required', 'none', 'required, none'];

/** Whether the model may, must or may not call a tool, step by step. */
function Choice({ draft, edit, readOnly }: { draft: Definition; edit: Edit; readOnly: boolean }): JSX.Element {
  const { t } = useFarm();
  const now = Array.isArray(draft.tool_choice) ? draft.tool_choice.join(', ') : draft.tool_choice ?? 'auto';
  const words: { [choice: string]: string } = {
    auto: t('the model decides'), required: t('a tool in each step'), none: t('no tool'), 'required, none': t('a tool first, then the answer')
  };
  return (
    <Field label={t('When tools are called')}>
      {ids => (
        <select
          {...ids} value={now} disabled={readOnly}
          onChange={event => {
            const to = event.target.value.split(', ');
            edit(one => ({ ...one, tool_choice: to.length === 1 ? to[0]! : to }));
          }}
        >
          {[...new Set([...CHOICES, now])].map(choice => <option key={choice} value={choice}>{words[choice] ?? choice}</option>)}
        </select>
      )}
    </Field>
  );
}

function Tool({ tool, change, readOnly }: { tool: ToolSpec; change: (to: Partial<ToolSpec> | null) => void; readOnly: boolean }): JSX.Element {
  const { t } = useFarm();
  const [open, setOpen] = React.useState(false);
  const effect = tool.effect ?? 'once';
  return (
    <div className="af-tool" role="group" aria-label={tool.name}>
      <div className="af-tool-head">
        <button type="button" className="af-fold" aria-expanded={open} onClick={() => setOpen(!open)}><b>{tool.name}</b></button>
        <Badge state={`effect-${effect}`} look={effect === 'once' ? 'wait' : 'quiet'} word={effectWord(effect, t)} />
        <span className="af-quiet af-facts">{approvalWord(tool.approval ?? 'never', t)}</span>
        <span className="af-spring" />
        {!readOnly && <Button look="quiet" onClick={() => change(null)} aria-label={t('Take away %1', tool.name)}>{t('Take away')}</Button>}
      </div>
      {open && (
        <div className="af-tool-body">
          {tool.description && <Text>{tool.description}</Text>}
          <Approval tool={tool} change={change} readOnly={readOnly} />
          <div className="af-line">
            <NumberField label={t('Timeout, seconds')} value={tool.timeout} usual="60" readOnly={readOnly} onChange={to => change({ timeout: to ?? 60 })} />
            <Field label={t('Names of secrets it may use')}>
              {ids => (
                <input
                  {...ids} defaultValue={(tool.secrets ?? []).join(', ')} readOnly={readOnly} placeholder={t('none')}
                  onBlur={event => change({ secrets: event.target.value.split(',').map(one => one.trim()).filter(Boolean) })}
                />
              )}
            </Field>
          </div>
          <JsonField label={t('Settings (JSON)')} rows={2} value={tool.config ?? {}} readOnly={readOnly} onChange={to => change({ config: to ?? {} })} />
          <details>
            <summary>{t('Arguments (JSON Schema)')}</summary>
            <Json value={tool.schema ?? {}} open={4} />
          </details>
          <Source name={tool.name} source={tool.source ?? 'builtin'} />
          <p className="af-quiet af-facts">{[t('source: %1', tool.source ?? 'builtin'), tool.probe ? t('has a probe') : '', tool.schema_hash?.slice(0, 12)].filter(Boolean).join(' · ')}</p>
        </div>
      )}
    </div>
  );
}
