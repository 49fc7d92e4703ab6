/** What a person can say of an inbox item: the words of each kind, and what goes with them. Pure; the twin of gateway/decisions.py. */
import type { InboxView } from './protocol';
import type { Translate } from './translate';

export type Extra = 'arguments' | 'result' | 'answer' | 'amount';

export interface Choice {
  decision: string;
  /** Said on the button. */
  word: string;
  look: 'primary' | 'plain' | 'danger';
  /** What is sent with it, where it was filled in. */
  extra?: Extra;
  /** Refused unless it is forced, with a reason: the worker is only silent. */
  forced?: boolean;
}

export function choices(item: InboxView, t: Translate): Choice[] {
  const refuse: Choice = { decision: 'refuse', word: t('Refuse'), look: 'danger' };
  switch (item.kind) {
    case 'approval':
      return [{ decision: 'approve', word: t('Approve'), look: 'primary', extra: 'arguments' }, refuse];
    case 'in_doubt':
      return [
        { decision: 'happened', word: t('It happened'), look: 'primary', extra: 'result' },
        { decision: 'not_happened', word: t('It did not: call again'), look: 'plain', forced: !item.detail.proof },
        { decision: 'give_up', word: t('Give the run up'), look: 'danger' }
      ];
    case 'simulation':
      return [{ decision: 'answer', word: t('Answer'), look: 'primary', extra: 'result' }, refuse];
    case 'question':
      return [
        { decision: 'answer', word: t('Answer'), look: 'primary', extra: 'answer' },
        { decision: 'refuse', word: t('Do not answer'), look: 'plain' }
      ];
    case 'budget':
      return [
        { decision: 'approve', word: t('Go on beyond this budget'), look: 'primary', extra: 'amount' },
        { decision: 'refuse', word: t('End the run'), look: 'danger' }
      ];
    default:
      return []; // a kind of a newer farm: shown, and decided by the command line
  }
}

export function kindWord(kind: string, t: Translate): string {
  const words: { [kind: string]: string } = {
    approval: t('approval'), in_doubt: t('in doubt'), question: t('question'), simulation: t('simulated call'), budget: t('budget')
  };
  return words[kind] ?? kind.replace(/_/g, ' ');
}

/** What is asked, in one line. */
export function subject(item: InboxView, t: Translate): string {
  const { detail } = item;
  const said = item.kind === 'question' ? detail.question : item.kind === 'budget' ? detail.why : detail.tool;
  return typeof said === 'string' && said ? said : kindWord(item.kind, t);
}

export class NotJson extends Error {}

/** A result as it was typed: JSON where it is JSON, else the text itself. Nothing typed is no result. */
export function resultOf(typed: string): unknown {
  if (!typed.trim()) {
    return undefined;
  }
  try {
    return JSON.parse(typed) as unknown;
  } catch {
    return typed;
  }
}

/** An answer to a question: one of its choices or a text; JSON where the question has a schema. Raises NotJson. */
export function answerOf(item: InboxView, typed: string, t: Translate): unknown {
  return item.detail.schema ? json(typed, text => t('The answer must be JSON: %1', text)) : typed;
}

/** Arguments as a person edited them; undefined where they are as the model asked. Raises NotJson. */
export function argumentsOf(item: InboxView, typed: string, t: Translate): unknown {
  const given = json(typed, text => t('The arguments must be JSON: %1', text));
  return JSON.stringify(given) === JSON.stringify(item.detail.arguments) ? undefined : given;
}

function json(typed: string, wrong: (why: string) => string): unknown {
  try {
    return JSON.parse(typed) as unknown;
  } catch (error) {
    throw new NotJson(wrong((error as Error).message));
  }
}

/** By how much a budget is waived; nothing typed: without end. Raises where that is no amount, or less than the step needs. */
export function amountOf(item: InboxView, typed: string, t: Translate): { amount: number } | undefined {
  const [amount, needed] = [Number(typed), Number(item.detail.needed ?? 0)];
  if (!typed.trim()) {
    return undefined;
  }
  if (!Number.isFinite(amount) || amount <= 0 || amount < needed) {
    throw new Error(t('The amount must be a number, at least %1: %2', needed, typed));
  }
  return { amount };
}

/** How a typed result is understood, to be shown beside it. */
export function understood(value: unknown, t: Translate): string {
  return value === undefined ? '' : value === null ? t('null') : Array.isArray(value) ? t('list') : typeof value === 'string' ? t('text')
    : typeof value === 'number' ? t('number') : typeof value === 'boolean' ? t('true or false') : t('object');
}
