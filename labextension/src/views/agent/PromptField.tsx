/** The system prompt: a plain text field at once, and CodeMirror in its place as soon as that is loaded. */
import React from 'react';

import { Field } from '../../components';
import { useFarm } from '../../context';
import type { Editor, Given, Named } from '../../editor/editor';
import { load } from '../../editor/load';

interface Prompt {
  prompt: string;
  onChange: (prompt: string) => void;
  readOnly?: boolean;
  /** Defaults of its variables; '' where a task has to say it. */
  variables?: Given['variables'];
  hint?: string;
  /** How many lines are in sight at first; it can be drawn larger. */
  rows?: number;
}

const NONE = {};

export function PromptField({ prompt, onChange, readOnly = false, variables = NONE, hint, rows = 14 }: Prompt): JSX.Element {
  const { t } = useFarm();
  const label = t('System prompt');
  const named = { label, placeholder: t('Who the agent is, what it does, and how. A place like {{customer}} is filled from the task.'), asked: t('no default: each task gives it') };
  return (
    <Field label={label} hint={hint ?? t('{{name}} is filled from the task')}>
      {ids => <Written rows={rows} named={{ ...named, id: ids.id, describedBy: ids['aria-describedby'] }} given={{ text: prompt, onChange, readOnly, variables }} />}
    </Field>
  );
}

function Written({ named, given, rows }: { named: Named; given: Given; rows: number }): JSX.Element {
  const box = React.useRef<HTMLDivElement>(null);
  const plain = React.useRef<HTMLTextAreaElement>(null);
  const editor = React.useRef<Editor | null>(null);
  const [ready, setReady] = React.useState(false);
  const now = React.useRef(given);
  now.current = given;
  React.useEffect(() => {
    let gone = false;
    const arrived = ({ mount }: Awaited<ReturnType<typeof load>>): void => {
      if (gone || !box.current) {
        return;
      }
      const { current: area } = plain;
      const writing = area && document.activeElement === area ? { anchor: area.selectionStart, head: area.selectionEnd } : null;
      editor.current = mount(box.current, named, now.current, writing);
      setReady(true);
    };
    load().then(arrived, () => undefined); // where it does not come, the text field does everything but mark and complete
    const label = document.querySelector<HTMLElement>(`label[for="${named.id}"]`);
    const focus = (): void => editor.current?.focus();
    label?.addEventListener('click', focus);
    return () => {
      gone = true;
      label?.removeEventListener('click', focus);
      editor.current?.destroy();
      editor.current = null;
      setReady(false);
    };
    // the names of a field stay as they are as long as it is drawn
  }, []);
  React.useLayoutEffect(() => editor.current?.update(given)); // before the next key: what is shown is what the last one made of it
  return (
    <div className="af-prompt" data-editor={ready ? 'code' : 'plain'} style={{ height: `${rows * 1.25 + 1}rem` }}>
      <div ref={box} className="af-prompt-code" />
      {!ready && (
        <textarea
          ref={plain} id={named.id} aria-describedby={named.describedBy} name="prompt" value={given.text} readOnly={given.readOnly} placeholder={named.placeholder}
          onChange={event => given.onChange(event.target.value)}
        />
      )}
    </div>
  );
}
