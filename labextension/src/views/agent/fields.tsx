/** Fields of the draft's editor: numbers that may be left empty, JSON that is taken when it can be read. */
import React from 'react';

import { Field } from '../../components';
import { useFarm } from '../../context';
import { jsonText, same } from '../../draft';

/** `usual` is what holds where nothing is said. Empty becomes undefined: the usual; `none` says that there is none (null). */
export function NumberField({ label, value, onChange, usual, hint, step, readOnly }: {
  label: string;
  value: number | null | undefined;
  onChange: (value: number | undefined) => void;
  usual?: string;
  hint?: string;
  step?: number | 'any';
  readOnly?: boolean;
}): JSX.Element {
  return (
    <Field label={label} {...(hint ? { hint } : {})}>
      {ids => (
        <input
          {...ids} type="number" step={step ?? 'any'} value={value ?? ''} placeholder={usual} readOnly={readOnly}
          onChange={event => onChange(event.target.value === '' ? undefined : event.target.valueAsNumber)}
        />
      )}
    </Field>
  );
}

/** JSON as text. What cannot be read stays in the field, says why, and changes nothing. */
export function JsonField({ label, value, onChange, hint, rows = 4, readOnly }: {
  label: string;
  value: unknown;
  onChange: (value: Record<string, unknown> | undefined) => void;
  hint?: string;
  rows?: number;
  readOnly?: boolean;
}): JSX.Element {
  const { t } = useFarm();
  const [text, setText] = React.useState(() => jsonText(value));
  const [error, setError] = React.useState('');
  const told = React.useRef(value);
  React.useEffect(() => {
    if (!same(told.current ?? {}, value ?? {})) {
      told.current = value;
      setText(jsonText(value)); // changed elsewhere: restored, or by somebody else
      setError('');
    }
  }, [value]);
  const write = (typed: string): void => {
    setText(typed);
    const read = readObject(typed);
    setError(read === null ? t('This is no JSON object yet; it is not saved.') : '');
    if (read !== null) {
      told.current = read;
      onChange(read);
    }
  };
  return (
    <Field label={label} {...(hint ? { hint } : {})} {...(error ? { error } : {})}>
      {ids => <textarea {...ids} className="af-mono" rows={rows} value={text} readOnly={readOnly} spellCheck={false} onChange={event => write(event.target.value)} />}
    </Field>
  );
}

function readObject(text: string): Record<string, unknown> | undefined | null {
  if (!text.trim()) {
    return undefined;
  }
  try {
    const read: unknown = JSON.parse(text);
    return typeof read === 'object' && read !== null && !Array.isArray(read) ? (read as Record<string, unknown>) : null;
  } catch {
    return null;
  }
}

/** A part of the form under a name; it folds. */
export function Section({ title, aside, children, open = true }: { title: string; aside?: React.ReactNode; children: React.ReactNode; open?: boolean }): JSX.Element {
  const [shown, setShown] = React.useState(open);
  return (
    <section className="af-section" aria-label={title}>
      <div className="af-section-head">
        <h3><button type="button" className="af-fold" aria-expanded={shown} onClick={() => setShown(!shown)}>{title}</button></h3>
        <span className="af-spring" />
        {aside}
      </div>
      {shown && <div className="af-section-body">{children}</div>}
    </section>
  );
}
