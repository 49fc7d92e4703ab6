/** What an event says to a person. Pure; views draw it as text. */
import type { Event } from './protocol';
import type { Translate } from './translate';

export interface Said {
  title: string;
  text: string;
  look: 'good' | 'bad' | 'wait' | 'run' | 'quiet';
}

type Body = Record<string, unknown>;

const text = (value: unknown): string => value === undefined || value === null ? '' : typeof value === 'string' ? value : JSON.stringify(value, null, 2);
const message = (body: Body): string => text((body.error as Body | undefined)?.message);
const lines = (...parts: unknown[]): string => parts.map(text).filter(Boolean).join('\n');
const said = (title: string, words: unknown = '', look: Said['look'] = 'quiet'): Said => ({ title, text: text(words), look });

interface ToolCall {
  function: { name: string; arguments: string };
}

export function replyText(reply: unknown): string {
  const { content, tool_calls } = (reply ?? {}) as { content?: unknown; tool_calls?: ToolCall[] };
  return lines(content, ...(tool_calls ?? []).map(call => `${call.function.name}(${call.function.arguments})`));
}

const role = (name: string, t: Translate): string => ({ system: t('Prompt'), user: t('Input'), assistant: t('Reply'), tool: t('Outcome') })[name] ?? name;

const SAY: { [kind: string]: (body: Body, t: Translate) => Said } = {
  'run.created': (body, t) => said(t('Run created'), body.version ? t('version %1', text(body.version)) : t('draft')),
  'message.added': (body, t) => said(role(text(body.role), t), body.content),
  'thread.continued': (body, t) => said(t('Goes on from'), body.run),
  'run.forked': (body, t) => said(t('Forked before reply %1', Number(body.step) + 1), body.run),
  'run.leased': (body, t) => said(t('Taken by %1', text(body.worker)), '', 'run'),
  'worker.died': (body, t) => said(t('Proven dead'), body.proof),
  'run.requeued': (body, t) => said(t('Queued again'), [body.reason, body.proof].filter(Boolean).join(': '), 'wait'),
  'run.parked': (body, t) => said(t('Waits'), body.reason, 'wait'),
  'run.paused': (body, t) => said(t('Paused'), body.reason, 'wait'),
  'run.resumed': (_body, t) => said(t('Resumed')),
  'run.restored': (_body, t) => said(t('Restored from a backup'), '', 'wait'),
  'run.interrupted': (body, t) => said(t('Interrupted'), body.reason, 'wait'),
  'run.cancel_requested': (body, t) => said(t('Asked to stop'), body.reason, 'wait'),
  'run.cancelled': (body, t) => said(t('Cancelled'), body.reason, 'bad'),
  'run.succeeded': (body, t) => said(t('Result'), body.result, 'good'),
  'run.failed': (body, t) => said(t('Failed'), message(body), 'bad'),
  'model.requested': (body, t) => said(t('Asks %1', text(body.model)), Number(body.attempt) > 1 ? t('attempt %1', text(body.attempt)) : '', 'run'),
  'model.replied': (body, t) => said(t('Reply'), replyText(body.message), 'good'),
  'model.reported': (body, t) => said(t('Reply (reported by the worker)'), replyText(body.message)),
  'model.failed': (body, t) => said(t('The model failed'), message(body), 'bad'),
  'context.compacted': (body, t) => said(t('Context summarised'), body.summary),
  'tool.started': (body, t) => said(t('Calls %1', text(body.tool)), body.effect, 'run'),
  'tool.succeeded': (body, t) => said(t('Outcome'), body.result, 'good'),
  'tool.failed': (body, t) => said(t('The call failed'), message(body), 'bad'),
  'tool.probed': (body, t) => said(t('The probe was asked'), lines(body.answer, body.reason)),
  'tool.doubted': (body, t) => said(t('In doubt'), body.reason, 'wait'),
  'tool.resolved': (body, t) => said(t('Decided'), lines(body.decision, body.reason)),
  'child.submitted': (body, t) => said(t('Delegates to %1', text(body.target)), body.input, 'wait'),
  'child.finished': (body, t) => said(t('The delegated task: %1', text(body.status)), message(body) || body.result, body.status === 'succeeded' ? 'good' : 'bad'),
  'timer.set': (body, t) => said(t('Rests until'), body.until, 'wait'),
  'timer.fired': (_body, t) => said(t('The time has come'), '', 'good'),
  'question.asked': (body, t) => said(t('Asks a person'), lines(body.question, ...((body.choices as string[] | undefined) ?? [])), 'wait'),
  'question.answered': (body, t) => said(t('Answered'), body.result, 'good'),
  'question.refused': (body, t) => said(t('Not answered'), body.reason, 'bad'),
  'question.expired': (body, t) => said(t('Not answered'), body.reason, 'bad'),
  'memory.remembered': (body, t) => said(t('Remembers %1', text(body.key)), body.value),
  'memory.forgotten': (body, t) => said(t('Forgets %1', text(body.key))),
  'approval.requested': (body, t) => said(t('%1 waits for approval', text(body.tool)), body.why, 'wait'),
  'approval.voted': (body, t) => said(t('One approves'), body.arguments),
  'approval.given': (body, t) => said(t('Approved'), body.arguments, 'good'),
  'approval.refused': (body, t) => said(t('Refused'), body.reason, 'bad'),
  'approval.expired': (body, t) => said(t('Approval expired'), body.reason, 'bad'),
  'approval.escalated': (body, t) => said(t('Shown to more people'), body.to ?? t('operators')),
  'simulation.requested': (body, t) => said(t('%1 waits for an answer', text(body.tool)), body.why, 'wait'),
  'simulation.answered': (body, t) => said(t('Answered'), body.result ?? message(body)),
  'budget.reached': (body, t) => said(t('Budget reached'), body.why, 'wait'),
  'budget.allowed': (body, t) => said(body.amount === undefined ? t('Budget waived') : t('Budget waived by %1', text(body.amount)), body.reason, 'good'),
  'budget.refused': (body, t) => said(t('Budget refused'), body.reason, 'bad'),
  'budget.freed': (_body, t) => said(t('The budget has room again'), '', 'good'),
  'clock.jumped': (body, t) => said(t('The clock was set'), t('by %1 s: no limit counts it', text(body.seconds))),
  'value.recorded': (body, t) => said(t('Value %1', text(body.name)), body.value),
  'person.executed': (body, t) => said(t('A person executed'), body.code),
  'body.erased': (body, t) => said(t('Erased'), body.reason)
};

