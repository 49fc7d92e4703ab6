/** What a person can say of an inbox item: the words of each kind, and what goes with them. Pure; the twin of gateway/decisions.py. */
import type { InboxView } from './protocol';

export type Extra = 'arguments' | 'result' | 'answer';

export interface Choice {
  decision: string;
  /** Said on the button; translated where it is drawn. */
  word: string;
  look: 'primary' | 'plain' | 'danger';
  /** What is sent with it, where it was filled in. */
  extra?: Extra;
  /** Refused unless it is forced, with a reason: the worker is only silent. */
  forced?: boolean;
}

const REFUSE: Choice = { decision: 'refuse', word: 'Refuse', look: 'danger' };

export function choices(item: InboxView): Choice[] {
  switch (item.kind) {
    case 'approval':
      return [{ decision: 'approve', word: 'Approve', look: 'primary', extra: 'arguments' }, REFUSE];
    case 'in_doubt':
      return [
        { decision: 'happened', word: 'It happened', look: 'primary', extra: 'result' },
        { decision: 'not_happened', word: 'It did not: call again', look: 'plain', forced: !item.detail.proof },
        { decision: 'give_up', word: 'Give the run up', look: 'danger' }
      ];
    case 'simulation':
      return [{ decision: 'answer', word: 'Answer', look: 'primary', extra: 'result' }, REFUSE];
    case 'question':
      return [
        { decision: 'answer', word: 'Answer', look: 'primary', extra: 'answer' },
        { decision: 'refuse', word: 'Do not answer', look: 'plain' }
      ];
    case 'budget':
      return [
        { decision: 'approve', word: 'Go on without this budget', look: 'primary' },
        { decision: 'refuse', word: 'End the run', look: 'danger' }
      ];
    default:
      return []; // a kind of a newer farm: shown, and decided by the command line
  }
}

const KINDS: { [kind: string]: string } = {
  approval: 'approval', in_doubt: 'in doubt', question: 'question', simulation: 'simulated call', budget: 'budget'
};

export const kindWord = (kind: string): string => KINDS[kind] ?? kind.replace(/_/g, ' ');

/** What is asked, in one line. */
export function subject(item: InboxView): string {
  const { detail } = item;
  const said = item.kind === 'question' ? detail.question : item.kind === 'budget' ? detail.why : detail.tool;
  return typeof said === 'string' && said ? said : kindWord(item.kind);
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
export function answerOf(item: InboxView, typed: string): unknown {
  return item.detail.schema ? json(typed, 'The answer') : typed;
}

/** Arguments as a person edited them; undefined where they are as the model asked. Raises NotJson. */
export function argumentsOf(item: InboxView, typed: string): unknown {
  const given = json(typed, 'The arguments');
  return JSON.stringify(given) === JSON.stringify(item.detail.arguments) ? undefined : given;
}

function json(typed: string, what: string): unknown {
  try {
    return JSON.parse(typed) as unknown;
  } catch (error) {
    throw new NotJson(`${what} must be JSON: ${(error as Error).message}`);
  }
}

/** How a typed result is understood, to be shown beside it. */
export function understood(value: unknown): string {
  return value === undefined ? '' : value === null ? 'null' : Array.isArray(value) ? 'list' : typeof value === 'string' ? 'text' : typeof value;
}
