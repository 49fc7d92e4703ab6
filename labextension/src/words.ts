/** What an event says to a person. Pure; views draw it as text. */
import type { Event } from './protocol';

export interface Said {
  title: string;
  text: string;
  look: 'good' | 'bad' | 'wait' | 'run' | 'quiet';
}

type Body = Record<string, unknown>;

const text = (value: unknown): string => value === undefined || value === null ? '' : typeof value === 'string' ? value : JSON.stringify(value, null, 1);
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

const ROLES: { [role: string]: string } = { system: 'Prompt', user: 'Input', assistant: 'Reply', tool: 'Outcome' };

const SAY: { [kind: string]: (body: Body) => Said } = {
  'run.created': body => said('Run created', body.version ? `version ${text(body.version)}` : 'draft'),
  'message.added': body => said(ROLES[text(body.role)] ?? text(body.role), body.content),
  'thread.continued': body => said('Goes on from', body.run),
  'run.forked': body => said(`Forked before reply ${Number(body.step) + 1}`, body.run),
  'run.leased': body => said(`Taken by ${text(body.worker)}`, '', 'run'),
  'worker.died': body => said('Proven dead', body.proof),
  'run.requeued': body => said('Queued again', [body.reason, body.proof].filter(Boolean).join(': '), 'wait'),
  'run.parked': body => said('Waits', body.reason, 'wait'),
  'run.paused': body => said('Paused', body.reason, 'wait'),
  'run.resumed': () => said('Resumed'),
  'run.restored': () => said('Restored from a backup', '', 'wait'),
  'run.interrupted': body => said('Interrupted', body.reason, 'wait'),
  'run.cancel_requested': body => said('Asked to stop', body.reason, 'wait'),
  'run.cancelled': body => said('Cancelled', body.reason, 'bad'),
  'run.succeeded': body => said('Result', body.result, 'good'),
  'run.failed': body => said('Failed', message(body), 'bad'),
  'model.requested': body => said(`Asks ${text(body.model)}`, Number(body.attempt) > 1 ? `attempt ${text(body.attempt)}` : '', 'run'),
  'model.replied': body => said('Reply', replyText(body.message), 'good'),
  'model.reported': body => said('Reply (reported by the worker)', replyText(body.message)),
  'model.failed': body => said('The model failed', message(body), 'bad'),
  'context.compacted': body => said('Context summarised', body.summary),
  'tool.started': body => said(`Calls ${text(body.tool)}`, body.effect, 'run'),
  'tool.succeeded': body => said('Outcome', body.result, 'good'),
  'tool.failed': body => said('The call failed', message(body), 'bad'),
  'tool.probed': body => said('The probe was asked', lines(body.answer, body.reason)),
  'tool.doubted': body => said('In doubt', body.reason, 'wait'),
  'tool.resolved': body => said('Decided', lines(body.decision, body.reason)),
  'child.submitted': body => said(`Delegates to ${text(body.target)}`, body.input, 'wait'),
  'child.finished': body => said(`The delegated task: ${text(body.status)}`, message(body) || body.result, body.status === 'succeeded' ? 'good' : 'bad'),
  'timer.set': body => said('Rests until', body.until, 'wait'),
  'timer.fired': () => said('The time has come', '', 'good'),
  'question.asked': body => said('Asks a person', lines(body.question, ...((body.choices as string[] | undefined) ?? [])), 'wait'),
  'question.answered': body => said('Answered', body.result, 'good'),
  'question.refused': body => said('Not answered', body.reason, 'bad'),
  'question.expired': body => said('Not answered', body.reason, 'bad'),
  'memory.remembered': body => said(`Remembers ${text(body.key)}`, body.value),
  'memory.forgotten': body => said(`Forgets ${text(body.key)}`),
  'approval.requested': body => said(`${text(body.tool)} waits for approval`, body.why, 'wait'),
  'approval.voted': body => said('One approves', body.arguments),
  'approval.given': body => said('Approved', body.arguments, 'good'),
  'approval.refused': body => said('Refused', body.reason, 'bad'),
  'approval.expired': body => said('Approval expired', body.reason, 'bad'),
  'approval.escalated': body => said('Shown to more people', body.to ?? 'operators'),
  'simulation.requested': body => said(`${text(body.tool)} waits for an answer`, body.why, 'wait'),
  'simulation.answered': body => said('Answered', body.result ?? message(body)),
  'budget.reached': body => said('Budget reached', body.why, 'wait'),
  'budget.allowed': body => said(body.amount === undefined ? 'Budget waived' : `Budget waived by ${text(body.amount)}`, body.reason, 'good'),
  'budget.refused': body => said('Budget refused', body.reason, 'bad'),
  'budget.freed': () => said('The budget has room again', '', 'good'),
  'value.recorded': body => said(`Value ${text(body.name)}`, body.value),
  'person.executed': body => said('A person executed', body.code),
  'body.erased': body => said('Erased', body.reason)
};

/** Kinds are an open set: one that is not known is shown as it is. */
export function sayEvent(event: Event): Said {
  if (event.body === null) {
    return said(event.kind, 'erased');
  }
  const body = (event.body ?? {}) as Body;
  const known = SAY[event.kind];
  return known ? known(body) : said(event.kind, body);
}

/** A task's or a draft's words in one line. */
export function oneLine(value: unknown, most = 200): string {
  const flat = text(value).replace(/\s+/g, ' ').trim();
  return flat.length > most ? `${flat.slice(0, most)}…` : flat;
}

/** Who acts: an agent, or somebody's kernel (`~name`). */
export function actor(agent: string): string {
  return agent.startsWith('~') ? `notebook: ${agent.slice(1)}` : agent;
}

/** Status and what it waits for. */
export function statusWord(status: string, waiting?: string | null): string {
  return waiting ? `${status}: ${waiting.replace(/_/g, ' ')}` : status;
}

export const ENDED: ReadonlySet<string> = new Set(['succeeded', 'failed', 'cancelled']);
