// The farm page: agents, tasks, the live steps of a run. What models and tools said is only ever text.

const page = document.querySelector('meta[name="farm"]').dataset;
const api = `${page.base}api/v1`;
const $$ = id => document.getElementById(id);
const ENDED = ['succeeded', 'failed', 'cancelled'];
const state = { agents: [], tasks: new Map(), older: null, chosen: null, follow: null };

// -- asking the farm ---------------------------------------------------------------------------------------------

async function ask(method, path, body) {
  const headers = { 'X-XSRFToken': page.xsrf, Accept: 'application/json' };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  if (method !== 'GET') headers['Idempotency-Key'] = once();
  const answer = await fetch(api + path, {
    method, headers, credentials: 'same-origin', body: body === undefined ? undefined : JSON.stringify(body)
  });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer.status, said);
  return said;
}

class Problem extends Error {
  constructor(status, said) {
    super([said.detail || `The farm answered ${status}.`, said.hint].filter(Boolean).join(' — '));
    this.status = status;
  }
}

// randomUUID exists on https and localhost alone; a key of random numbers does everywhere.
const once = () => [...crypto.getRandomValues(new Uint32Array(4))].map(n => n.toString(16)).join('-');
const pause = (seconds, signal) => new Promise(done => {
  const timer = setTimeout(done, seconds * 1000);
  signal?.addEventListener('abort', () => { clearTimeout(timer); done(); });
});

// Server-sent events by fetch: EventSource cannot send the XSRF header. Goes on after `after` when the line was cut.
async function* follow(path, after, signal) {
  let wait = 0.5;
  while (!signal.aborted) {
    try {
      const answer = await fetch(api + path, {
        headers: { 'X-XSRFToken': page.xsrf, Accept: 'text/event-stream', ...(after ? { 'Last-Event-ID': String(after) } : {}) },
        credentials: 'same-origin', signal
      });
      if (answer.status === 401) return location.reload();
      if (answer.status === 404 || answer.status === 403) return;
      if (!answer.ok) throw new Problem(answer.status, {});
      wait = 0.5;
      for await (const event of events(answer.body)) {
        if (event.id) after = event.id;
        yield event;
      }
      if (path.startsWith('/runs/')) return;
    } catch (error) {
      if (signal.aborted) return;
      yield { away: true };
    }
    await pause(wait * (0.75 + Math.random() / 2), signal);
    wait = Math.min(wait * 2, 10);
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    for (let end; (end = rest.indexOf('\n\n')) >= 0; rest = rest.slice(end + 2)) {
      const event = { event: 'message', data: '' };
      for (const line of rest.slice(0, end).split('\n')) {
        const colon = line.indexOf(':');
        if (colon > 0) event[line.slice(0, colon)] = line.slice(colon + 1).replace(/^ /, '');
      }
      yield event.data ? { ...event, id: Number(event.id || 0), data: JSON.parse(event.data) } : { here: true };
    }
  }
}

// -- drawing -----------------------------------------------------------------------------------------------------

