/** State of the farm as this person sees it: resources that refresh when something changes, runs event by event.
 *
 * One stream of all changes feeds everything (browsers allow six connections to a server, and JupyterLab needs some). It is
 * open while somebody looks, and goes on behind the last number that it gave; after each cut everything shown is read again.
 */
import { Api, Problem, type Message } from './api';
import { Store } from './store';
import type { Event, InboxView, Listed } from './protocol';

export type Link = 'idle' | 'connecting' | 'live' | 'away' | 'signed-out';

/** What `/events` says: an event of a run of this agent, and how run and task stand now. */
export interface Change {
  agent: string;
  event: Event;
  /** Its task, where it has one. */
  task?: { batch_id?: string | null } | null;
}

/** Whether the farm is well, as the stream says; `problems` in words. */
export interface Wellness {
  status: string;
  problems: string[];
}

interface CasesTold {
  items: { agent: string; batch_id: string }[];
}

/** What changes without an event, by its name in the stream, and the paths that show it. */
const STATE: { [name: string]: readonly string[] } = {
  agents: ['/agents', '/pools'], servers: ['/agents', '/placements', '/pools', '/tasks/'], microservers: ['/microservers', '/placements'], inbox: ['/inbox'], health: ['/health'], cases: []
};
const WELL: Wellness = { status: 'ok', problems: [] };

export interface Loaded<T> {
  state: 'loading' | 'ready' | 'error';
  value?: T;
  /** Why the last reading failed; a value read before stays. */
  problem?: Problem;
}

export type Touches = (change: Change) => boolean;

const CALM_MS = 120; // a burst of changes is read again once in so long; the first one at once
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;

export class FarmModel {
  readonly link = new Store<Link>('idle');
  /** How many items of the inbox wait for a person. */
  readonly waiting = new Waiting(this);
  readonly health = new Store<Wellness>(WELL);
  /** What keeps several things that are shown from being read, in the same words: it is said once, above them. */
  readonly common = new Store<Problem | null>(null);
  private readonly failing = new Map<Resource<unknown>, Problem>();
  private readonly resources = new Map<string, Resource<unknown>>();
  private readonly runs = new Map<string, RunState>();
  private readonly followers = new Set<Follower>();
  private stop: AbortController | null = null;
  private skip: (() => void) | null = null;
  private last = 0;
  private stands = false; // the stream

  constructor(readonly api: Api) {}

  /** What a GET answers, shared by all who ask for the same path; read again at the changes that touch it. */
  resource<T>(path: string, touches: Touches = () => true): Resource<T> {
    return kept(this.resources, path, 200, () => new Resource<unknown>(this, path, touches)) as Resource<T>;
  }

  /** The events of a run, all of them, in order, as they come. */
  run(run_id: string): RunState {
    return kept(this.runs, run_id, 30, () => new RunState(this, run_id));
  }

  get inbox(): Resource<Listed<InboxView>> {
    return this.resource('/inbox?limit=500', movesTasks);
  }

  /** Read again what begins with this path: after an own change that no event tells. */
  refresh(path: string): void {
    this.resources.forEach((resource, key) => key.startsWith(path) && resource.refresh());
  }

  /** Have everything shown read again, at once: the machine slept, the network came back. */
  readonly wake = (): void => {
    this.skip?.();
    this.followers.forEach(follower => follower.resync());
  };

  join(follower: Follower): void {
    this.followers.add(follower);
    if (!this.stop) {
      this.stop = new AbortController();
      void this.listen(this.stop.signal);
    }
  }

  leave(follower: Follower): void {
    this.followers.delete(follower);
    // not at once: a view that is redrawn leaves and joins in the same moment
    setTimeout(() => {
      if (this.followers.size === 0) {
        this.stop?.abort();
        this.stop = null;
      }
    }, 1000);
  }

  /** For a resource that is shown: why it cannot be read, or that it can (null). */
  failed(resource: Resource<unknown>, problem: Problem | null): void {
    if (problem) {
      this.failing.set(resource, problem);
    } else if (!this.failing.delete(resource)) {
      return;
    }
    const said = new Set<string>();
    const twice = [...this.failing.values()].find(one => said.size === said.add(one.message).size) ?? null;
    if (twice?.message !== this.common.get()?.message) {
      this.common.set(twice);
    }
  }

  /** For those whose request was refused: is it this person's session? */
  judge(problem: Problem): void {
    if (problem.signedOut) {
      this.link.set('signed-out');
    }
  }

