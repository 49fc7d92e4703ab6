/** A run's events as steps: a request and its reply are one, a call and all that concerns it are one. Pure, one event at a time. */
import type { Event } from './protocol';

type Body = Record<string, unknown>;

export interface ToolCall {
  id: string;
  function: { name: string; arguments: string };
}

export interface ModelStep {
  kind: 'model';
  id: string;
  /** Grows with each change: rows are drawn again by it. */
  rev: number;
  /** Which reply of the model this is, from 0: where a fork begins. null: none yet, or a summary. */
  step: number | null;
  /** The event `model.requested`, by which the exact request is asked for. */
  seq: number;
  model: string;
  asked: string;
  replied: string | null;
  text: string;
  calls: string[];
  usage: { input?: number; output?: number; estimated?: boolean } | null;
  /** USD; null: the model has no price. */
  cost: number | null;
  finish: string;
  /** By the worker's word alone. */
  reported: boolean;
  failures: { at: string; message: string }[];
}

export interface CallStep {
  kind: 'call';
  id: string;
  rev: number;
  seq: number;
  tool: string;
  arguments: unknown;
  effect: string;
  state: 'asked' | 'waiting' | 'running' | 'succeeded' | 'failed' | 'refused' | 'in_doubt';
  started: string | null;
  ended: string | null;
  seconds: number | null;
  result?: unknown;
  error?: string;
  /** All events of the call, as they came. */
  events: Event[];
}

export interface EventStep {
  kind: 'event';
  id: string;
  rev: number;
  event: Event;
}

export type Step = ModelStep | CallStep | EventStep;

const STATES: { [kind: string]: CallStep['state'] } = {
  'approval.requested': 'waiting', 'simulation.requested': 'waiting', 'question.asked': 'waiting', 'timer.set': 'waiting', 'child.submitted': 'waiting',
  'approval.refused': 'refused', 'approval.expired': 'refused', 'tool.started': 'running', 'tool.succeeded': 'succeeded', 'tool.failed': 'failed',
  'tool.doubted': 'in_doubt', 'question.answered': 'succeeded', 'question.refused': 'refused', 'question.expired': 'refused', 'timer.fired': 'succeeded',
  'simulation.answered': 'succeeded'
};

const seconds = (from: string | null, to: string): number | null => (from === null ? null : Math.max(0, (Date.parse(to) - Date.parse(from)) / 1000));
const words = (value: unknown): string => (typeof value === 'string' ? value : value === undefined || value === null ? '' : JSON.stringify(value));

export class Timeline {
  readonly steps: Step[] = [];
  private taken = 0;
  private replies = 0;
  private readonly requests = new Map<string, ModelStep>();
  private readonly calls = new Map<string, CallStep>();

  /** Take what is new of an array that grows in place. */
  take(events: readonly Event[], count: number): this {
    for (; this.taken < count; this.taken++) {
      this.one(events[this.taken]!);
    }
    return this;
  }

  call(id: string): CallStep | undefined {
    return this.calls.get(id);
  }

  private one(event: Event): void {
    const body = (event.body ?? {}) as Body;
    if (event.kind.startsWith('model.') && event.body !== null && typeof body.request === 'string') {
      this.model(event, body, body.request);
    } else if (event.call && !(event.kind === 'person.executed')) {
      this.ofCall(event, body, event.call);
    } else {
      this.steps.push({ kind: 'event', id: `event-${event.seq}`, rev: 0, event });
      if (event.kind === 'run.forked' && typeof body.step === 'number') {
        this.replies = body.step; // counted on, as the farm does: by it a fork of the fork begins at the right reply
      } else if (event.body === null && (event.kind === 'model.replied' || event.kind === 'model.reported')) {
        this.replies++; // erased, and a reply all the same
      }
    }
  }

