import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { Event } from '../src/protocol';
import { Timeline } from '../src/timeline';
import { totals } from '../src/totals';

const reply = (request: string, cost: number | null, usage: object | null): object => ({ request, message: { content: 'x' }, usage, cost });

test('tokens and cost of the replies are summed; what has no price adds none, and what was not answered nothing', () => {
  const told: [string, object][] = [
    ['model.requested', { request: 'r1' }], ['model.replied', reply('r1', 0.5, { input: 10, output: 3 })],
    ['model.requested', { request: 'r2' }], ['model.replied', reply('r2', null, { input: 1, output: 2, estimated: true })],
    ['model.requested', { request: 'r3' }]
  ];
  const events: Event[] = told.map(([kind, body], at) => ({ run: 'run-1', seq: at + 1, kind, at: '2026-11-21T00:00:00Z', by: 'gateway', body, call: null }));
  const { steps } = new Timeline().take(events, events.length);
  assert.deepEqual(totals(steps, steps.length), { replies: 2, input: 11, output: 5, estimated: true, cost: 0.5 });
  assert.equal(totals(steps, 0).cost, null);
});
