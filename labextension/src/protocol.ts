// Written by scripts/protocol_ts.py from the service's table of routes; changed there, never here.

export type Mode = 'live' | 'ask' | 'simulate';
export type Status = 'queued' | 'assigned' | 'running' | 'waiting' | 'cancelling' | 'succeeded' | 'failed' | 'cancelled';
export type Waiting = 'approval' | 'in_doubt' | 'paused' | 'budget' | 'question' | 'timer' | 'child' | 'after' | 'restored' | 'place';
export type ToolEffect = 'read' | 'idempotent' | 'once';

/** A page of a list; `next` is the cursor of the following one. */
export interface Listed<T> {
  items: T[];
  next?: string | number | null;
}

/** A call and what may be done with it. */
export interface AdmittedCall {
  call: string;
  tool: string;
  arguments?: { [name: string]: unknown };
  state?: 'admitted' | 'answered' | 'awaiting' | 'failed' | 'probe';
  key?: string;
  attempt?: number;
  error?: string;
  result?: unknown;
  secrets?: { [name: string]: string };
}

export interface After {
  after?: number;
}

/** `confirm`: the effects of the old run are known, and may happen a second time. */
export interface Again {
  confirm?: boolean;
}

export interface AgentView {
  name: string;
  owner: string;
  pool: string | null;
  draft: Definition;
  draft_rev: number;
  published: number | null;
  created_at: string;
  retired_at: string | null;
  rights: string;
  user: string;
  editors?: EditorView[];
  edited_by?: string | null;
  edited_at?: string | null;
  server?: ServerState | null;
}

export interface AgentsPage {
  limit?: number;
  cursor?: string;
  pool?: string | null;
  retired?: boolean;
}

/** `cursor`: the number of the last anchor that is known. `newest`: from the last one back. */
export interface AnchorPage {
  limit?: number;
  cursor?: number;
  newest?: boolean;
}

export interface AnchorView {
  number: number;
  anchor: string;
  signature: string;
}

export interface AppendAnswer {
  n: number;
  seq: number;
  head: string;
  admitted?: AdmittedCall[];
  inbox?: Event[];
  token?: string;
}

/** POST /runs/{id}/events. `events` stay raw: their bytes are the digest by which a repeat is known. */
export interface AppendRequest {
  fence: number;
  n: number;
  events: unknown;
}

/** `agentfarm`: a ModelRequest. A plain OpenAI request gives `messages`; the run's version says model and tools. */
export interface Asked {
  agentfarm?: ModelRequest | null;
  messages?: { [name: string]: unknown }[] | null;
  stream?: boolean;
  model?: string;
}

export interface BatchView {
  batch_id: string;
  owner: string;
  submitted_by: string;
  key: string | null;
  created_at: string;
  tasks: number;
  counts: { [name: string]: number };
}

/** `from` and `to`: numbers of versions; left out: the published one, and the draft. */
export interface Between {
  from?: number | null;
  to?: number | null;
}

export interface Bound {
  run: string;
  task: string;
  fence: number;
  token: string;
  lease: number;
  epoch: string;
}

/** A run driven by the kernel that asks: it never enters the queue. */
export interface BoundRun {
  definition: Definition;
  input: unknown;
  name?: string;
  mode?: 'ask' | 'live' | 'simulate' | null;
  simulate?: Simulate | null;
  variables?: { [name: string]: string };
  fork?: ForkOf | null;
}

export interface Broken {
  run_id: string;
  bad_seq: number | null;
  why: string;
}

/** `spent`: in the present period; `reserved`: by requests under way; `warning`: why it cannot be kept, "" where it can. */
export interface BudgetView {
  scope: string;
  name: string;
  unit: string;
  period: string;
  amount: number | null;
  action: string;
  spent: number;
  reserved: number;
  left: number | null;
  set_by: string;
  set_at: string | null;
  warning?: string;
  waived?: string[];
}

/** `seconds`: from the first start to the outcome, as the ledger saw it. */
export interface CallView {
  call: string;
  tool: string;
  state: string;
  effect: string;
  attempts: number;
  started_at?: string | null;
  ended_at?: string | null;
  seconds?: number | null;
}

/** What is left out stays. */
export interface CaseChange {
  name?: string;
  expect?: Check[];
  input?: unknown;
  variables?: { [name: string]: string };
  mode?: 'ask' | 'simulate';
  simulate?: Simulate | null;
}

export interface CaseRun {
  batch_id: string;
  created_at: string;
  submitted_by: string;
  totals: Total[];
  items?: Tried[];
}

