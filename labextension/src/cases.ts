/** Test cases: checks as they are typed, and what versions came to, side by side. Pure. */
import type { Check, Tried } from './protocol';

export type Kind = Check['kind'];
export const KINDS: readonly Kind[] = ['exact', 'contains', 'schema', 'python', 'judge'];

/** A check as it stands in the form: one text, whatever the kind. */
export interface Typed {
  kind: Kind;
  text: string;
  ignoreCase: boolean;
  /** Of a judging model; '': the farm's default. */
  model: string;
}

export const written = (value: unknown): string => (typeof value === 'string' ? value : value === undefined ? '' : JSON.stringify(value, null, 1));

export function typed(check: Check): Typed {
  const text = { exact: check.value, contains: check.text, schema: check.schema, python: check.code, judge: check.question }[check.kind];
  return { kind: check.kind, text: written(text ?? ''), ignoreCase: check.ignore_case ?? false, model: check.model ?? '' };
}

/** What was typed, as a check; null where it has to be a JSON object and is none, or is empty. */
export function checkOf({ kind, text, ignoreCase, model }: Typed): Check | null {
  if (kind === 'exact') {
    const read = json(text);
    return { kind, value: read === undefined ? text : read };
  }
  if (kind === 'schema') {
    const read = json(text);
    return typeof read === 'object' && read !== null && !Array.isArray(read) ? { kind, schema: read as Record<string, unknown> } : null;
  }
  if (!text.trim()) {
    return null;
  }
  return kind === 'contains' ? { kind, text, ...(ignoreCase ? { ignore_case: true } : {}) }
    : kind === 'python' ? { kind, code: text } : { kind, question: text, ...(model ? { model } : {}) };
}

/** An input as it was typed: what reads as a JSON object or list is data, all else is text. */
export function inputOf(text: string): unknown {
  const read = json(text);
  return typeof read === 'object' && read !== null ? read : text;
}

function json(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}

export type Version = number | string;

/** One case, and what it came to with each version, in the order of `versions`. */
export interface Row {
  case_id: string;
  name: string;
  tried: (Tried | undefined)[];
  /** From the first version to the last one. */
  moved: 'better' | 'worse' | 'other' | 'same' | 'open';
}

export function rowsOf(items: readonly Tried[], versions: readonly Version[]): Row[] {
  const found = new Map<string, Row>();
  for (const one of items) {
    const row = found.get(one.case_id) ?? { case_id: one.case_id, name: one.name, tried: versions.map(() => undefined), moved: 'same' };
    row.tried[versions.indexOf(one.version)] = one;
    found.set(one.case_id, row);
  }
  return [...found.values()].map(row => ({ ...row, moved: movedOf(row.tried) }));
}

function movedOf(tried: readonly (Tried | undefined)[]): Row['moved'] {
  const [first, last] = [tried[0]?.verdict, tried[tried.length - 1]?.verdict];
  if (tried.length < 2 || (first && first === last)) {
    return 'same';
  }
  return !first || !last ? 'open' : last === 'passed' ? 'better' : first === 'passed' ? 'worse' : 'other';
}

/** Why it did not pass, in one line. */
export const whyNot = (one: Tried): string => (one.checks ?? []).filter(check => check.passed !== true).map(check => String(check.why ?? '')).filter(Boolean).join('; ');
