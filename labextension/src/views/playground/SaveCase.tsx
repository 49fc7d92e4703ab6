/** Keep what was said and done as a test case: its input, its recording, and what has to hold of the result. */
import React from 'react';

import { Button, Dialog, ErrorBox, Field } from '../../components';
import { useAction, useFarm } from '../../context';
import type { Check, TaskView } from '../../protocol';

type Kind = Check['kind'];

export function SaveCase({ agent, task, onClose }: { agent: string; task: TaskView; onClose: () => void }): JSX.Element {
  const { t, api, model } = useFarm();
  const [name, setName] = React.useState('');
  const [kind, setKind] = React.useState<Kind>('exact');
  const [text, setText] = React.useState(() => written(task.result));
  const [wrong, setWrong] = React.useState('');
  const kinds: Record<Kind, [string, string]> = {
    exact: [t('is exactly'), t('The result, as text or JSON')], contains: [t('contains'), t('Words that stand in it')],
    schema: [t('fits a JSON Schema'), t('JSON Schema')], python: [t('passes assertions in Python'), t('Statements over result, text and input')],
    judge: [t('a model says so'), t('A question that the model answers with yes')]
  };
  const save = useAction(async () => {
    const check = checkOf(kind, text);
    setWrong(check ? '' : t('This is no JSON object.'));
    if (check) {
      await api.post(`/agents/${agent}/cases`, { name: name.trim(), from_run: task.run_id, expect: [check] });
      model.refresh(`/agents/${agent}/cases`);
      onClose();
    }
  });
  return (
    <Dialog
      title={t('Save as a test case')} onClose={onClose}
      acts={<Button look="primary" busy={save.busy} disabled={!name.trim()} onClick={() => void save.run()}>{t('Save')}</Button>}
    >
      <p className="af-quiet">{t('The same input is tried again with any version; what tools answered then answers its calls.')}</p>
      <Field label={t('Name')}>{ids => <input {...ids} name="case-name" value={name} onChange={event => setName(event.target.value)} />}</Field>
      <Field label={t('It passes where the result')}>
        {ids => (
          <select
            {...ids} name="case-kind" value={kind}
            onChange={event => {
              setKind(event.target.value as Kind);
              setText(event.target.value === 'exact' ? written(task.result) : '');
            }}
          >
            {(Object.keys(kinds) as Kind[]).map(one => <option key={one} value={one}>{kinds[one][0]}</option>)}
          </select>
        )}
      </Field>
      <Field label={kinds[kind][1]} {...(wrong ? { error: wrong } : {})}>
        {ids => <textarea {...ids} name="case-text" className="af-mono" rows={5} value={text} onChange={event => setText(event.target.value)} />}
      </Field>
      <ErrorBox problem={save.problem} />
    </Dialog>
  );
}

const written = (value: unknown): string => (typeof value === 'string' ? value : JSON.stringify(value ?? '', null, 1));

/** What was written, as a check; null where it has to be JSON and is none. */
function checkOf(kind: Kind, text: string): Check | null {
  if (kind === 'exact') {
    const read = json(text);
    return { kind, value: read === undefined ? text : read };
  }
  if (kind === 'schema') {
    const read = json(text);
    return typeof read === 'object' && read !== null ? { kind, schema: read as Record<string, unknown> } : null;
  }
  return kind === 'contains' ? { kind, text } : kind === 'python' ? { kind, code: text } : { kind, question: text };
}

function json(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}