export interface CaseView {
  case_id: string;
  agent: string;
  name: string;
  input: unknown;
  variables: { [name: string]: string };
  expect: { [name: string]: unknown }[];
  mode: string;
  simulate: { [name: string]: unknown } | null;
  from_run: string | null;
  created_at: string;
  created_by: string;
  changed_at: string;
}

/** `after`: the last number that is known; 0: from now on. `bodies` false: events come without their bodies. */
export interface Changes {
  after?: number;
  bodies?: boolean;
  state?: boolean;
}

/** What a result is held against. exact: `value`; contains: `text`, `ignore_case`; schema: `schema` (JSON Schema); python: `code`, */
export interface Check {
  kind: 'contains' | 'exact' | 'judge' | 'python' | 'schema';
  value?: unknown;
  text?: string | null;
  ignore_case?: boolean;
  schema?: { [name: string]: unknown } | null;
  code?: string | null;
  question?: string | null;
  model?: string;
}

export interface Claim {
  run: string;
  fence: number;
  token: string;
  lease: number;
  agent: string;
  definition: string;
  fresh_kernel?: boolean;
}

export interface ClaimRequest {
  worker: string;
  claim_id: string;
  wait?: number;
  kernels?: string[];
  scratch?: boolean;
}

/** `hours`: how long the token is good for. */
export interface ConnectWish {
  hours?: number;
}

/** What an editor needs. While the server is not up (status 202) there is no token yet: `note` says how far it is, ask again. */
export interface Connected {
  ready: boolean;
  pending?: string | null;
  note?: string;
  url: string;
  user: string;
  token?: string;
  expires_at?: string | null;
  connection_id?: string;
  server_url?: string;
}

export interface ConnectionView {
  connection_id: string;
  person: string;
  created_at: string;
  expires_at: string;
}

/** How many tasks there are of each status; those that there are none of are left out. */
export interface Counts {
  total: number;
  counts: { [name: string]: number };
}

/** For an approval: approve (with other `arguments`, if need be) or refuse. For a call in doubt: happened (with its */
export interface Decision {
  decision: 'answer' | 'approve' | 'give_up' | 'given_up' | 'happened' | 'not_happened' | 'refuse';
  reason?: string;
  arguments?: { [name: string]: unknown } | null;
  result?: unknown;
  force?: boolean;
}

/** What a version fixes. Its content hash is over the canonical JSON of the fields that differ from their defaults: */
export interface Definition {
  prompt?: string;
  model?: ModelSpec;
  tools?: ToolSpec[];
  limits?: Limits;
  tool_choice?: string | string[];
  answer?: { [name: string]: unknown } | null;
  variables?: { [name: string]: string };
  fresh_kernel?: boolean;
  description?: string;
}

export interface Difference {
  path: string;
  from: unknown;
  to: unknown;
}

/** What is left out stays. */
export interface DraftChange {
  pool?: string | null;
  draft?: { [name: string]: unknown } | null;
  definition?: { [name: string]: unknown } | null;
  files?: { [name: string]: string };
}

/** until: what a server may finish before it is stopped: the step in hand, whole runs; `move`: nothing, `kill`: without grace. */
export interface Drain {
  reason?: string;
  until?: 'finish-run' | 'finish-step' | 'kill' | 'move';
  deadline?: number | string | null;
  dry_run?: boolean;
  besides?: string[];
}

/** How far a drain is: of so many workspaces `left` are there still, `moving` of them on their way. deadline: null: none. */
export interface DrainView {
  until: string;
  deadline?: unknown;
  reason?: string;
  by?: string;
  began?: unknown;
  of?: number;
  left?: number;
  moving?: number;
  moved?: number;
}

/** `drain`: null where none was begun, or it has ended. `items`: what is still there of it, or would leave by it. */
export interface Draining {
  microserver: string;
  drain: DrainView | null;
  items: Resident[];
}

/** In what the asker can open an agent's server; `url` of vscode is what to type into "Remote to JupyterHub". */
export interface EditorView {
  name: 'code-server' | 'lab' | 'vscode';
  title: string;
  url: string;
}

/** A call that did something in the world, or may have. `arguments`: JSON text. */
export interface Effect {
  call: string;
  tool: string;
  arguments: string;
  effect: string;
  state: string;
  key: string;
}

/** A body without fields. */
export interface Empty {
}

/** `value`: JSON. `run_id`: the run that remembered it. */
export interface Entry {
  key: string;
  value: unknown;
  run_id: string;
  changed_at: string;
}

