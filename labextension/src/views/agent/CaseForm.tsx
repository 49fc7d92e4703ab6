/** The form of a test case: made from a run, from nothing, or changed. */
import React from 'react';

import { Button, Dialog, ErrorBox, Field } from '../../components';
import { checkOf, inputOf, KINDS, typed, written, type Kind, type Typed } from '../../cases';
import { useAction, useFarm, type Translate } from '../../context';
import { variablesOf } from '../../csv';
import type { CaseView, Check, Simulate, TaskView } from '../../protocol';
import { JsonField } from './fields';

export const checkWords = (t: Translate): Record<Kind, [string, string]> => ({
  exact: [t('is exactly'), t('The result, as text or JSON')],
  contains: [t('contains'), t('Words that stand in it')],
  schema: [t('fits a JSON Schema'), t('JSON Schema')],
  python: [t('passes assertions in Python'), t('Statements over result, text and input')],
  judge: [t('a model says so'), t('A question that the model answers with yes')]
});

type Answers = 'ask' | 'simulate';

/** `known`: the case that is changed; `task`: whose run is kept; neither: a case from nothing. */
export function CaseForm({ agent, known, task, onClose }: { agent: string; known?: CaseView; task?: TaskView; onClose: () => void }): JSX.Element {
  const { t, api, model } = useFarm();
  const [name, setName] = React.useState(known?.name ?? '');
  const [input, setInput] = React.useState(() => written(known?.input ?? task?.input ?? ''));
  const [variables, setVariables] = React.useState(() => Object.entries(known?.variables ?? {}).map(([key, value]) => `${key} = ${value}`).join('\n'));
  const [checks, setChecks] = React.useState<Typed[]>(() => known ? (known.expect as unknown as Check[]).map(typed) : [typed({ kind: 'exact', value: task?.result ?? '' })]);
  const [mode, setMode] = React.useState<Answers>((known?.mode as Answers | undefined) ?? (task ? 'simulate' : 'ask'));
  const [simulate, setSimulate] = React.useState<Simulate | null>((known?.simulate as Simulate | null | undefined) ?? null);
  const made = checks.map(checkOf);
  const given = variablesOf(variables);
  const save = useAction(async () => {
    const expect = made as Check[];
    const path = `/agents/${agent}/cases`;
    if (task) {
      await api.post(path, { name: name.trim(), from_run: task.run_id, expect, ...(written(task.input) === input ? {} : { input: inputOf(input) }) });
    } else {
      // an input that was neither text nor data that reads as itself stays as it is, unless it was changed
      const asked = known && written(known.input) === input ? known.input : inputOf(input);
      const body = { name: name.trim(), input: asked, variables: given, expect, mode, ...(mode === 'simulate' ? { simulate: simulate ?? { otherwise: 'refuse' } } : { simulate: null }) };
      await (known ? api.patch(`${path}/${known.case_id}`, body) : api.post(path, body));
    }
    model.refresh(path);
    onClose();
  });
  const whole = Boolean(name.trim() && input.trim()) && given !== null && made.every(check => check !== null);
  return (
    <Dialog
      title={known ? t('Test case %1', known.name) : task ? t('Save as a test case') : t('New test case')} onClose={onClose}
      acts={<Button look="primary" busy={save.busy} disabled={!whole} onClick={() => void save.run()}>{t('Save')}</Button>}
    >
      <div className="af-case-form">
        {task && <p className="af-quiet">{t('The same input is tried again with any version; what tools answered then answers its calls.')}</p>}
        <Field label={t('Name')}>{ids => <input {...ids} name="case-name" value={name} maxLength={200} autoFocus onChange={event => setName(event.target.value)} />}</Field>
        <Field label={t('Input')} hint={t('text; a JSON object or list is given as data')}>
          {ids => <textarea {...ids} name="case-input" rows={3} value={input} onChange={event => setInput(event.target.value)} />}
        </Field>
        {!task && (
          <>
            <details className="af-more" open={Boolean(variables)}>
              <summary>{t('Variables of the prompt')}</summary>
              <Field label={t('One a line: name = value')} {...(given === null ? { error: t('A line is not of the form name = value.') } : {})}>
                {ids => <textarea {...ids} rows={2} className="af-mono" value={variables} onChange={event => setVariables(event.target.value)} />}
              </Field>
            </details>
            <Answering mode={mode} simulate={simulate} onMode={setMode} onSimulate={setSimulate} />
          </>
        )}
        {checks.map((one, at) => (
          <CheckField
            key={at} check={one} number={checks.length > 1 ? at + 1 : 0} result={task?.result} wrong={made[at] === null}
            onChange={to => setChecks(now => now.map((other, place) => (place === at ? to : other)))}
            onDrop={checks.length > 1 ? () => setChecks(now => now.filter((_, place) => place !== at)) : undefined}
          />
        ))}
        {checks.length < 10 && (
          <div><Button look="quiet" onClick={() => setChecks(now => [...now, typed({ kind: 'contains', text: '' })])}>{t('One more check')}</Button></div>
        )}
        <ErrorBox problem={save.problem} />
      </div>
    </Dialog>
  );
}