  /** For those whose request was answered: a session that had expired is there again. */
  known(): void {
    if (this.link.get() === 'signed-out') {
      this.link.set(this.stands ? 'live' : 'connecting');
      this.skip?.();
    }
  }

  private async listen(signal: AbortSignal): Promise<void> {
    let wait = FIRST_WAIT_MS;
    this.link.set('connecting');
    while (!signal.aborted) {
      try {
        const told = new Set<string>();
        for await (const message of this.api.stream('/events?state=true', this.last, signal)) {
          if (!this.stands) {
            this.stands = true;
            wait = FIRST_WAIT_MS;
            this.link.set('live');
            this.followers.forEach(follower => follower.resync());
          }
          this.last = message.id || this.last;
          this.take(message, told);
        }
      } catch (error) {
        if (signal.aborted) {
          break;
        }
        this.link.set(Problem.of(error).signedOut ? 'signed-out' : 'away');
        this.unwell(Problem.of(error));
      }
      if (this.stands && this.link.get() === 'live') {
        this.link.set('away'); // it ended without an error: the farm was restarted
      }
      this.stands = false;
      await this.pause(wait * (0.75 + Math.random() / 2), signal);
      wait = Math.min(wait * 2, LONGEST_WAIT_MS);
    }
    this.stands = false;
    this.link.set('idle');
  }

  /** The farm is there and says why it cannot serve: a stream of it cannot say so. */
  private unwell(problem: Problem): void {
    if (problem.status === 503 && problem.detail) {
      this.health.set({ status: 'degraded', problems: [problem.detail] });
    }
  }

  /** `told`: which states this connection has told before; the first one is how things are, and has just been read. */
  private take(message: Message, told: Set<string>): void {
    const { event, data } = message;
    const paths = event === 'cases' ? (data as CasesTold).items.map(one => `/agents/${one.agent}/cases/runs`) : STATE[event];
    if (event === 'inbox') {
      this.waiting.set((data as { count: number }).count);
    }
    if (event === 'health') {
      this.health.set(data as Wellness);
    }
    if (paths !== undefined) {
      if (told.has(event)) {
        new Set(paths).forEach(one => this.refresh(one));
      }
      told.add(event);
    } else if (data !== undefined && event !== 'here') {
      this.followers.forEach(follower => follower.heard(data as Change));
    }
  }

  private pause(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise(resolve => {
      const over = (): void => {
        clearTimeout(timer);
        this.skip = null;
        signal.removeEventListener('abort', over);
        resolve();
      };
      const timer = setTimeout(over, ms);
      this.skip = over;
      signal.addEventListener('abort', over);
    });
  }
}

/** What has this name, made where there is none. Beyond `most` the oldest that nobody looks at leave: a page is open for days. */
function kept<T extends { idle: boolean }>(all: Map<string, T>, name: string, most: number, make: () => T): T {
  const found = all.get(name) ?? make();
  all.delete(name);
  all.set(name, found); // the latest stands last
  for (const [other, one] of all) {
    if (all.size <= most || other === name) {
      break;
    }
    if (one.idle) {
      all.delete(other);
    }
  }
  return found;
}

interface Follower {
  heard(change: Change): void;
  /** The stream stands (again): what came in between is read now. */
  resync(): void;
}

/** A figure that the stream itself brings: whoever shows it keeps the stream open. */
class Waiting extends Store<number> implements Follower {
  constructor(private readonly model: FarmModel) {
    super(0);
  }

  heard(): void {
    // the stream tells the count itself
  }

  resync(): void {
    // so it does at each beginning
  }

  protected override watched(by: boolean): void {
    if (by) {
      this.model.join(this);
    } else {
      this.model.leave(this);
    }
  }
}

/** One answer of the farm, kept true while somebody looks. */
export class Resource<T> extends Store<Loaded<T>> implements Follower {
  private reading: AbortController | null = null;
  private again = false;
  private due: ReturnType<typeof setTimeout> | null = null;
  private lastRead = 0;
  private calm = CALM_MS;
  private read = false;
  private looked = false;

  constructor(private readonly model: FarmModel, readonly path: string, private readonly touches: Touches) {
    super({ state: 'loading' });
  }

  heard(change: Change): void {
    if (this.touches(change)) {
      this.refresh();
    }
  }

  resync(): void {
    this.refresh();
  }

  /** Read it again: at once, or as soon as the burst allows. What nobody looks at is read when somebody does. */
  readonly refresh = (): void => {
    if (!this.looked) {
      return;
    }
    if (this.reading) {
      this.again = true;
    } else if (this.due === null) {
      this.due = setTimeout(() => {
        this.due = null;
        void this.reread();
      }, Math.max(0, this.lastRead + this.calm - Date.now()));
    }
  };

