import assert from 'node:assert/strict';
import { test } from 'node:test';

import { amountOf, answerOf, argumentsOf, choices, NotJson, resultOf, subject } from '../src/decisions';
import type { InboxView } from '../src/protocol';
import { plain } from '../src/translate';

const item = (kind: string, detail: Record<string, unknown> = {}): InboxView => ({
  inbox_id: 'i', run_id: 'r', call: 'c', kind, agent: 'a', owner: 'o', detail, asked_at: '', decided_at: null, decision: null, decided_by: null, reason: null
});

test('a call in doubt is called again at once only where its worker is proven dead', () => {
  const again = (detail: Record<string, unknown>): boolean | undefined => choices(item('in_doubt', detail), plain).find(one => one.decision === 'not_happened')?.forced;
  assert.equal(again({ proof: 'kernel exited with -9' }), false);
  assert.equal(again({ proof: null }), true);
  assert.equal(again({}), true);
});

test('every kind has a way to say no, and a kind that is not known is only shown', () => {
  for (const kind of ['approval', 'in_doubt', 'simulation', 'question', 'budget']) {
    assert.ok(choices(item(kind), plain).some(one => ['refuse', 'give_up'].includes(one.decision)), kind);
  }
  assert.deepEqual(choices(item('of tomorrow'), plain), []);
  assert.equal(subject(item('of tomorrow'), plain), 'of tomorrow');
});

test('arguments that were looked at and left alone are not an edit', () => {
  const asked = item('approval', { arguments: { amount: 5, to: 'bob' } });
  assert.equal(argumentsOf(asked, '{ "amount": 5,\n "to": "bob" }', plain), undefined);
  assert.deepEqual(argumentsOf(asked, '{"amount": 6, "to": "bob"}', plain), { amount: 6, to: 'bob' });
  assert.throws(() => argumentsOf(asked, '{"amount": ', plain), NotJson);
});

test('a budget is waived by what was typed, or without end; a slip is no waiver without end', () => {
  const reached = item('budget', { unit: 'usd', needed: 0.2 });
  assert.deepEqual(['', ' ', '0.5'].map(typed => amountOf(reached, typed, plain)), [undefined, undefined, { amount: 0.5 }]);
  for (const slip of ['x', '0', '-1', '0.1', '1,5']) {
    assert.throws(() => amountOf(reached, slip, plain), /at least 0.2/);
  }
});

test('a result is JSON or a text; nothing typed is no result; an answer to choices stays a text', () => {
  assert.deepEqual([resultOf(' '), resultOf('{"id": 8}'), resultOf('sent on Monday'), resultOf('12')], [undefined, { id: 8 }, 'sent on Monday', 12]);
  assert.equal(answerOf(item('question', { choices: ['1', '2'] }), '1', plain), '1');
  assert.equal(answerOf(item('question', { schema: { type: 'integer' } }), '1', plain), 1);
  assert.throws(() => answerOf(item('question', { schema: {} }), 'one', plain), NotJson);
});
