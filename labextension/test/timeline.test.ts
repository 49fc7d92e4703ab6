import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { Event } from '../src/protocol';
import { Timeline, type CallStep, type ModelStep } from '../src/timeline';

const at = (second: number): string => `2026-11-21T00:00:${String(second).padStart(2, '0')}.000000Z`;

function run(...told: [kind: string, second: number, body: unknown, call?: string][]): Event[] {
  return told.map(([kind, second, body, call], index) => ({ run: 'run-1', seq: index + 1, kind, at: at(second), by: 'gateway', body, call: call ?? null }));
}

const asked = { request: 'r1', attempt: 1, model: 'smol' };
const call = { id: 'c1', type: 'function', function: { name: 'pay', arguments: '{"amount": 7}' } };

test('a request, its failure and its reply are one step, with time, tokens and cost', () => {
  const events = run(
    ['model.requested', 1, asked], ['model.failed', 2, { request: 'r1', attempt: 1, error: { message: 'busy' } }],
    ['model.requested', 3, { ...asked, attempt: 2 }],
    ['model.replied', 5, { request: 'r1', message: { content: 'hello' }, usage: { input: 10, output: 3 }, cost: 0.002, provenance: { model: 'smol-135' } }]
  );
  const [step, ...rest] = new Timeline().take(events, events.length).steps as ModelStep[];
  assert.equal(rest.length, 0);
  assert.deepEqual([step!.step, step!.seq, step!.model, step!.text, step!.usage, step!.cost], [0, 3, 'smol-135', 'hello', { input: 10, output: 3 }, 0.002]);
  assert.deepEqual(step!.failures.map(one => one.message), ['busy']);
});

test('a call is one step from the reply that asks for it to its outcome, with the arguments that a person changed', () => {
  const events = run(
    ['model.requested', 1, asked], ['model.replied', 2, { request: 'r1', message: { content: null, tool_calls: [call] } }],
    ['approval.requested', 2, { tool: 'pay', effect: 'once', arguments: { amount: 7 } }, 'c1'], ['approval.given', 9, { arguments: { amount: 5 } }, 'c1'],
    ['tool.started', 10, { tool: 'pay', effect: 'once' }, 'c1'], ['tool.succeeded', 12, { result: 'paid' }, 'c1']
  );
  const timeline = new Timeline();
  timeline.take(events, 3);
  assert.equal(timeline.call('c1')!.state, 'waiting');
  const before = timeline.call('c1')!.rev;
  const [, step] = timeline.take(events, events.length).steps as [ModelStep, CallStep];
  assert.deepEqual([step.state, step.tool, step.effect, step.arguments, step.result, step.seconds], ['succeeded', 'pay', 'once', { amount: 5 }, 'paid', 2]);
  assert.ok(step.rev > before);
  assert.equal(timeline.steps.length, 2);
});

test('a summary is no reply that a fork could begin at, and an erased body is shown as an event', () => {
  const events = run(
    ['model.requested', 1, asked], ['model.replied', 2, { request: 'r1', purpose: 'summary', message: { content: 'short' } }],
    ['model.requested', 3, { ...asked, request: 'r2' }], ['model.replied', 4, { request: 'r2', message: { content: 'a' } }], ['model.replied', 5, null]
  );
  const steps = new Timeline().take(events, events.length).steps;
  assert.deepEqual(steps.map(step => step.kind === 'model' ? step.step : step.kind), [null, 0, 'event']);
});

test('replies are numbered as the farm numbers them: on from where a fork began, and past what was erased', () => {
  const reply = (request: string): [string, number, unknown][] => [['model.requested', 1, { ...asked, request }], ['model.replied', 2, { request, message: { content: 'a' } }]];
  const events = run(['run.forked', 0, { run: 'run-0', step: 3 }], ...reply('r1'), ['model.replied', 3, null], ...reply('r2'));
  const steps = new Timeline().take(events, events.length).steps;
  assert.deepEqual(steps.flatMap(step => step.kind === 'model' ? [step.step] : []), [3, 5]);
});