/** How many bodies and blobs went. `left`: what holds words of the run still, and this did not reach. */
export interface ErasedView {
  run_id: string;
  bodies: number;
  blobs: number;
  seq: number;
  head: string;
  left: Left[];
}

/** What is to go: events by number, all of a kind, or all that may go; of an ended run. */
export interface Erasure {
  reason: string;
  seqs?: number[];
  kinds?: string[];
  all?: boolean;
  memory?: boolean;
}

export interface ErasureWhy {
  reason: string;
}

/** A recorded event as readers get it. `body` is JSON as kept, or null where it was erased. */
export interface Event {
  run: string;
  seq: number;
  kind: string;
  at: string;
  by: string;
  call?: string | null;
  hash?: string;
  body?: unknown;
}

export interface EventsPage {
  after?: number;
  limit?: number;
}

/** `agent`: whose server; or `task`: the server of the agent that has it, and why the task waits. */
export interface Explained {
  agent?: string;
  task?: string;
}

/** `microserver`: where the server is, or belongs; `stands`: it has its place there now, and `why_here` says why. */
export interface Explanation {
  unit?: string;
  agent?: string;
  microserver?: string | null;
  stands?: boolean;
  why_here?: string;
  reasons?: { [name: string]: string | null };
  feasible?: string;
  change?: string;
  why?: string;
  rank?: string;
  demand?: { [name: string]: unknown };
  gpus?: number[];
  queue?: string[];
  members?: { [name: string]: string | null };
}

/** `after`: the number of the last event that is known; numbers only grow. */
export interface ExportPage {
  after?: number;
  limit?: number;
}

/** An event. header, body: the texts that were hashed (body null: erased); salt, digest: hex. `id` only grows. */
export interface Exported {
  id: number;
  run: string;
  seq: number;
  hash: string;
  header: string;
  salt: string | null;
  body: string | null;
  n: number | null;
  digest: string | null;
}

export interface FarmWhy {
  reason?: string;
}

/** `status`: one, or several with commas. `since`, `until`: ISO 8601, of when it was submitted. `text` stands in input or result. */
export interface Filter {
  status?: string | null;
  agent?: string | null;
  owner?: string | null;
  mode?: string | null;
  since?: string | null;
  until?: string | null;
  text?: string | null;
  thread?: string | null;
  batch?: string | null;
  parent?: string | null;
}

/** Begin with the messages of a run before reply number `step`; then the prompt of `definition` and `input`, where given. */
export interface ForkOf {
  run: string;
  step: number;
  prompt?: boolean;
}

/** `tool`: what a draft takes (its `source` names the file); null where it cannot be used: then `problem` and `hint` say why. */
export interface FoundTool {
  file: string;
  line: number;
  name: string;
  tool?: { [name: string]: unknown } | null;
  problem?: string;
  hint?: string;
}

export interface Gain {
  gain?: number | null;
}

/** `status`: ok, degraded with `problems`, or standby: another service leads. `page`: the farm's page, for browsers ("": not known). */
export interface Health {
  status: string;
  version: string;
  epoch: string;
  database: string;
  model: { [name: string]: unknown } | null;
  problems: string[];
  page?: string;
  generation?: number;
}

/** When a microserver's own figures keep new servers away from it; 0 switches one off. */
export interface HealthLimits {
  disk_free?: number;
  clock_off?: number;
  memory_pressure?: number;
  calm_seconds?: number;
}

/** A taint that comes and goes by itself. */
export interface HealthTaint {
  reason: string;
  since: string | null;
}

export interface HeartbeatAnswer {
  lease: number;
  token: string;
  inbox?: Event[];
}

export interface HeartbeatRequest {
  fence: number;
  dead?: string | null;
}

/** `all`: also what was decided. `decided`: only that, newest first. `escalated`: only what waited too long for those whom it was shown first. */
export interface InboxPage {
  limit?: number;
  cursor?: string;
  all?: boolean;
  decided?: boolean;
  escalated?: boolean;
}

export interface InboxView {
  inbox_id: string;
  run_id: string;
  call: string;
  kind: string;
  agent: string;
  owner: string;
  detail: { [name: string]: unknown };
  asked_at: string;
  decided_at: string | null;
  decision: string | null;
  decided_by: string | null;
  reason: string | null;
  votes?: { [name: string]: unknown }[];
  expires_at?: string | null;
  escalated_at?: string | null;
  escalate_to?: string | null;
  worker?: string | null;
  may_decide?: boolean | null;
}

