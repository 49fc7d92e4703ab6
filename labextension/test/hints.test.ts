/// <reference types="node" />
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { partsOf } from '../src/hints';
import { plain } from '../src/translate';

const said = (hint: string): string => partsOf(hint, plain).map(part => (part.to ? `[${part.words}→${part.to}]` : part.words)).join('');

test('a command in a hint becomes the page that does the same, the words around it stay', () => {
  assert.equal(said('list them by: agentfarm agent list'), 'list them: [Agents→agents]');
  assert.equal(said('publish it: agentfarm agent publish bea-sums; or "version": "draft"'), 'publish it: [bea-sums→agents/bea-sums]; or "version": "draft"');
  assert.equal(said('see: agentfarm budget list; who set it may raise it, then: agentfarm task rerun'), 'see: [Budgets→budgets]; who set it may raise it, then: [Tasks→tasks]');
  assert.equal(said('give an agent that pool: agentfarm agent create NAME --pool POOL'), 'give an agent that pool: [Agents→agents]');
  assert.equal(said('agentfarm placement explain AGENT'), '[Microservers→microservers]');
});

test('what no page does stays as the farm said it', () => {
  for (const hint of ['try again shortly; operators: agentfarm status', 'agentfarm doctor, and the server’s log, say more', 'choose one that does (agentfarm model list), or another', '']) {
    assert.equal(said(hint), hint);
  }
});
