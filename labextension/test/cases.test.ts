/// <reference types="node" />
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { checkOf, inputOf, rowsOf, typed, whyNot } from '../src/cases';
import type { Check, Tried } from '../src/protocol';

const tried = (case_id: string, version: number | string, verdict: string | null): Tried => ({
  case_id, name: case_id, version, task_id: `${case_id}-${version}`, run_id: null, status: 'succeeded', waiting: null, verdict, result: 'x',
  checks: verdict === 'failed' ? [{ kind: 'exact', passed: true, why: '' }, { kind: 'contains', passed: false, why: 'it lacks y' }] : []
});

test('a check is the same after it was shown and saved again', () => {
  const checks: Check[] = [
    { kind: 'exact', value: 391 }, { kind: 'exact', value: 'It is 391.' }, { kind: 'exact', value: { a: [1, null] } }, { kind: 'contains', text: 'x', ignore_case: true },
    { kind: 'schema', schema: { type: 'number' } }, { kind: 'python', code: 'assert result' }, { kind: 'judge', question: 'Is it so?', model: 'm' }
  ];
  assert.deepEqual(checks.map(check => checkOf(typed(check))), checks);
});

test('a check that says nothing, or is no JSON object where it has to be, is none', () => {
  const blank = { ignoreCase: false, model: '' };
  assert.equal(checkOf({ kind: 'schema', text: '[1]', ...blank }), null);
  assert.equal(checkOf({ kind: 'schema', text: '{', ...blank }), null);
  assert.equal(checkOf({ kind: 'judge', text: ' ', ...blank }), null);
});

test('an input that reads as an object or a list is data; numbers and words stay text', () => {
  assert.deepEqual([inputOf('{"a": 1}'), inputOf('[1]'), inputOf('17'), inputOf('What?')], [{ a: 1 }, [1], '17', 'What?']);
});

test('versions stand side by side, and each case says how it moved', () => {
  const items = [
    tried('up', 1, 'failed'), tried('down', 1, 'passed'), tried('same', 1, 'passed'), tried('open', 1, 'passed'),
    tried('up', 'draft', 'passed'), tried('down', 'draft', 'failed'), tried('same', 'draft', 'passed'), tried('open', 'draft', null)
  ];
  const rows = rowsOf(items, [1, 'draft']);
  assert.deepEqual(rows.map(row => [row.name, row.moved]), [['up', 'better'], ['down', 'worse'], ['same', 'same'], ['open', 'open']]);
  assert.deepEqual(rows[0]!.tried.map(one => one?.version), [1, 'draft']);
  assert.equal(whyNot(items[0]!), 'it lacks y');
});
