/** Drafts: what two people made of the same one, put together or shown side by side; variables of a prompt. Pure. */
import type { Definition, ToolSpec } from './protocol';

/** A part of a definition that is chosen as a whole: `prompt`, `model.name`, `tools.calculator`, `limits.steps` … */
export type Parts = Map<string, unknown>;

export interface Clash {
  part: string;
  mine: unknown;
  theirs: unknown;
}

export interface Merged {
  merged: Definition;
  /** Parts that both changed, each to something else; `merged` has mine. */
  clashes: Clash[];
  /** Parts that only the other one changed. */
  taken: string[];
}

const SPLIT = ['model', 'limits', 'variables'] as const;

export function parts(definition: Definition): Parts {
  const found: Parts = new Map();
  for (const [name, value] of Object.entries(definition)) {
    if (name === 'tools') {
      (value as ToolSpec[]).forEach(tool => found.set(`tools.${tool.name}`, tool));
    } else if ((SPLIT as readonly string[]).includes(name)) {
      Object.entries(value as object).forEach(([key, one]) => found.set(`${name}.${key}`, one));
    } else {
      found.set(name, value);
    }
  }
  return found;
}

function whole(found: Parts): Definition {
  const made: Record<string, unknown> = {};
  const tools: unknown[] = [];
  for (const [part, value] of found) {
    const [name = '', ...rest] = part.split('.');
    if (name === 'tools') {
      tools.push(value);
    } else if (rest.length) {
      made[name] = { ...(made[name] as object | undefined), [rest.join('.')]: value };
    } else {
      made[name] = value;
    }
  }
  return { ...made, tools: tools as ToolSpec[] };
}

/** Equal as JSON, in whatever order of keys. */
export function same(one: unknown, two: unknown): boolean {
  return JSON.stringify(ordered(one)) === JSON.stringify(ordered(two));
}

function ordered(value: unknown): unknown {
  if (Array.isArray(value)) {
    return value.map(ordered);
  }
  return value && typeof value === 'object'
    ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, one]) => [key, ordered(one)]))
    : value;
}

/** Put together what I and somebody else made of `base`. Nothing is lost: where both changed a part it is a clash. */
export function merge(base: Definition, mine: Definition, theirs: Definition): Merged {
  const [a, m, o] = [parts(base), parts(mine), parts(theirs)];
  const clashes: Clash[] = [];
  const taken: string[] = [];
  const merged: Parts = new Map(m);
  for (const part of new Set([...m.keys(), ...o.keys(), ...a.keys()])) {
    if (same(a.get(part), o.get(part)) || same(m.get(part), o.get(part))) {
      continue; // they left it as it was, or made the same of it
    }
    if (!same(a.get(part), m.get(part))) {
      clashes.push({ part, mine: m.get(part), theirs: o.get(part) });
      continue;
    }
    taken.push(part);
    put(merged, part, o.get(part));
  }
  return { merged: whole(merged), clashes, taken };
}

/** The definition with one part as somebody else has it. */
export function withPart(definition: Definition, part: string, value: unknown): Definition {
  const found = parts(definition);
  put(found, part, value);
  return whole(found);
}

function put(found: Parts, part: string, value: unknown): void {
  if (value === undefined) {
    found.delete(part);
  } else {
    found.set(part, value);
  }
}

const PLACE = /(\\?)\{\{\s*(\w+)\s*\}\}/g;

/** The variables of a prompt, in order, each once; `\{{name}}` is none. */
export function variablesOf(prompt: string): string[] {
  return [...new Set([...prompt.matchAll(PLACE)].filter(found => !found[1]).map(found => found[2]!))];
}

/** JSON as people edit it; '' for nothing. */
export const jsonText = (value: unknown): string =>
  value === undefined || value === null || (typeof value === 'object' && Object.keys(value).length === 0) ? '' : JSON.stringify(value, null, 2);
