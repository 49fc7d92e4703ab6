import assert from 'node:assert/strict';
import test from 'node:test';

import { CompletionContext } from '@codemirror/autocomplete';
import { EditorState } from '@codemirror/state';

import { complete, difference } from '../src/editor/editor';

const offered = (text: string): string[] => {
  const at = text.indexOf('|');
  const state = EditorState.create({ doc: text.replace('|', '') });
  return (complete(new CompletionContext(state, at, false))?.options ?? []).map(one => one.label);
};

test('after two braces the names are offered that the prompt has elsewhere, and not the one that is being written', () => {
  assert.deepEqual(offered('Dear {{name}}, from {{firm}}: {{|'), ['name', 'firm']);
  assert.deepEqual(offered('Dear {{name}}, from {{fi|}}'), ['name']);
  assert.deepEqual(offered('Dear {{name}}, \\{{fi|'), [], 'an escaped place is text');
  assert.deepEqual(offered('Dear {{name}}, {fi|'), []);
  assert.deepEqual(offered('\\{{name}} {{|'), []);
});

test('two texts differ in one stretch, which makes the second of the first', () => {
  for (const [now, next] of [['', 'a'], ['a', ''], ['abc', 'axc'], ['aa', 'aaa'], ['aaa', 'aa'], ['one two', 'one and two'], ['x', 'y']] as const) {
    const found = difference(now, next)!;
    assert.equal(now.slice(0, found.from) + found.insert + now.slice(found.to), next);
  }
  assert.equal(difference('same', 'same'), null);
  assert.deepEqual(difference('You are brief.', 'You are very brief.'), { from: 8, to: 8, insert: 'very ' });
});
