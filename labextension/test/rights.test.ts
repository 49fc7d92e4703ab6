/// <reference types="node" />
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { may, reaches } from '../src/rights';

test('rights reach what is below them, and unknown ones reach nothing', () => {
  assert.deepEqual(['view', 'chat', 'manage', 'owner', 'operator', 'else', undefined].map(has => reaches(has, 'chat')), [false, true, true, true, true, false, false]);
});

test('a task is for its owner, for who has rights on its agent, and for operators', () => {
  const task = { owner: 'ann', agent: 'analyst' };
  const of = (person: string, rights?: string, operator = false): boolean => may({ person, operator }, task, rights ? [{ name: 'analyst', rights }] : [], 'chat');
  assert.deepEqual([of('ann'), of('vic', 'view'), of('bob', 'chat'), of('eve'), of('olga', undefined, true)], [true, false, true, false, true]);
});
