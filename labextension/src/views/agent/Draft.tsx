/** The draft: prompt, model, tools, limits. Saved as it is edited; where two people edit, both sides are shown. */
import React from 'react';

import { Badge, Button, Diff, ErrorBox, Field } from '../../components';
import { useFarm } from '../../context';
import { jsonText, variablesOf, withPart } from '../../draft';
import type { AgentView } from '../../protocol';
import { JsonField, Section } from './fields';
import { Length } from './Length';
import { BudgetPart, LimitsPart } from './LimitsPart';
import { ModelPart } from './ModelPart';
import { PromptField } from './PromptField';
import { ToolsPart } from './ToolsPart';
import type { Conflict, DraftEditing } from './useDraft';

export function DraftTab({ agent, editing, readOnly }: { agent: AgentView; editing: DraftEditing; readOnly: boolean }): JSX.Element {
  const { t } = useFarm();
  const { draft, edit, problem, conflict } = editing;
  return (
    <>
      <ErrorBox problem={problem} onRetry={() => void editing.flush()} />
      {conflict && <ConflictBox conflict={conflict} editing={editing} />}
      <div className="af-columns">
        <div className="af-column">
          <PromptField prompt={draft.prompt ?? ''} variables={draft.variables} readOnly={readOnly} onChange={prompt => edit(now => ({ ...now, prompt }))} />
          <Length draft={draft} saved={editing.state === 'saved'} />
          <Variables editing={editing} readOnly={readOnly} />
          <Field label={t('What it does')} hint={t('for people who choose an agent')}>
            {ids => (
              <input {...ids} name="description" value={draft.description ?? ''} readOnly={readOnly} onChange={event => edit(now => ({ ...now, description: event.target.value }))} />
            )}
          </Field>
          <Section title={t('Form of the answer')} open={Boolean(draft.answer)}>
            <JsonField
              label={t('JSON Schema; empty: free text')} rows={6} value={draft.answer ?? {}} readOnly={readOnly}
              onChange={answer => edit(now => ({ ...now, answer: answer ?? null }))}
            />
          </Section>
        </div>
        <div className="af-column">
          <Section title={t('Tools')}><ToolsPart draft={draft} edit={edit} readOnly={readOnly} /></Section>
          <Section title={t('Model')}><ModelPart draft={draft} edit={edit} readOnly={readOnly} /></Section>
          <Section title={t('Limits of a run')}><LimitsPart draft={draft} edit={edit} readOnly={readOnly} /></Section>
          <Section title={t('Budget')} open={false}><BudgetPart agent={agent.name} readOnly={readOnly} /></Section>
        </div>
      </div>
    </>
  );
}

/** The variables of the prompt, with what holds where a task says nothing. */
function Variables({ editing, readOnly }: { editing: DraftEditing; readOnly: boolean }): JSX.Element | null {
  const { t } = useFarm();
  const { draft, edit } = editing;
  const names = variablesOf(draft.prompt ?? '');
  const defaults = draft.variables ?? {};
  const unused = Object.keys(defaults).filter(name => !names.includes(name));
  const set = (name: string, to: string): void => edit(now => {
    const { [name]: _, ...others } = now.variables ?? {};
    return { ...now, variables: to ? { ...others, [name]: to } : others };
  });
  if (names.length + unused.length === 0) {
    return null;
  }
  return (
    <Section title={t('Variables')}>
      {[...names, ...unused].map(name => (
        <Field key={name} label={name} hint={unused.includes(name) ? t('not in the prompt') : ''}>
          {ids => (
            <input
              {...ids} value={defaults[name] ?? ''} readOnly={readOnly} placeholder={t('no default: each task gives it')} onChange={event => set(name, event.target.value)}
            />
          )}
        </Field>
      ))}
    </Section>
  );
}

const shown = (value: unknown): string => (typeof value === 'string' ? value : value === undefined ? '' : jsonText(value) || JSON.stringify(value));

/** Both sides of what two people changed at once. Nothing is saved until it is decided; nothing typed is lost. */
function ConflictBox({ conflict, editing }: { conflict: Conflict; editing: DraftEditing }): JSX.Element {
  const { t } = useFarm();
  const [side, setSide] = React.useState<{ [part: string]: 'mine' | 'theirs' }>({});
  const choose = (part: string, to: 'mine' | 'theirs', value: unknown): void => {
    setSide(now => ({ ...now, [part]: to }));
    editing.edit(draft => withPart(draft, part, value));
  };
  const by = conflict.by || t('somebody else');
  return (
    <section className="af-conflict" role="alert" aria-label={t('Two people edited this draft')}>
      <h3>{t('%1 edited this draft too', by)}</h3>
      <p>{t('Both sides are here. Choose for each part, edit further if you like, then save.')}</p>
      {conflict.taken.length > 0 && <p className="af-quiet">{t('Taken over from %1, where you changed nothing: %2', by, conflict.taken.join(', '))}</p>}
      {conflict.clashes.map(({ part, mine, theirs }) => (
        <div key={part} className="af-clash" data-part={part}>
          <div className="af-tool-head">
            <b>{part}</b>
            <span className="af-spring" />
            <Button aria-pressed={(side[part] ?? 'mine') === 'mine'} onClick={() => choose(part, 'mine', mine)}>{t('Keep mine')}</Button>
            <Button aria-pressed={side[part] === 'theirs'} onClick={() => choose(part, 'theirs', theirs)}>{t('Take theirs')}</Button>
          </div>
          <Diff before={shown(theirs)} after={shown(mine)} names={[t('theirs, saved'), t('mine')]} />
        </div>
      ))}
      <div><Button look="primary" onClick={editing.settle}>{t('Save what stands below')}</Button></div>
    </section>
  );
}

/** Whether what is on the page is in the farm. */
export function SaveBadge({ editing }: { editing: DraftEditing }): JSX.Element {
  const { t } = useFarm();
  const words = {
    saved: t('draft saved'), edited: t('editing'), saving: t('saving …'), refused: t('not saved'), clash: t('not saved: two people edit')
  };
  const looks = { saved: 'good', edited: 'quiet', saving: 'run', refused: 'bad', clash: 'wait' } as const;
  return <span role="status"><Badge state={`draft-${editing.state}`} look={looks[editing.state]} word={words[editing.state]} /></span>;
}