/** What a machine needs that joins: the farm's public key, its id, the SHA-256 of the helper of its release. */
export interface Joining {
  public_key: string;
  farm: string;
  helper: string;
  microservers: { [name: string]: Known };
}

/** A workspace: the snapshot that was taken, or is restored (null: none), and why. changed: files written meanwhile. */
export interface Kept {
  user: string;
  snapshot: string | null;
  bytes?: number;
  changed?: number;
  why?: string;
}

/** A machine that has joined. `ssh`: how the farm reaches it, `login`: how operators sign in there. */
export interface Known {
  ssh: string;
  login: string;
  host_keys: string[];
}

/** A place that still holds words of an erased run. `what`: run, memory, stubs, case or blob; `where`: its id, or the key. */
export interface Left {
  what: string;
  where: string;
  why: string;
}

/** None = no limit of this kind. seconds: wall time of the run from its first lease, without those that it was parked; cost in USD. */
export interface Limits {
  steps?: number | null;
  calls?: number | null;
  tokens?: number | null;
  seconds?: number | null;
  cost?: number | null;
}

/** `lines`: at most so many. `after`: the cursor of the last answer; "": the log's end. `wait`: seconds for lines to come, behind a cursor. */
export interface LogPlace {
  lines?: number;
  after?: string;
  wait?: number;
}

/** `lines`: as the server, and what it started, wrote them: text of programs, to be shown as nothing else. `cursor`: for `after`. */
export interface LogView {
  agent: string;
  microserver: string;
  lines: string[];
  cursor: string;
}

/** `key`, or words that all must stand in key or value. */
export interface Look {
  key?: string;
  query?: string;
  limit?: number;
}

/** restore: a snapshot by its name, or `latest`; without_workspace: they begin without files. agents: only these. */
export interface Lost {
  reason?: string;
  restore?: string;
  without_workspace?: boolean;
  agents?: string[];
}

/** Labels and taints one by one: null takes one away, what is left out stays. A taint's value is its reason. */
export interface Marks {
  labels?: { [name: string]: string | null };
  taints?: { [name: string]: string | null };
  reserve_memory?: number | null;
  reserve_cpu?: number | null;
}

/** `query`: words that all must stand in key or value; then the latest come first, on one page. */
export interface MemoryPage {
  limit?: number;
  cursor?: string;
  query?: string;
}

/** `state`: ready, cordoned, draining; silent: the farm cannot reach it; lost: nor is any run there heard of. `silent`: why, `since` when. Memory and disk in bytes, `load` of the last minute. `agents`: whose servers run there, `people`: people's own (for operators). */
export interface MicroserverView {
  name: string;
  state: string;
  reason?: string;
  silent?: string;
  since?: string | null;
  seen_at?: string | null;
  by?: string;
  at?: unknown;
  rev?: number;
  labels?: { [name: string]: string };
  taints?: { [name: string]: string };
  health?: { [name: string]: HealthTaint };
  promised_memory?: number;
  promised_cpu?: number;
  reserve_memory?: number;
  reserve_cpu?: number;
  gpus?: { [name: string]: unknown }[];
  gpus_taken?: number[];
  gpus_problem?: string;
  cpu_flags?: string[];
  servers?: number;
  agents?: string[];
  people?: PersonsServer[];
  drain?: DrainView | null;
  verbs?: string[];
  cpus?: number;
  load?: number;
  cpu_ratio?: number | null;
  pressure?: { [name: string]: { [name: string]: number } };
  clock_offset?: number | null;
  clock_unsure?: number | null;
  memory?: number;
  memory_free?: number;
  disk?: number;
  disk_free?: number;
  disks?: { [name: string]: unknown }[];
  disks_problem?: string;
  ecc?: { [name: string]: number } | null;
  uptime?: number;
  own_users?: boolean | null;
  isolation?: string;
  avx2?: boolean | null;
  backend?: string;
  ssh?: string;
  os?: string;
  arch?: string;
  kernel?: string;
  version?: unknown;
  login?: string;
  current?: boolean | null;
  measured?: { [name: string]: number };
}

/** A model request of a run, without messages: the gateway folds them from the ledger itself. */
export interface ModelRequest {
  run: string;
  fence: number;
  request: string;
  n: number;
  tool_choice?: string | null;
  messages?: { [name: string]: unknown }[] | null;
  stream?: boolean;
}

export interface ModelSpec {
  name?: string;
  provider?: string | null;
  parameters?: { [name: string]: unknown };
  context?: number | null;
  retry?: Retry;
}