function make(name, values = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(values)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (key === 'text') element.textContent = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const badge = (word, name = word) => make('span', { class: 'badge', 'data-state': name, text: word });
const clock = at => new Date(at).toLocaleTimeString([], { hour12: false });
const text = value => (typeof value === 'string' ? value : JSON.stringify(value, null, 1));
const link = (word, name) => { $$('link').textContent = word; $$('link').dataset.state = name; };

function drawAgents() {
  $$('agents').replaceChildren(...state.agents.map(agent => make('li', {},
    make('div', { class: 'row', title: agent.draft.description || '' },
      make('span', { class: 'grow', text: agent.name }),
      make('span', { class: 'quiet', text: agent.rights === 'owner' ? '' : `${agent.owner}’s` }),
      agent.published ? badge(`version ${agent.published}`, 'published') : badge('draft', 'draft')))));
  $$('no-agents').hidden = state.agents.length > 0;
  const select = $$('submit').elements.target, before = select.value;
  const open = state.agents.filter(agent => agent.published && agent.rights !== 'view');
  const pools = [...new Set(open.map(agent => agent.pool).filter(Boolean))].map(pool => `pool:${pool}`);
  select.replaceChildren(...[...open.map(agent => agent.name), ...pools].map(name => make('option', { value: name, text: name })));
  if (before) select.value = before;
}

function drawTasks() {
  const tasks = [...state.tasks.values()].sort((a, b) => (a.task_id < b.task_id ? 1 : -1));
  $$('tasks').replaceChildren(...tasks.map(task => make('li', { 'data-status': task.status },
    make('button', { class: 'row', type: 'button', 'aria-pressed': String(task.task_id === state.chosen), onclick: () => choose(task.task_id) },
      make('span', { class: 'grow', text: text(task.input) }),
      make('span', { class: 'quiet', text: task.agent || task.target }),
      badge(task.waiting ? `${task.status}: ${task.waiting.replace('_', ' ')}` : task.status, task.status)))));
  $$('no-tasks').hidden = tasks.length > 0;
  $$('more').hidden = !state.older;
  const chosen = state.tasks.get(state.chosen);
  $$('cancel').hidden = !chosen || ENDED.includes(chosen.status);
  drawFacts(chosen);
}

function drawFacts(task) {
  $$('run-facts').hidden = !task;
  if (!task) return;
  const facts = [task.run_id || 'no run yet', `mode ${task.mode}`, `submitted by ${task.submitted_by}`, task.note];
  if (task.error) facts.push(task.error.message);
  $$('run-facts').textContent = facts.filter(Boolean).join(' · ');
}

// What each kind of event says to a person: [title, text, look].
const SAY = {
  'run.created': body => ['Run created', body.version ? `version ${body.version}` : 'draft'],
  'message.added': body => [body.role === 'system' ? 'Prompt' : body.role === 'user' ? 'Input' : body.role, text(body.content)],
  'thread.continued': body => ['Goes on from', body.run],
  'run.leased': body => [`Taken by ${body.worker}`, '', 'run'],
  'worker.died': body => ['Proven dead', body.proof],
  'run.requeued': body => ['Queued again', [body.reason, body.proof].filter(Boolean).join(': '), 'wait'],
  'run.parked': body => ['Waits', body.reason, 'wait'],
  'run.paused': body => ['Paused', body.reason || '', 'wait'],
  'run.resumed': () => ['Resumed', ''],
  'run.cancel_requested': body => ['Asked to stop', body.reason, 'wait'],
  'run.cancelled': body => ['Cancelled', body.reason || '', 'bad'],
  'run.succeeded': body => ['Result', text(body.result ?? ''), 'good'],
  'run.failed': body => ['Failed', body.error?.message || '', 'bad'],
  'model.requested': body => [`Asks ${body.model}`, body.attempt > 1 ? `attempt ${body.attempt}` : '', 'run'],
  'model.replied': body => ['Reply', reply(body.message), 'good'],
  'model.reported': body => ['Reply (reported by the worker)', reply(body.message)],
  'model.failed': body => ['The model failed', body.error?.message || '', 'bad'],
  'tool.started': body => [`Calls ${body.tool}`, body.effect, 'run'],
  'tool.succeeded': body => ['Outcome', text(body.result ?? ''), 'good'],
  'tool.failed': body => ['The call failed', body.error?.message || '', 'bad'],
  'tool.probed': body => ['The probe was asked', `${body.answer} ${body.reason || ''}`],
  'tool.doubted': body => ['In doubt', body.reason, 'wait'],
  'tool.resolved': body => ['Decided', `${body.decision} ${body.reason || ''}`],
  'child.submitted': body => [`Delegates to ${body.target}`, text(body.input), 'wait'],
  'child.finished': body => [`The delegated task: ${body.status}`, body.error?.message || text(body.result ?? ''), body.status === 'succeeded' ? 'good' : 'bad'],
  'timer.set': body => ['Rests until', body.until, 'wait'],
  'timer.fired': () => ['The time has come', '', 'good'],
  'question.asked': body => ['Asks a person', [body.question, ...(body.choices || [])].join('\n'), 'wait'],
  'question.answered': body => ['Answered', text(body.result ?? ''), 'good'],
  'question.refused': body => ['Not answered', body.reason || '', 'bad'],
  'question.expired': body => ['Not answered', body.reason, 'bad'],
  'memory.remembered': body => [`Remembers ${body.key}`, text(body.value ?? '')],
  'memory.forgotten': body => [`Forgets ${body.key}`, ''],
  'approval.requested': body => [`${body.tool} waits for approval`, body.why || '', 'wait'],
  'simulation.requested': body => [`${body.tool} waits for an answer`, body.why || '', 'wait'],
  'simulation.answered': body => ['Answered', text(body.result ?? body.error?.message ?? '')],
  'approval.voted': body => ['One approves', body.arguments ? text(body.arguments) : ''],
  'approval.expired': body => ['Approval expired', body.reason, 'bad'],
  'approval.escalated': body => ['Shown to more people', body.to || 'operators'],
  'approval.given': body => ['Approved', body.arguments ? text(body.arguments) : '', 'good'],
  'approval.refused': body => ['Refused', body.reason || '', 'bad']
};

function reply(message) {
  const calls = (message?.tool_calls || []).map(call => `${call.function.name}(${call.function.arguments})`);
  return [message?.content, ...calls].filter(Boolean).join('\n');
}

function drawStep(event) {
  const body = event.body || {};
  const [title, said, look] = (SAY[event.kind] || (() => [event.kind, text(body)]))(body);
  const head = make('div', { class: 'step-head' }, make('b', { text: title }), make('span', { class: 'spring' }), make('time', { datetime: event.at, text: clock(event.at), title: `event ${event.seq} by ${event.by}` }));
  const step = make('li', { 'data-kind': event.kind, 'data-look': look || '', 'data-seq': event.seq }, head);
  if (said) step.append(make('p', { class: 'step-text', text: said }));
  $$('steps').append(step);
}

function drawInbox(items) {
  $$('inbox-part').hidden = items.length === 0;
  $$('inbox').replaceChildren(...items.map(item => make('li', {},
    make('div', { class: 'row' },
      make('span', { class: 'grow', text: `${item.kind === 'question' ? 'a question' : item.detail.tool || 'a call'} of ${item.agent}` }),
      badge(item.kind.replace('_', ' '), 'waiting')),
    item.detail.why || item.worker ? make('p', { class: 'step-text', text: item.detail.why || item.worker }) : '',
    make('p', { class: 'step-text mono', text: text(item.detail.question ?? item.detail.arguments ?? item.detail) }),
    ...(page.approver ? [decisions(item)] : []))));
}

function decisions(item) {
  if (item.kind === 'question') return answering(item);
  const words = {
    simulation: [['answer', 'Answer'], ['refuse', 'Refuse']],
    in_doubt: [['happened', 'It happened'], ['not_happened', 'It did not: call again'], ['give_up', 'Give the run up']]
  }[item.kind] || [['approve', 'Approve'], ['refuse', 'Refuse']];
  const told = item.kind === 'simulation' || item.kind === 'in_doubt';
  const result = make('input', { placeholder: 'Result, as JSON or text', 'aria-label': 'Result' });
  const edited = make('input', { placeholder: 'Other arguments, as JSON', 'aria-label': 'Other arguments' });
  const reason = make('input', { placeholder: 'Reason', 'aria-label': 'Reason' });
  const buttons = words.map(([decision, word]) => make('button', { type: 'button', class: 'plain', text: word, onclick: async () => {
    const more = told && result.value ? { result: value(result.value) }
      : decision === 'approve' && edited.value ? { arguments: value(edited.value) } : {};
    await shown(() => ask('POST', `/inbox/${item.inbox_id}`, { decision, reason: reason.value, ...more }));
    await loadInbox();
  } }));
  return make('div', { class: 'decide' }, ...(told ? [result] : item.kind === 'approval' ? [edited] : []), reason, ...buttons);
}

function value(text) {
  try { return JSON.parse(text); } catch { return text; }
}

/** A field, or the choices, for the answer; where a schema says more than text, JSON. */
function answering(item) {
  const { choices, schema } = item.detail;
  const given = choices
    ? make('select', { 'aria-label': 'Answer' }, ...choices.map(one => make('option', { value: one, text: one })))
    : make('input', { placeholder: schema ? 'Answer (JSON)' : 'Answer', 'aria-label': 'Answer' });
  const send = async decision => {
    await shown(() => {
      const result = schema ? JSON.parse(given.value || 'null') : given.value;
      return ask('POST', `/inbox/${item.inbox_id}`, decision === 'answer' ? { decision, result } : { decision, reason: given.value });
    });
    await loadInbox();
  };
  const buttons = [['answer', 'Answer'], ['refuse', 'Do not answer']].map(([decision, word]) =>
    make('button', { type: 'button', class: 'plain', text: word, onclick: () => send(decision) }));
  return make('div', { class: 'decide' }, given, ...buttons);
}

// -- doing -------------------------------------------------------------------------------------------------------

async function shown(action) {
  $$('problem').hidden = true;
  try {
    return await action();
  } catch (error) {
    $$('problem').textContent = error.message;
    $$('problem').hidden = false;
    return null;
  }
}

async function loadAgents() { state.agents = (await ask('GET', '/agents?limit=500')).items; drawAgents(); }
async function loadInbox() { drawInbox((await ask('GET', '/inbox')).items); }

async function loadTasks(cursor = '') {
  const answer = await ask('GET', `/tasks?limit=30${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
  for (const task of answer.items) state.tasks.set(task.task_id, task);
  if (cursor || state.older === null) state.older = answer.next;
  drawTasks();
}

async function choose(task_id) {
  state.follow?.abort();
  state.follow = new AbortController();
  const { signal } = state.follow;
  state.chosen = task_id;
  history.replaceState(null, '', `#${task_id}`);
  $$('steps').replaceChildren();
  $$('words').hidden = true;
  $$('no-run').hidden = true;
  drawTasks();
  let run = state.tasks.get(task_id)?.run_id;
  while (!run && !signal.aborted) {
    const task = await ask('GET', `/tasks/${task_id}`).catch(() => null);
    if (task) { state.tasks.set(task_id, task); drawTasks(); run = task.run_id; if (ENDED.includes(task.status) && !run) return; }
    if (!run) await pause(1, signal);
  }
  if (signal.aborted) return;
  tokens(run, signal);
  for await (const event of follow(`/runs/${run}/events`, 0, signal)) {
    if (signal.aborted) return;
    if (!event.data) continue;
    if (event.data.kind === 'model.replied') { $$('words').textContent = ''; $$('words').hidden = true; }
    drawStep(event.data);
  }
}

// The model's words while it speaks; the recorded reply replaces them.
async function tokens(run, signal) {
  for await (const event of follow(`/runs/${run}/tokens`, 0, signal)) {
    if (signal.aborted) return;
    if (!event.data?.content) continue;
    $$('words').textContent += event.data.content;
    $$('words').hidden = false;
  }
}

// One stream of all changes keeps the lists right; bursts are drawn once.
async function listen() {
  let due = null;
  const refresh = () => { due ??= setTimeout(() => { due = null; reload(); }, 150); };
  for await (const event of follow('/events', 0, new AbortController().signal)) {
    if (event.away) { link('reconnecting', 'away'); continue; }
    if (event.here) {
      if ($$('link').dataset.state !== 'live') reload();
      link('live', 'live');
    }
    if (event.data) refresh();
  }
}

async function reload() {
  try {
    await Promise.all([loadAgents(), loadTasks(), loadInbox()]);
  } catch (error) {
    if (error.status === 401) location.reload();
  }
}

$$('submit').addEventListener('submit', async event => {
  event.preventDefault();
  const form = event.target, button = form.querySelector('button');
  button.disabled = true;
  const task = await shown(() => ask('POST', '/tasks', {
    target: form.elements.target.value, input: form.elements.input.value, mode: form.elements.mode.value
  }));
  button.disabled = false;
  if (!task) return;
  form.elements.input.value = '';
  state.tasks.set(task.task_id, task);
  await choose(task.task_id);
});
$$('submit').elements.input.addEventListener('keydown', event => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) $$('submit').requestSubmit();
});
$$('cancel').addEventListener('click', () => shown(async () => {
  const task = await ask('POST', `/tasks/${state.chosen}/cancel`, { reason: `by ${page.person} at the farm page` });
  state.tasks.set(task.task_id, task);
  drawTasks();
}));
$$('more').addEventListener('click', () => shown(() => loadTasks(state.older)));

await shown(reload);
const wanted = location.hash.slice(1);
if (/^task-[0-9a-f]+$/.test(wanted)) choose(wanted);
listen();