  /** What the asker did is shown at once; the next reading decides. */
  patch(change: (value: T) => T): void {
    const now = this.get();
    if (now.value !== undefined) {
      this.set({ ...now, value: change(now.value) });
    }
  }

  private async reread(): Promise<void> {
    const reading = new AbortController();
    this.reading = reading;
    const began = Date.now();
    try {
      this.set({ state: 'ready', value: await this.model.api.get<T>(this.path, reading.signal) });
      this.read = true;
      this.model.failed(this, null);
      this.model.known();
    } catch (error) {
      if (reading.signal.aborted) {
        return;
      }
      const problem = Problem.of(error);
      this.model.judge(problem);
      this.set({ ...this.get(), state: this.read ? 'ready' : 'error', problem });
      this.model.failed(this, problem.passing ? problem : null);
    } finally {
      if (this.reading === reading) {
        this.reading = null;
      }
      this.lastRead = Date.now();
      this.calm = Math.max(CALM_MS, this.lastRead - began); // what is slow is asked for half of the time at most
    }
    if (this.again) {
      this.again = false;
      this.refresh();
    }
  }

  protected override watched(by: boolean): void {
    this.looked = by;
    if (by) {
      this.model.join(this);
      this.refresh();
      return;
    }
    this.model.leave(this);
    this.model.failed(this, null);
    this.again = false;
    if (this.due !== null) {
      clearTimeout(this.due);
      this.due = null;
    }
    this.reading?.abort();
    this.reading = null;
  }
}

export interface RunEvents {
  /** In order, without a hole; the same array grows: `count` tells how far. */
  events: readonly Event[];
  count: number;
  /** Whether all that was recorded until now is here. */
  complete: boolean;
  problem?: Problem;
}

const PAGE = 500;

/** A run's events: the history by pages, then what the stream of changes says; a hole is read. */
export class RunState extends Store<RunEvents> implements Follower {
  private readonly list: Event[] = [];
  private early: Event[] = [];
  private reading = false;
  private again = false;
  private looked = false;

  constructor(private readonly model: FarmModel, readonly run_id: string) {
    super({ events: [], count: 0, complete: false });
  }

  heard(change: Change): void {
    if (change.event.run !== this.run_id) {
      return;
    }
    if (this.reading) {
      this.early.push(change.event);
      return;
    }
    if (!this.take([change.event])) {
      void this.catchUp();
    } else {
      this.show(true);
    }
  }

  resync(): void {
    void this.catchUp();
  }

  /** Append what follows; says false where something is missing in between. */
  private take(events: readonly Event[]): boolean {
    for (const event of events) {
      const next = this.list.length + 1;
      if (event.seq === next) {
        this.list.push(event);
      } else if (event.seq > next) {
        return false;
      }
    }
    return true;
  }

  private show(complete: boolean, problem?: Problem): void {
    const before = this.get();
    if (before.count !== this.list.length || before.complete !== complete || before.problem !== problem) {
      this.set({ events: this.list, count: this.list.length, complete, ...(problem ? { problem } : {}) });
    }
  }

  private async catchUp(): Promise<void> {
    if (this.reading) {
      this.again = true;
      return;
    }
    this.reading = true;
    try {
      do {
        this.again = false;
        await this.pages();
      } while (this.again && this.looked);
    } catch (error) {
      const problem = Problem.of(error);
      this.model.judge(problem);
      this.show(false, problem);
    } finally {
      this.reading = false;
    }
  }

  private async pages(): Promise<void> {
    for (;;) {
      const path = `/runs/${this.run_id}/events?after=${this.list.length}&limit=${PAGE}`;
      const page = await this.model.api.get<Listed<Event>>(path);
      this.take(page.items);
      if (page.next == null || page.items.length === 0) {
        break;
      }
      this.show(false);
    }
    const early = this.early;
    this.early = [];
    this.again = !this.take(early) || this.again;
    this.show(!this.again);
  }

  protected override watched(by: boolean): void {
    this.looked = by;
    if (by) {
      this.model.join(this);
      void this.catchUp();
    } else {
      this.model.leave(this);
    }
  }
}

/** Whether a change may move the list of tasks: words of the model in the middle of a run do not. */
export const movesTasks: Touches = change => /^(run|approval|tool\.doubted|tool\.resolved|budget|question|timer|child|simulation)/.test(change.event.kind);
/** Whether a change may move agents: only operators are told of the farm's own chain; own changes refresh. */
export const movesAgents: Touches = change => /^(agent|version)\./.test(change.event.kind);