/** `name`: another one than the file says. */
export interface Named {
  name?: string | null;
}

/** `definition` is another word for `draft`. */
export interface NewAgent {
  name: string;
  pool?: string | null;
  draft?: { [name: string]: unknown } | null;
  definition?: { [name: string]: unknown } | null;
  files?: { [name: string]: string };
}

/** `name`: the agent's or the owner's, "" for the farm. `amount`: USD or tokens in the period (UTC); null takes the limit away. */
export interface NewBudget {
  scope: 'agent' | 'farm' | 'owner';
  name?: string;
  unit: 'tokens' | 'usd';
  period: 'day' | 'month' | 'total';
  amount: number | null;
  action?: 'ask' | 'stop';
}

/** `from_run`: its input is taken, and what it recorded answers the calls. `mode` left out: simulate with `simulate` or a run, else ask. */
export interface NewCase {
  name: string;
  expect: Check[];
  input?: unknown;
  variables?: { [name: string]: string };
  mode?: 'ask' | 'simulate' | null;
  simulate?: Simulate | null;
  from_run?: string | null;
}

/** An event before it has a place: as a worker appends it, or as the service records it. */
export interface NewEvent {
  kind: string;
  body?: unknown;
  call?: string | null;
}

/** `step`: before which reply of the model (from 0). `prompt` stands in place of the run's own; `input` is asked next. */
export interface NewFork {
  step?: number;
  prompt?: string | null;
  input?: unknown;
  mode?: 'ask' | 'live' | 'simulate' | null;
  simulate?: Simulate | null;
  version?: number | 'draft' | null;
  variables?: { [name: string]: string };
}

export interface NewSecret {
  name: string;
  value: string;
}

/** `target`: an agent, or `pool:<name>`. `version`: a number, or "draft"; left out: the published one. */
export interface NewTask {
  target?: string;
  input?: unknown;
  priority?: number;
  mode?: 'ask' | 'live' | 'simulate' | null;
  simulate?: Simulate | null;
  key?: string | null;
  thread_id?: string | null;
  thread?: string | null;
  version?: number | 'draft' | null;
  variables?: { [name: string]: string };
  workspace?: 'home' | 'none';
  deadline?: number | string | null;
  requirements?: Requirements;
  after?: string[];
  after_any_end?: boolean;
  results?: boolean;
  retry?: TasksRetry | null;
  concurrency_key?: string | null;
  concurrency?: number;
}

/** One task, or many under `tasks`: all or none, as one batch. The same key of a `batch` adds to it. */
export interface NewTasks {
  target?: string;
  input?: unknown;
  priority?: number;
  mode?: 'ask' | 'live' | 'simulate' | null;
  simulate?: Simulate | null;
  key?: string | null;
  thread_id?: string | null;
  thread?: string | null;
  version?: number | 'draft' | null;
  variables?: { [name: string]: string };
  workspace?: 'home' | 'none';
  deadline?: number | string | null;
  requirements?: Requirements;
  after?: string[];
  after_any_end?: boolean;
  results?: boolean;
  retry?: TasksRetry | null;
  concurrency_key?: string | null;
  concurrency?: number;
  batch?: string | null;
  tasks?: NewTask[];
}

export interface NewThread {
  agent: string;
  title?: string;
  policy?: 'enqueue' | 'interrupt' | 'reject';
}

export interface OfVersion {
  version?: number | null;
}

/** What a worker is told when it takes a run up: GET /runs/{id}/open with a run token, op "open" on the WebSocket. */
export interface Opened {
  run: string;
  epoch: string;
  fence: number;
  n: number;
  definition: Definition;
  mode?: 'ask' | 'live' | 'simulate';
  events?: Event[];
  calls?: AdmittedCall[];
  inbox?: Event[];
  files?: string[];
  task?: string;
  agent?: string;
}

/** `order`: as they were submitted, or as they end. `after`: the id of the last one that was read. */
export interface Order {
  order?: 'completion' | 'input';
  after?: number;
}

/** The outcome of a call that comes late. `fence`: under which the call was started. */
export interface Outcome {
  fence: number;
  event: NewEvent;
}

/** An agent that a person owns, or has been given rights on. */
export interface Owned {
  agent: string;
  rights: string;
}

/** What every list takes. */
export interface Page {
  limit?: number;
  cursor?: string;
}

export interface PersonView {
  person: string;
  agents: Owned[];
}

/** A person's own server that runs on a microserver. `server`: its name, "" for the default one; `why` it is there. */
export interface PersonsServer {
  person: string;
  server?: string;
  state: string;
  why?: string;
}

