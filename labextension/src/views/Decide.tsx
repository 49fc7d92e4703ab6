/** The form of a decision, at the farm page: what goes with each word, the reason, and one button for each word. */
import React from 'react';

import { Problem } from '../api';
import { Button, ErrorBox, Field } from '../components';
import { useAction, useFarm } from '../context';
import { amountOf, answerOf, argumentsOf, choices, resultOf, understood, type Choice } from '../decisions';
import type { InboxView } from '../protocol';
import { inUnit } from './Budgets';

export function Decide({ item, onDecided, onRecorded }: { item: InboxView; onDecided: () => void; onRecorded: () => void }): JSX.Element {
  const { t, api, model } = useFarm();
  const offered = choices(item, t);
  const asked = React.useMemo(() => JSON.stringify(item.detail.arguments ?? {}, null, 2), [item.detail.arguments]);
  const options = Array.isArray(item.detail.choices) ? (item.detail.choices as string[]) : null;
  const [edited, setEdited] = React.useState<string | null>(null);
  const [given, setGiven] = React.useState(options?.[0] ?? '');
  const [beyond, setBeyond] = React.useState('');
  const [reason, setReason] = React.useState('');
  const [force, setForce] = React.useState(false);
  const decide = useAction(async (choice: Choice) => {
    const decided = await api.post<InboxView>(`/inbox/${item.inbox_id}`, wish(choice));
    model.inbox.refresh();
    onRecorded();
    if (decided.decided_at) {
      onDecided();
    }
  });
  const wish = (choice: Choice): Record<string, unknown> => {
    try {
      const extra = choice.extra === 'arguments'
        ? { arguments: edited === null ? undefined : argumentsOf(item, edited, t) }
        : choice.extra === 'amount' ? { arguments: amountOf(item, beyond, t) }
        : choice.extra === 'answer' ? { result: answerOf(item, given, t) } : choice.extra === 'result' ? { result: resultOf(given) } : {};
      return { decision: choice.decision, reason, ...extra, ...(choice.forced ? { force } : {}) };
    } catch (error) {
      throw new Problem(0, { title: t('Not sent'), detail: (error as Error).message, hint: t('mend it, then decide again') });
    }
  };
  const silent = offered.some(choice => choice.forced);
  return (
    <form className="af-form" aria-label={t('Decision')} onSubmit={event => event.preventDefault()}>
      {offered.some(choice => choice.extra === 'arguments') && (edited === null
        ? <div><Button onClick={() => setEdited(asked)}>{t('Edit the arguments')}</Button></div>
        : (
          <Field label={t('Arguments')} hint={t('The call is made with these; both are on record.')}>
            {ids => <textarea {...ids} className="af-mono" rows={Math.min(16, edited.split('\n').length + 1)} spellCheck={false} value={edited} onChange={event => setEdited(event.target.value)} />}
          </Field>
        ))}
      {offered.some(choice => choice.extra === 'result') && (
        <Field label={t('Result')} hint={t('What the model is told came of it: JSON, or a text.') + (given.trim() ? ` ${t('Read as: %1', understood(resultOf(given), t))}` : '')}>
          {ids => <textarea {...ids} className="af-mono" rows={2} spellCheck={false} value={given} onChange={event => setGiven(event.target.value)} />}
        </Field>
      )}
      {offered.some(choice => choice.extra === 'answer') && (
        <Field label={t('Answer')} {...(item.detail.schema ? { hint: t('JSON, as the question\'s schema says.') } : {})}>
          {ids => options
            ? <select {...ids} value={given} onChange={event => setGiven(event.target.value)}>{options.map(one => <option key={one}>{one}</option>)}</select>
            : <textarea {...ids} rows={2} value={given} onChange={event => setGiven(event.target.value)} />}
        </Field>
      )}
      {offered.some(choice => choice.extra === 'amount') && (
        <Field
          label={item.detail.unit === 'usd' ? t('Beyond it by at most, in US dollars') : t('Beyond it by at most, in tokens')}
          hint={t('Its next step needs %1. Left empty, the budget no longer holds for this run.', inUnit(String(item.detail.unit), Number(item.detail.needed ?? 0), t))}
        >
          {ids => <input {...ids} name="beyond" inputMode="decimal" autoComplete="off" value={beyond} onChange={event => setBeyond(event.target.value)} />}
        </Field>
      )}
      <Field label={t('Reason')} hint={t('Recorded with your name.')}>
        {ids => <input {...ids} value={reason} onChange={event => setReason(event.target.value)} />}
      </Field>
      {silent && (
        <label className="af-check">
          <input type="checkbox" checked={force} onChange={event => setForce(event.target.checked)} />
          {t('Call again although the worker is only silent: it may still be doing it, and then it is done twice (give the reason)')}
        </label>
      )}
      <div className="af-line">
        {offered.map(choice => (
          <Button
            key={choice.decision} look={choice.look} busy={decide.busy} onClick={() => void decide.run(choice)}
            disabled={Boolean(choice.forced) && !(force && reason.trim())}
          >
            {choice.word}
          </Button>
        ))}
      </div>
      {offered.length === 0 && <p className="af-quiet">{t('This page does not know this kind: agentfarm inbox resolve %1', item.inbox_id)}</p>}
      <ErrorBox problem={decide.problem} />
    </form>
  );
}