  private model(event: Event, body: Body, request: string): void {
    let step = this.requests.get(request);
    if (!step) {
      step = {
        kind: 'model', id: request, rev: 0, step: null, seq: event.seq, model: words(body.model), asked: event.at, replied: null, text: '', calls: [],
        usage: null, cost: null, finish: '', reported: event.kind === 'model.reported', failures: []
      };
      this.requests.set(request, step);
      this.steps.push(step);
    }
    step.rev++;
    if (event.kind === 'model.requested') {
      Object.assign(step, { seq: event.seq, model: words(body.model), asked: event.at });
    } else if (event.kind === 'model.failed') {
      step.failures.push({ at: event.at, message: words((body.error as Body | undefined)?.message) });
    } else {
      this.replied(step, event, body);
    }
  }

  private replied(step: ModelStep, event: Event, body: Body): void {
    const message = (body.message ?? {}) as { content?: unknown; tool_calls?: ToolCall[] };
    Object.assign(step, {
      replied: event.at, text: words(message.content), usage: (body.usage as ModelStep['usage']) ?? null, finish: words(body.finish),
      cost: typeof body.cost === 'number' ? body.cost : null, model: words((body.provenance as Body | undefined)?.model) || step.model
    });
    if (body.purpose !== 'summary') {
      step.step = this.replies++;
    }
    for (const asked of message.tool_calls ?? []) {
      step.calls.push(asked.id);
      const call = this.known(asked.id, event);
      call.tool = asked.function.name;
      call.arguments = parsed(asked.function.arguments);
    }
  }

  private known(id: string, event: Event): CallStep {
    let call = this.calls.get(id);
    if (!call) {
      call = {
        kind: 'call', id, rev: 0, seq: event.seq, tool: '', arguments: undefined, effect: '', state: 'asked', started: null, ended: null, seconds: null, events: []
      };
      this.calls.set(id, call);
      this.steps.push(call);
    }
    return call;
  }

  private ofCall(event: Event, body: Body, id: string): void {
    const call = this.known(id, event);
    call.rev++;
    call.events.push(event);
    call.state = STATES[event.kind] ?? call.state;
    call.tool ||= words(body.tool);
    call.effect ||= words(body.effect);
    if (body.arguments && event.kind.startsWith('approval.')) {
      call.arguments = body.arguments; // as a person changed them
    }
    if (event.kind === 'tool.started') {
      call.started = event.at;
    }
    if (event.kind === 'child.finished') {
      call.state = body.status === 'succeeded' ? 'succeeded' : 'failed';
    } else if (event.kind === 'tool.resolved') {
      call.state = body.decision === 'happened' ? 'succeeded' : body.decision === 'given_up' ? 'failed' : 'asked';
    } else if (event.kind === 'simulation.answered' && body.error) {
      call.state = 'failed';
    }
    if (['succeeded', 'failed', 'refused'].includes(call.state)) {
      call.ended = event.at;
      call.seconds = typeof body.seconds === 'number' ? body.seconds : seconds(call.started, event.at);
    }
    if ('result' in body) {
      call.result = body.result;
    }
    const error = body.error as Body | string | undefined;
    const said = typeof error === 'string' ? error : words(error?.message);
    if (said || call.state === 'refused') {
      call.error = said || words(body.reason);
    }
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text; // what the model wrote is no JSON: shown as it is
  }
}

/** How long a request took, in seconds; null while it goes on. */
export const modelSeconds = (step: ModelStep): number | null => (step.replied === null ? null : seconds(step.asked, step.replied));

/** `0.42 s`, `12 s`, `3 min`. */
export function duration(value: number | null): string {
  if (value === null) {
    return '';
  }
  return value < 10 ? `${value.toFixed(2)} s` : value < 120 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`;
}

/** USD; small amounts keep two figures that say something. */
export const money = (value: number | null): string => (value === null ? '' : value === 0 ? '$0' : `$${value < 0.01 ? value.toPrecision(2) : value.toFixed(2)}`);