export interface PoolMember {
  agent: string;
  ready: boolean;
  microserver: string | null;
}

/** min_servers are kept up; max_servers null: any number; idle_seconds null: the farm's, 0: never stopped. */
export interface PoolRules {
  min_servers?: number;
  max_servers?: number | null;
  idle_seconds?: number | null;
}

/** `up`: servers of its members that are up. `idle_seconds` null: the farm's. `may_change`: the asker manages all its members. */
export interface PoolView {
  name: string;
  members: PoolMember[];
  up: number;
  min_servers?: number;
  max_servers?: number | null;
  idle_seconds?: number | null;
  may_change?: boolean;
}

/** `missing`: variables without a value: they stand in `prompt` as they are written. `context`: what the model can take. */
export interface Preview {
  prompt: string;
  messages: { [name: string]: unknown }[];
  variables: Variable[];
  missing: string[];
  tools: string[];
  tokens: Tokens;
  estimated: boolean;
  context: number | null;
}

export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  hint: string;
}

export interface Publish {
  note?: string;
}

export interface ReadTools {
  items: FoundTool[];
}

export interface Reason {
  reason?: string;
}

/** Moves worth making, in their order; nothing is moved. `to` null: it may not stand there, and nobody else has room. */
export interface Rebalanced {
  moves: { [name: string]: unknown }[];
  servers: number;
  rank: string;
  gain: number;
}

/** `keys`: how many the agent remembers in all. */
export interface Recalled {
  items: Entry[];
  keys: number;
}

/** `host_keys`: as the operator has confirmed them ("ssh-ed25519 AAAA…"); none: those that are known stay. `measured`: what and how much. */
export interface Registration {
  ssh: string;
  host_keys?: string[];
  login?: string | null;
  labels?: { [name: string]: string };
  measured?: { [name: string]: number };
}

/** `force`: also where servers run there, or where nobody can know. */
export interface Removing {
  force?: boolean;
}

/** A recorded reply of the model; `step`: which one it is, where a fork can begin (of a summary: the one it was made for). */
export interface ReplyView {
  step: number;
  seq: number;
  request: string;
  message: { [name: string]: unknown } | null;
  usage: { [name: string]: unknown };
}

/** A model request. `matches`: whether the rebuilt messages have the digest that was recorded when they were sent; */
export interface RequestView {
  run_id: string;
  seq: number;
  request: string;
  attempt: number;
  model: string;
  upstream: string;
  at: string;
  messages: { [name: string]: unknown }[];
  tools: { [name: string]: unknown }[];
  tool_choice: string;
  parameters: { [name: string]: unknown };
  answer: { [name: string]: unknown } | null;
  digest: string;
  matches: boolean | null;
  why: string;
}

/** What a task needs of the server that does it. Bytes and cores; `flags`: of the CPU, e.g. avx2. */
export interface Requirements {
  memory?: number;
  cpu?: number;
  gpus?: number;
  gpu_memory?: number;
  labels?: { [name: string]: string };
  without?: { [name: string]: string };
  flags?: string[];
  ticks?: string;
}

/** A workspace on a microserver that is drained. `server`: of its server, running, exited or unknown; `runs`: that are under way. */
export interface Resident {
  user: string;
  agent: string;
  server: string;
  to: string | null;
  why?: string;
  bytes?: number | null;
  runs?: number;
  moving?: boolean;
  part?: number;
  waits?: string;
  scratch?: boolean;
}

/** What a server asks of its microserver and is promised there. */
export interface Resources {
  memory?: number;
  cpu?: number;
  gpus?: number;
  gpu_memory?: number;
  labels?: { [name: string]: string };
  without?: { [name: string]: string };
  flags?: string[];
  ticks?: string;
  tasks?: number;
  ticks_only?: boolean;
  apart?: 'hard' | 'no' | 'soft';
  workspace?: 'home' | 'none';
  tolerates?: string[];
  pin?: string;
  rank?: '' | 'binpack' | 'spread';
  egress?: string[] | null;
}

/** `resources`: what was set for the agent; `effective`: what its server gets, with what the farm gives to all. */
export interface ResourcesView {
  agent: string;
  resources: { [name: string]: unknown };
  effective: { [name: string]: unknown };
  feasible?: string;
  change?: string;
  unheld?: string;
}

export interface Restore {
  number: number;
}

/** What follows when the model's server fails. Each attempt is an event; when they are over the run fails. */
export interface Retry {
  attempts?: number;
  max_wait?: number;
  on?: ('busy' | 'down' | 'failed' | 'nonsense' | 'slow')[];
}

