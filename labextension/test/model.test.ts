/// <reference types="node" />
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Api, parser, Problem, type Transport } from '../src/api';
import { differences } from '../src/components/diff';
import { Heights } from '../src/components/heights';
import { addressOf, filterOf } from '../src/filters';
import { FarmModel } from '../src/model';
import type { Event } from '../src/protocol';
import { findView } from '../src/routes';
import { sayEvent } from '../src/words';
import type { View } from '../src/views/view';
import { plain } from '../src/translate';

const event = (seq: number, kind = 'value.recorded', run = 'run-1'): Event => ({ run, seq, kind, at: '2026-11-21T00:00:00.000000Z', by: 'service', body: {} });

/** A farm of two answers: the run's history as it is now, and streams that the test writes. */
class FakeFarm {
  history: Event[] = [];
  asked: string[] = [];
  private streams: ReadableStreamDefaultController<Uint8Array>[] = [];
  resumed: (string | undefined)[] = [];
  private waiting: (() => void)[] = [];

  readonly transport: Transport = async (path, init) => {
    this.asked.push(path);
    if (path.startsWith('/events')) {
      this.resumed.push((init.headers as Record<string, string>)['Last-Event-ID']);
      const body = new ReadableStream<Uint8Array>({
        start: stream => {
          this.streams.push(stream);
          stream.enqueue(new TextEncoder().encode(':here\n\n'));
          init.signal?.addEventListener('abort', () => stream.error(new Error('aborted')));
        }
      });
      this.waiting.splice(0).forEach(go => go());
      return new Response(body);
    }
    const url = new URL(path, 'http://farm');
    const after = Number(url.searchParams.get('after'));
    const limit = Number(url.searchParams.get('limit'));
    const items = this.history.slice(after, after + limit);
    return Response.json({ items, next: items.length === limit ? after + limit : null });
  };

  say(id: number, one: Event): void {
    this.streams.at(-1)!.enqueue(new TextEncoder().encode(`id: ${id}\nevent: ${one.kind}\ndata: ${JSON.stringify({ agent: 'a', event: one })}\n\n`));
  }