/** Kinds are an open set: one that is not known is shown as it is. */
export function sayEvent(event: Event, t: Translate): Said {
  if (event.body === null) {
    return said(event.kind, t('erased'));
  }
  const body = (event.body ?? {}) as Body;
  const known = SAY[event.kind];
  return known ? known(body, t) : said(event.kind, body);
}

/** A task's or a draft's words in one line. */
export function oneLine(value: unknown, most = 200): string {
  const flat = text(value).replace(/\s+/g, ' ').trim();
  return flat.length > most ? `${flat.slice(0, most)}…` : flat;
}

/** Who acts: an agent, or somebody's kernel (`~name`). */
export function actor(agent: string, t: Translate): string {
  return agent.startsWith('~') ? t('notebook: %1', agent.slice(1)) : agent;
}

const STATES = (t: Translate): { [state: string]: string } => ({
  queued: t('queued'), assigned: t('assigned'), running: t('running'), waiting: t('waiting'), cancelling: t('cancelling'), succeeded: t('succeeded'),
  failed: t('failed'), cancelled: t('cancelled')
});
const WAITS = (t: Translate): { [waiting: string]: string } => ({
  approval: t('approval'), in_doubt: t('in doubt'), paused: t('paused'), budget: t('budget'), question: t('question'), timer: t('timer'), child: t('child'),
  after: t('after'), restored: t('restored'), place: t('a place')
});

/** Status and what it waits for. */
export function statusWord(status: string, waiting: string | null | undefined, t: Translate): string {
  const word = STATES(t)[status] ?? status;
  return waiting ? `${word}: ${WAITS(t)[waiting] ?? waiting.replace(/_/g, ' ')}` : word;
}

export const ENDED: ReadonlySet<string> = new Set(['succeeded', 'failed', 'cancelled']);