/** `versions`: numbers, or "draft". `cases` left out: all of the agent. `mode`: in place of each case's own. */
export interface RunCases {
  versions?: (number | 'draft')[];
  cases?: string[] | null;
  mode?: 'ask' | 'simulate' | null;
}

export interface RunView {
  run_id: string;
  task_id: string | null;
  agent: string;
  owner: string;
  thread_id: string | null;
  version: number | null;
  definition_hash: string;
  mode: string;
  epoch: string;
  bound: boolean;
  status: string;
  waiting: string | null;
  fence: number;
  seq: number;
  head: string;
  worker: string | null;
  lease_until: string | null;
  cancel: string | null;
  created_at: string;
  ended_at: string | null;
}

/** As of tasks; `task`: the runs of that one, retries too. */
export interface RunsPage {
  limit?: number;
  cursor?: string;
  status?: string | null;
  agent?: string | null;
  owner?: string | null;
  mode?: string | null;
  since?: string | null;
  until?: string | null;
  thread?: string | null;
  task?: string | null;
}

export interface SecretView {
  name: string;
  updated_at: string | null;
}

export interface Seq {
  seq: number;
  head: string;
}

/** An agent's server as the farm was last seen, a few seconds ago. `reasons`: why it is not up, `why`: why it is there. */
export interface ServerState {
  ready?: boolean;
  pending?: string | null;
  microserver?: string | null;
  reasons?: string;
  why?: string;
}

export interface ServerView {
  name: string;
  ready: boolean;
  pending: string | null;
  url: string;
}

/** Of the farm: how places are chosen, and what all servers get. */
export interface Settings {
  rank?: 'binpack' | 'spread';
  reserve_memory?: number | null;
  reserve_cpu?: number;
  gain?: number;
  most_memory?: number | null;
  most_cpu?: number | null;
  most_gpus?: number | null;
  servers?: Resources;
  people?: Resources;
  health?: HealthLimits;
}

/** What is left out stays; of `servers`, `people` and `health` field by field, null takes one away. */
export interface SettingsChange {
  rank?: string;
  reserve_memory?: number | null;
  reserve_cpu?: number;
  gain?: number;
  most_memory?: number | null;
  most_cpu?: number | null;
  most_gpus?: number | null;
  servers?: { [name: string]: unknown };
  people?: { [name: string]: unknown };
  health?: { [name: string]: unknown };
}

/** `rights` null ends it. */
export interface Share {
  person: string;
  rights: 'chat' | 'manage' | 'view' | null;
}

export interface Shared {
  person: string;
  rights: string;
}

/** What answers the calls of a run in mode `simulate`: `stubs` by tool, then what an earlier run (`recording`) got */
export interface Simulate {
  stubs?: { [name: string]: unknown };
  recording?: string | null;
  otherwise?: 'person' | 'refuse';
}

/** One reply of the model and its calls. `seq`: of the reply; `asked_seq`: of its request (requests/{seq} shows it). */
export interface StepView {
  step: number;
  seq: number;
  request: string;
  asked_seq: number | null;
  model: string;
  upstream: string;
  provider: string;
  asked_at: string | null;
  replied_at: string;
  seconds: number | null;
  attempts: number;
  input: number;
  output: number;
  estimated: boolean;
  cost: number | null;
  finish: string;
  attested: boolean;
  summary?: boolean;
  calls?: CallView[];
}

export interface Steps {
  items: StepView[];
  next: number | null;
  totals: Totals;
}

/** `after`: the last step that is known; -1: from the first on. */
export interface StepsPage {
  after?: number;
  limit?: number;
}

export interface Submitted {
  items: TaskView[];
  batch_id: string;
  next?: null;
}

export interface TaskView {
  task_id: string;
  owner: string;
  submitted_by: string;
  target: string;
  agent: string | null;
  thread_id: string | null;
  input: unknown;
  priority: number;
  mode: string;
  key: string | null;
  workspace: string;
  deadline: string | null;
  requirements: { [name: string]: unknown };
  status: string;
  waiting: string | null;
  run_id: string | null;
  result: unknown;
  error: { [name: string]: unknown } | null;
  created_at: string;
  ended_at: string | null;
  options?: { [name: string]: unknown };
  concurrency_key?: string | null;
  parent_run?: string | null;
  parent_call?: string | null;
  batch_id?: string | null;
  place?: number | null;
  note?: string;
}