  tell(name: string, data: unknown): void {
    this.streams.at(-1)!.enqueue(new TextEncoder().encode(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`));
  }

  cut(): void {
    this.streams.at(-1)!.close();
  }

  connected(times: number): Promise<void> {
    return new Promise(resolve => {
      const look = (): void => (this.streams.length >= times ? resolve() : void this.waiting.push(look));
      look();
    });
  }
}

const until = async (look: () => boolean): Promise<void> => {
  const end = Date.now() + 10_000;
  while (!look()) {
    assert.ok(Date.now() < end, 'it did not come to be');
    await new Promise(resolve => setTimeout(resolve, 5));
  }
};

test('a run is whole over a cut: history by pages, then the stream, a hole is read', async () => {
  const farm = new FakeFarm();
  farm.history = Array.from({ length: 1200 }, (_, at) => event(at + 1));
  const model = new FarmModel(new Api(farm.transport));
  const run = model.run('run-1');
  const leave = run.subscribe(() => undefined);
  await until(() => run.get().complete && run.get().count === 1200);
  farm.history.push(event(1201), event(1202));
  farm.say(7, event(1201));
  farm.say(8, event(1202));
  await until(() => run.get().count === 1202);
  farm.history.push(event(1203), event(1204));
  farm.say(10, event(1204)); // 1203 is missing: it is read
  await until(() => run.get().count === 1204);
  farm.cut();
  farm.history.push(event(1205));
  await farm.connected(2);
  await until(() => run.get().count === 1205);
  assert.equal(farm.resumed[1], '10');
  assert.deepEqual(run.get().events.map(one => one.seq), farm.history.map(one => one.seq));
  leave();
});

test('what is shown by many is asked for once, and a hidden one asks for nothing', async () => {
  const farm = new FakeFarm();
  const model = new FarmModel(new Api(farm.transport));
  const list = model.resource('/tasks', () => true);
  const leave = [list.subscribe(() => undefined), list.subscribe(() => undefined)];
  await until(() => list.get().state === 'ready');
  await farm.connected(1);
  await until(() => farm.asked.filter(path => path === '/tasks').length >= 1);
  leave.forEach(one => one());
  const before = farm.asked.length;
  await until(() => model.link.get() === 'idle');
  assert.equal(farm.asked.length, before);
});

test('verdicts are read again where they came, and what is wrong with the farm is known at once', async () => {
  const farm = new FakeFarm();
  const model = new FarmModel(new Api(farm.transport));
  const [mine, other] = ['/agents/a/cases/runs/batch-1', '/agents/b/cases/runs/batch-2'].map(path => model.resource(path, () => false));
  const leave = [mine!, other!].map(one => one.subscribe(() => undefined));
  await farm.connected(1);
  await until(() => mine!.get().state === 'ready' && other!.get().state === 'ready' && model.link.get() === 'live');
  const asked = (agent: string): number => farm.asked.filter(path => path.startsWith(`/agents/${agent}/`)).length;
  farm.tell('cases', { items: [] }); // how things are: it has just been read
  farm.tell('health', { status: 'degraded', problems: ['database: away'] });
  await until(() => model.health.get().problems.length === 1);
  const before = [asked('a'), asked('b')];
  farm.tell('cases', { items: [{ agent: 'a', batch_id: 'batch-1', totals: [] }] });
  await until(() => asked('a') > before[0]!);
  assert.equal(asked('b'), before[1]);
  farm.tell('health', { status: 'ok', problems: [] });
  await until(() => model.health.get().status === 'ok');
  leave.forEach(one => one());
});

test('an answer without JSON is a problem with its status', async () => {
  const api = new Api(async () => new Response('<html>', { status: 502 }));
  await assert.rejects(api.get('/tasks'), (error: unknown) => error instanceof Problem && error.status === 502 && error.passing);
});

test('a write whose answer was lost goes again under its key, and the next one under another', async () => {
  const keys: (string | undefined)[] = [];
  const answers: (() => Response)[] = [() => { throw new TypeError('cut'); }, () => new Response('', { status: 503 }), () => Response.json({}), () => Response.json({})];
  const api = new Api(async (_path, init) => {
    keys.push((init.headers as Record<string, string>)['Idempotency-Key']);
    return answers.shift()!();
  });
  const submit = (): Promise<unknown> => api.post('/tasks', { input: 'x' });
  await assert.rejects(submit());
  await assert.rejects(submit());
  await submit();
  await submit();
  assert.ok(keys[0]);
  assert.deepEqual(keys.slice(1, 3), [keys[0], keys[0]]);
  assert.notEqual(keys[3], keys[0]);
});

test('runs that nobody looks at any more are let go of; the one in sight stays', () => {
  const model = new FarmModel(new Api(async () => Response.json({ items: [], next: null })));
  const seen = model.run('run-seen');
  const leave = seen.subscribe(() => undefined);
  const first = model.run('run-0');
  Array.from({ length: 60 }, (_, at) => model.run(`run-${at}`));
  assert.equal(model.run('run-seen'), seen);
  assert.notEqual(model.run('run-0'), first);
  leave();
});

test('server-sent events are read however they are cut', () => {
  const parse = parser();
  const text = 'id: 3\nevent: run.created\ndata: {"a":"x: y"}\n\n:\n\n';
  const found = [...text].flatMap(one => parse(one));
  assert.deepEqual(found, [{ id: 3, event: 'run.created', data: { a: 'x: y' } }, { id: 0, event: 'message' }]);
});

test('a route finds its view and parameters, or none', () => {
  const views = [{ route: 'agents' }, { route: 'agents/:name' }] as View[];
  assert.equal(findView(views, 'agents')?.view.route, 'agents');
  assert.deepEqual(findView(views, 'agents/an%20agent?tab=x')?.params, { name: 'an agent', tab: 'x' });
  assert.equal(findView(views, 'nothing'), null);
});

test('texts side by side keep every line in order', () => {
  const rows = differences('a\nb\nc', 'a\nx\nc\nd');
  assert.deepEqual(rows.map(row => row.kind), ['same', 'changed', 'same', 'changed']);
  assert.deepEqual(rows.flatMap(row => row.before ?? []), ['a', 'b', 'c']);
  assert.deepEqual(rows.flatMap(row => row.after ?? []), ['a', 'x', 'c', 'd']);
});

test('ten thousand rows of unknown height are found by where they stand', () => {
  const heights = new Heights(50);
  heights.resize(10_000);
  heights.measured(3, 150);
  assert.equal(heights.total, 10_000 * 50 + 100);
  assert.equal(heights.at(299), 3);
  assert.equal(heights.at(300), 4);
  heights.resize(10_001);
  assert.equal(heights.top(10_000), 500_100);
});

test('a kind that nobody knows is shown as it is, an erased body as erased', () => {
  assert.equal(sayEvent({ ...event(1, 'moon.risen'), body: { full: true } }, plain).title, 'moon.risen');
  assert.equal(sayEvent({ ...event(1, 'run.failed'), body: null }, plain).text, 'erased');
});

test('filters survive the way through an address, whatever is typed', () => {
  const views = [{ route: 'tasks' }] as View[];
  const filter = { status: 'failed', agent: '', owner: 'ann', text: 'a & b = "50 %" ? ü' };
  const found = findView(views, addressOf('tasks', { ...filter }))!;
  assert.deepEqual(filterOf(found.params), filter);
  assert.equal(addressOf('tasks', { ...filterOf({}) }), 'tasks');
});

test('what keeps several things from being read is told once for all, until one of them can be read', async () => {
  const farm = new FakeFarm();
  let away = true;
  const model = new FarmModel(new Api((path, init) => away && !path.startsWith('/events')
    ? Promise.resolve(Response.json({ title: 'The farm is busy' }, { status: 503 })) : farm.transport(path, init)));
  const [agents, tasks] = [model.resource('/agents'), model.resource('/tasks')];
  const leave = [agents.subscribe(() => undefined)];
  await until(() => agents.get().state === 'error');
  assert.equal(model.common.get(), null); // said where it stands
  leave.push(tasks.subscribe(() => undefined));
  await until(() => model.common.get()?.title === 'The farm is busy');
  away = false;
  tasks.refresh();
  await until(() => model.common.get() === null);
  agents.refresh();
  await until(() => agents.get().problem === undefined);
  leave.forEach(go => go());
});
