/** From a CSV to tasks: one row a task, its columns in the input. Pure. */
import type { Translate } from './translate';

/** So many tasks does the farm take at once: all or none. */
export const MOST_TASKS = 1000;

export interface Sheet {
  columns: string[];
  rows: string[][];
  /** What is wrong with it, in words; '' where nothing is. */
  flaw: string;
}

/** Records of a CSV (RFC 4180: fields may be quoted, hold separators, quotes and line ends). The separator is what the first line has most of: `,` `;` or tab. */
export function parseCsv(text: string, t: Translate): Sheet {
  const source = text.replace(/^\uFEFF/, '');
  const { records, open } = recordsOf(source, separatorOf(source));
  const [columns = [], ...rows] = records.map(fields => fields.map(field => field.trim())).filter(fields => fields.some(Boolean));
  const odd = rows.findIndex(fields => fields.length !== columns.length);
  const flaw = open ? t('A quoted field is never closed.')
    : columns.length === 0 || rows.length === 0 ? t('It needs a first row with the names of the columns, and a row for each task.')
      : columns.some(name => !name) ? t('Each column needs a name.')
        : new Set(columns).size < columns.length ? t('Two columns have the same name.')
          : odd >= 0 ? t('Row %1 has %2 fields; the first row names %3 columns.', odd + 1, rows[odd]!.length, columns.length)
            : rows.length > MOST_TASKS ? t('It has %1 rows; at most %2 tasks go at once.', rows.length, MOST_TASKS) : '';
  return { columns, rows, flaw };
}

function separatorOf(source: string): string {
  const head = source.split(/\r?\n/, 1)[0]!.replace(/"[^"]*"/g, '');
  const often = (one: string): number => head.split(one).length;
  return [';', '\t'].reduce((best, one) => (often(one) > often(best) ? one : best), ',');
}

function recordsOf(source: string, separator: string): { records: string[][]; open: boolean } {
  const records: string[][] = [[]];
  let field = '';
  let quoted = false;
  const close = (): void => {
    records[records.length - 1]!.push(field);
    field = '';
  };
  for (let at = 0; at < source.length; at++) {
    const one = source[at]!;
    if (quoted && one === '"' && source[at + 1] === '"') {
      field += '"';
      at++;
    } else if (one === '"' && (quoted || field === '')) {
      quoted = !quoted;
    } else if (!quoted && one === separator) {
      close();
    } else if (!quoted && (one === '\n' || one === '\r')) {
      at += one === '\r' && source[at + 1] === '\n' ? 1 : 0;
      close();
      records.push([]);
    } else {
      field += one;
    }
  }
  close();
  return { records, open: quoted };
}

const HOLE = /\{\{\s*([^{}]+?)\s*\}\}/g;

/** The columns that a text names as `{{column}}` and the sheet lacks. */
export function missing(template: string, columns: readonly string[]): string[] {
  return [...new Set([...template.matchAll(HOLE)].map(found => found[1]!))].filter(name => !columns.includes(name));
}

/** The text with a row's fields in the places of `{{column}}`. What a field holds is never looked into again. */
export function fill(template: string, columns: readonly string[], row: readonly string[]): string {
  return template.replace(HOLE, (whole, name: string) => (columns.includes(name) ? row[columns.indexOf(name)]! : whole));
}

/** A task for each row, under keys of the batch: sent again after a cut, none is done twice. */
export function tasksOf<T extends object>(sheet: Sheet, template: string, batch: string, each: T): (T & { input: string; key: string })[] {
  return sheet.rows.map((row, at) => ({ ...each, input: fill(template, sheet.columns, row), key: `${batch}/${at + 1}` }));
}

/** Variables of a task from lines `name = value`; null where a line is none. */
export function variablesOf(text: string): { [name: string]: string } | null {
  const lines = text.split('\n').map(line => line.trim()).filter(Boolean).map(line => /^([A-Za-z_]\w*)\s*=\s*(.*)$/.exec(line));
  return lines.every(found => found !== null) ? Object.fromEntries(lines.map(found => [found![1]!, found![2]!])) : null;
}