export interface TasksPage {
  status?: string | null;
  agent?: string | null;
  owner?: string | null;
  mode?: string | null;
  since?: string | null;
  until?: string | null;
  text?: string | null;
  thread?: string | null;
  batch?: string | null;
  parent?: string | null;
  limit?: number;
  cursor?: string;
}

/** Another run where one has failed: `attempts` runs in all, `backoff` seconds before the second, doubled each time. */
export interface TasksRetry {
  attempts?: number;
  backoff?: number;
  on?: string[];
}

/** `definition`: what POST /agents takes as `draft`. `tasks`: inputs to try it with. `needs`: what it lacks on a new farm. */
export interface Template {
  name: string;
  title: string;
  description: string;
  definition: Definition;
  tasks?: unknown[];
  needs?: string[];
}

export interface ThreadView {
  thread_id: string;
  agent: string;
  owner: string;
  title: string;
  policy: string;
  created_at: string;
}

/** `agent`: the conversations with this one alone. */
export interface ThreadsPage {
  limit?: number;
  cursor?: string;
  agent?: string;
}

/** A definition as POST /agents takes it as `draft`, and what a task would give: variables and input. */
export interface ToPreview {
  definition: { [name: string]: unknown };
  files?: { [name: string]: string };
  variables?: { [name: string]: string };
  input?: unknown;
}

/** Python files by name, as they would be sent with a draft under `files`. */
export interface ToRead {
  files: { [name: string]: string };
}

export interface Tokens {
  prompt: number;
  input: number;
  tools: number;
  total: number;
}

/** What stays of a deleted run: how many events it had, and the hash of the last. */
export interface TombstoneView {
  run_id: string;
  epoch: string;
  seq: number;
  head: string;
}

/** A tool as a version pins it. `source`: builtin | package==v#module:function | file@sha256 | kernel (notebook runs). */
export interface ToolSpec {
  name: string;
  description?: string;
  schema?: { [name: string]: unknown };
  effect?: 'idempotent' | 'once' | 'read';
  approval?: string;
  timeout?: number;
  source?: string;
  schema_hash?: string;
  secrets?: string[];
  config?: { [name: string]: unknown };
  approvers?: number;
  approval_expires?: number | null;
  escalate_after?: number | null;
  escalate_to?: string;
  probe?: boolean;
}

export interface ToolView {
  name: string;
  description: string;
  schema: { [name: string]: unknown };
  effect: string;
  approval: string;
  timeout: number;
  source: string;
  schema_hash: string;
  available: boolean;
  reason: string;
}

export interface Total {
  version: number | string;
  passed: number;
  failed: number;
  errors: number;
  pending: number;
}

export interface Totals {
  steps: number;
  input: number;
  output: number;
  cost: number;
  model_seconds: number;
  tool_seconds: number;
}

/** One case, tried with one version. `verdict`: passed, failed, error, or null: it is not known yet. */
export interface Tried {
  case_id: string;
  name: string;
  version: number | string;
  task_id: string;
  run_id: string | null;
  status: string;
  waiting: string | null;
  verdict: string | null;
  checks: { [name: string]: unknown }[] | null;
  result: unknown;
}

export interface Uploaded {
  sha256: string;
  size: number;
}

/** `since`, `until`: days, 2026-11-21, inclusive. `by`: what to sum by, of day, agent, owner and model. */
export interface UsagePage {
  since?: string;
  until?: string;
  by?: string;
}

/** Keys that were not asked for are "". `estimated`: requests whose tokens nobody counted; `unpriced`: without a price. */
export interface Used {
  day?: string;
  agent?: string;
  owner?: string;
  model?: string;
  requests: number;
  tokens_in: number;
  tokens_out: number;
  cost: number;
  estimated?: number;
  unpriced?: number;
}

/** `source`: given, input or default; null: it has no value. */
export interface Variable {
  name: string;
  value: string | null;
  source: string | null;
}

export interface Verified {
  run_id: string;
  ok: boolean;
  events: number;
  head: string;
  bad_seq: number | null;
  why: string;
}

export interface VersionView {
  agent: string;
  number: number;
  hash: string;
  definition: Definition;
  note: string;
  created_at: string;
  created_by: string;
}

export interface Which {
  key?: string;
}

/** `anchor`: up to which the farm's record is whole; `since`: events recorded after it. `broken`: what is not whole. */
export interface Whole {
  ok: boolean;
  runs: number;
  events: number;
  anchor: number | null;
  anchored_at: string | null;
  since: number;
  broken: Broken[];
}