/** Who answers the calls of its tools. */
function Answering({ mode, simulate, onMode, onSimulate }: {
  mode: Answers;
  simulate: Simulate | null;
  onMode: (mode: Answers) => void;
  onSimulate: (simulate: Simulate | null) => void;
}): JSX.Element {
  const { t } = useFarm();
  const change = (part: Partial<Simulate>): void => onSimulate({ otherwise: 'refuse', ...simulate, ...part });
  return (
    <>
      <div className="af-line">
        <Field label={t('What answers the calls of its tools')}>
          {ids => (
            <select {...ids} name="case-mode" value={mode} onChange={event => onMode(event.target.value as Answers)}>
              <option value="ask">{t('the tools; a person is asked before each effect')}</option>
              <option value="simulate">{t('simulated: nothing happens outside')}</option>
            </select>
          )}
        </Field>
        {mode === 'simulate' && (
          <Field label={t('A call that nothing answers')}>
            {ids => (
              <select {...ids} value={simulate?.otherwise ?? 'refuse'} onChange={event => change({ otherwise: event.target.value as 'person' | 'refuse' })}>
                <option value="refuse">{t('the model is told so')}</option>
                <option value="person">{t('a person answers it')}</option>
              </select>
            )}
          </Field>
        )}
      </div>
      {mode === 'simulate' && (
        <>
          {simulate?.recording && <p className="af-quiet">{t('First what run %1 recorded.', simulate.recording)}</p>}
          <JsonField
            label={t('Answers by tool (JSON)')} hint={t('e.g. {"place_order": {"id": "1"}}')} rows={2} value={simulate?.stubs ?? {}} onChange={stubs => change({ stubs: stubs ?? {} })}
          />
        </>
      )}
    </>
  );
}

function CheckField({ check, number, result, wrong, onChange, onDrop }: {
  check: Typed;
  /** 0: the only one. */
  number: number;
  result: unknown;
  wrong: boolean;
  onChange: (check: Typed) => void;
  onDrop: (() => void) | undefined;
}): JSX.Element {
  const { t } = useFarm();
  const words = checkWords(t);
  const schema = check.kind === 'schema' && check.text.trim() !== '';
  return (
    <div className="af-case-check" role="group" aria-label={number ? t('Check %1', number) : t('Check')}>
      <div className="af-line">
        <Field label={number ? t('Check %1: it passes where the result', number) : t('It passes where the result')}>
          {ids => (
            <select
              {...ids} name="case-kind" value={check.kind}
              onChange={event => {
                const kind = event.target.value as Kind;
                onChange({ ...check, kind, text: kind === 'exact' && result !== undefined ? written(result) : kind === 'schema' || check.kind === 'schema' ? '' : check.text });
              }}
            >
              {KINDS.map(one => <option key={one} value={one}>{words[one][0]}</option>)}
            </select>
          )}
        </Field>
        {check.kind === 'judge' && (
          <Field label={t('Model (empty: the farm’s)')}>{ids => <input {...ids} value={check.model} onChange={event => onChange({ ...check, model: event.target.value })} />}</Field>
        )}
        {check.kind === 'contains' && (
          <label className="af-check"><input type="checkbox" checked={check.ignoreCase} onChange={event => onChange({ ...check, ignoreCase: event.target.checked })} /> {t('upper and lower case are the same')}</label>
        )}
        {onDrop && <Button look="quiet" onClick={onDrop} aria-label={t('Take away check %1', number)}>{t('Take away')}</Button>}
      </div>
      <Field label={words[check.kind][1]} {...(wrong && schema ? { error: t('This is no JSON object.') } : {})}>
        {ids => <textarea {...ids} name="case-text" className="af-mono" rows={check.kind === 'contains' || check.kind === 'judge' ? 2 : 4} value={check.text} onChange={event => onChange({ ...check, text: event.target.value })} />}
      </Field>
    </div>
  );
}
