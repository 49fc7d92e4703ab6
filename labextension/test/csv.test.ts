import assert from 'node:assert/strict';
import { test } from 'node:test';

import { fill, missing, parseCsv, tasksOf, variablesOf } from '../src/csv';
import { plain } from '../src/translate';

test('quoted fields hold separators, quotes and line ends; a byte order mark and blank lines do not count', () => {
  const sheet = parseCsv('\uFEFFcity,says\r\n"Paris, France","He said ""no"".\nTwice."\r\n\r\nRome,\r\n', plain);
  assert.deepEqual(sheet, { columns: ['city', 'says'], rows: [['Paris, France', 'He said "no".\nTwice.'], ['Rome', '']], flaw: '' });
});

test('the separator is found in the first line, outside of quotes', () => {
  assert.deepEqual(parseCsv('a;"b,c,d"\n1;2', plain).columns, ['a', 'b,c,d']);
  assert.deepEqual(parseCsv('a\tb\n1,5\t2', plain).rows, [['1,5', '2']]);
});

test('a flawed sheet says what is wrong with it', () => {
  assert.match(parseCsv('', plain).flaw, /first row/);
  assert.match(parseCsv('a,b', plain).flaw, /row for each task/);
  assert.match(parseCsv('a,b\n1,2\n3', plain).flaw, /Row 2 has 1 fields/);
  assert.match(parseCsv('a,a\n1,2', plain).flaw, /same name/);
  assert.match(parseCsv('a,\n1,2', plain).flaw, /needs a name/);
  assert.match(parseCsv('a\n"1', plain).flaw, /never closed/);
  assert.match(parseCsv(`a\n${'1\n'.repeat(1001)}`, plain).flaw, /1001 rows/);
});

test('fields stand in the places of their columns, and are not looked into again', () => {
  assert.equal(fill('Greet {{ name }} of {{city}}', ['name', 'city'], ['{{city}} $&', 'Rome']), 'Greet {{city}} $& of Rome');
  assert.deepEqual(missing('{{name}} {{age}} {{age}}', ['name']), ['age']);
});

test('each row is a task with a key of the batch', () => {
  const tasks = tasksOf(parseCsv('n\n1\n2', plain), 'Count to {{n}}', 'counts', { target: 'a' });
  assert.deepEqual(tasks, [{ target: 'a', input: 'Count to 1', key: 'counts/1' }, { target: 'a', input: 'Count to 2', key: 'counts/2' }]);
});

test('variables are lines of a name and a value', () => {
  assert.deepEqual(variablesOf(' tone = dry = very\n\nlang=en'), { tone: 'dry = very', lang: 'en' });
  assert.equal(variablesOf('no value'), null);
});
