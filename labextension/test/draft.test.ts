import assert from 'node:assert/strict';
import { test } from 'node:test';

import { merge, variablesOf, withPart } from '../src/draft';
import type { Definition } from '../src/protocol';

const base: Definition = { prompt: 'one', model: { name: 'a', parameters: { temperature: 0 } }, tools: [{ name: 'calculator' }], limits: { steps: 3 } };

test('what two people changed in different places is put together', () => {
  const { merged, clashes, taken } = merge(base, { ...base, prompt: 'mine' }, { ...base, limits: { steps: 9 }, tools: [{ name: 'calculator' }, { name: 'recall' }] });
  assert.deepEqual(clashes, []);
  assert.deepEqual(taken.sort(), ['limits.steps', 'tools.recall']);
  assert.deepEqual([merged.prompt, merged.limits, merged.tools?.map(tool => tool.name)], ['mine', { steps: 9 }, ['calculator', 'recall']]);
});

test('what both changed is a clash with both sides, and mine stands until somebody chooses', () => {
  const { merged, clashes } = merge(base, { ...base, prompt: 'mine' }, { ...base, prompt: 'theirs' });
  assert.deepEqual(clashes, [{ part: 'prompt', mine: 'mine', theirs: 'theirs' }]);
  assert.equal(merged.prompt, 'mine');
  assert.equal(withPart(merged, 'prompt', 'theirs').prompt, 'theirs');
});

test('a tool that one took away and the other changed is a clash, and may go', () => {
  const theirs = { ...base, tools: [{ name: 'calculator', approval: 'always' }] };
  const { merged, clashes } = merge(base, { ...base, tools: [] }, theirs);
  assert.deepEqual(clashes.map(one => [one.part, one.mine]), [['tools.calculator', undefined]]);
  assert.deepEqual(merged.tools, []);
  assert.deepEqual(withPart(merged, 'tools.calculator', theirs.tools[0]).tools, theirs.tools);
  assert.deepEqual(withPart(theirs, 'tools.calculator', undefined).tools, []);
});

test('variables are found as the farm fills them', () => {
  assert.deepEqual(variablesOf('Dear {{ name }}, {{name}} and \\{{not}} {{x1}}'), ['name', 'x1']);
});
