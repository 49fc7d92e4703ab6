/** The system prompt: a textarea with its variables marked. */
import React from 'react';

import { Field } from '../../components';
import { useFarm } from '../../context';
import { pieces } from '../../draft';

/** The marks stand behind the textarea, in the same letters at the same places; the textarea itself is the browser's own. */
export function PromptField({ prompt, onChange, readOnly }: { prompt: string; onChange: (prompt: string) => void; readOnly: boolean }): JSX.Element {
  const { t } = useFarm();
  const marks = React.useRef<HTMLDivElement>(null);
  const shown = React.useMemo(() => pieces(prompt), [prompt]);
  return (
    <Field label={t('System prompt')} hint={t('{{name}} is filled from the task')}>
      {ids => (
        <div className="af-prompt">
          <div ref={marks} className="af-prompt-marks" aria-hidden="true">
            {shown.map((piece, at) => (piece.variable ? <mark key={at}>{piece.text}</mark> : <span key={at}>{piece.text}</span>))}
            {'\n'}
          </div>
          <textarea
            {...ids} name="prompt" rows={14} value={prompt} readOnly={readOnly} spellCheck onChange={event => onChange(event.target.value)}
            onScroll={event => {
              if (marks.current) {
                marks.current.scrollTop = event.currentTarget.scrollTop;
              }
            }}
          />
        </div>
      )}
    </Field>
  );
}
