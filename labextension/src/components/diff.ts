/** Which lines of two texts are the same: the longest common subsequence. Pure. */

export interface DiffRow {
  kind: 'same' | 'changed';
  before?: string;
  after?: string;
}

const MOST_CELLS = 4_000_000; // beyond that (2,000 by 2,000 lines) the middle is shown as replaced as a whole

export function differences(before: string, after: string): DiffRow[] {
  const a = before.split('\n');
  const b = after.split('\n');
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) {
    head++;
  }
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) {
    tail++;
  }
  const same = (lines: string[]): DiffRow[] => lines.map(line => ({ kind: 'same', before: line, after: line }));
  return [
    ...same(a.slice(0, head)),
    ...middle(a.slice(head, a.length - tail), b.slice(head, b.length - tail)),
    ...same(a.slice(a.length - tail))
  ];
}

function middle(a: string[], b: string[]): DiffRow[] {
  if (a.length * b.length > MOST_CELLS) {
    return paired(a, b);
  }
  const width = b.length + 1;
  const longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i * width + j] = a[i] === b[j]
        ? longest[(i + 1) * width + j + 1]! + 1
        : Math.max(longest[(i + 1) * width + j]!, longest[i * width + j + 1]!);
    }
  }
  const rows: DiffRow[] = [];
  let removed: string[] = [];
  let added: string[] = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      rows.push(...paired(removed, added), { kind: 'same', before: a[i]!, after: b[j]! });
      removed = [];
      added = [];
      i++;
      j++;
    } else if (j >= b.length || (i < a.length && longest[(i + 1) * width + j]! >= longest[i * width + j + 1]!)) {
      removed.push(a[i++]!);
    } else {
      added.push(b[j++]!);
    }
  }
  return [...rows, ...paired(removed, added)];
}

/** What was removed beside what was added. */
function paired(removed: string[], added: string[]): DiffRow[] {
  return Array.from({ length: Math.max(removed.length, added.length) }, (_, at) => ({
    kind: 'changed' as const,
    ...(at < removed.length ? { before: removed[at]! } : {}),
    ...(at < added.length ? { after: added[at]! } : {})
  }));
}
