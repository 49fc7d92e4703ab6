import assert from 'node:assert/strict';
import test from 'node:test';

import { bytes, daysUntil, lasting, shortly } from '../src/figures';

test('bytes are said in the unit that fits', () => {
  assert.deepEqual([0, 999, 1000, 3_240_000_000, 512_000_000].map(bytes), ['0 B', '999 B', '1.0 kB', '3.2 GB', '512 MB']);
});

test('how long something is up is said in its two largest units', () => {
  assert.deepEqual([59, 3600, 90_000].map(lasting), ['0 min', '1 h 0 min', '1 d 1 h']);
});

test('days follow one another over the end of a month', () => {
  assert.deepEqual(daysUntil(new Date('2026-03-01T00:30:00Z'), 3), ['2026-02-27', '2026-02-28', '2026-03-01']);
});

test('a short while is said in the unit that fits', () => {
  assert.deepEqual([90, 900, 10_800].map(shortly), ['90 s', '15 min', '3 h 0 min']);
});
