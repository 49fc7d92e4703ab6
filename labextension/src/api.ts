/** The only file that makes requests: JSON, problems as one error type, streams of server-sent events. */

/** How a request reaches the farm: `path` begins with a slash and stands behind `/api/v1`. */
export type Transport = (path: string, init: RequestInit) => Promise<Response>;

interface ProblemDocument {
  type?: string;
  title?: string;
  detail?: string;
  hint?: string;
}

/** What the farm answered instead: problem JSON (RFC 9457). `status` 0: it was not reached at all. */
export class Problem extends Error {
  readonly type: string;
  readonly title: string;
  readonly detail: string;
  readonly hint: string;

  constructor(readonly status: number, readonly body: ProblemDocument & Record<string, unknown>) {
    super([body.title, body.detail].filter(Boolean).join(': ') || `The farm answered ${status}`);
    this.name = 'Problem';
    this.type = body.type ?? '';
    const silent = status === 0 || status >= 502; // a proxy's own answer says nothing of the farm
    this.title = body.title ?? (silent ? 'The farm cannot be reached' : `The farm answered ${status}`);
    this.detail = body.detail ?? '';
    this.hint = body.hint ?? (silent ? 'Try again shortly.' : '');
  }

  /** Whether whoever asks is no longer known: a new sign-in helps. */
  get signedOut(): boolean {
    return this.status === 401;
  }

  /** Whether nothing of this name is there, for who asks: asking again does not help. */
  get unknown(): boolean {
    return this.status === 404;
  }

  /** Whether the same request may work a little later. */
  get passing(): boolean {
    return this.status === 0 || this.status === 429 || this.status >= 502;
  }

  static of(error: unknown): Problem {
    return error instanceof Problem
      ? error
      : new Problem(0, { detail: error instanceof Error ? error.message : String(error), hint: 'It is tried again.' });
  }
}

/** One server-sent event; `id` 0 where it has none. A comment of the stream (it lives) has no `data`. */
export interface Message {
  id: number;
  event: string;
  data?: unknown;
}

// The farm sends at least a byte every 15 s. The Hub's proxy keeps a stream open whose service has died: only silence tells.
const SILENCE_MS = 20_000;

export class Api {
  /** Keys of writes of which nobody knows what became: the same write again goes under the same key, and is done once. */
  private readonly unknown = new Map<string, string>();

  constructor(private readonly send: Transport) {}

  get<T>(path: string, signal?: AbortSignal): Promise<T> {
    return this.ask<T>('GET', path, undefined, {}, signal);
  }

  post<T>(path: string, body: unknown = {}, headers: Record<string, string> = {}): Promise<T> {
    return this.ask<T>('POST', path, body, headers);
  }

  put<T>(path: string, body: unknown): Promise<T> {
    return this.ask<T>('PUT', path, body);
  }

  /** `rev`: the draft as it was read (If-Match); another one meanwhile is a Problem with status 412 or 409. */
  patch<T>(path: string, body: unknown, rev?: number): Promise<T> {
    return this.ask<T>('PATCH', path, body, rev === undefined ? {} : { 'If-Match': `"${rev}"` });
  }

  delete<T>(path: string): Promise<T> {
    return this.ask<T>('DELETE', path);
  }

  /** The raw answer, for what is no JSON: export, bundle. */
  async raw(method: string, path: string, init: RequestInit = {}): Promise<Response> {
    const answer = await this.reach(path, { ...init, method });
    if (!answer.ok) {
      throw new Problem(answer.status, await said(answer));
    }
    return answer;
  }

  private async ask<T>(
    method: string, path: string, body?: unknown, more: Record<string, string> = {}, signal?: AbortSignal
  ): Promise<T> {
    const headers: Record<string, string> = { Accept: 'application/json', ...more };
    const text = body === undefined ? null : JSON.stringify(body);
    if (text !== null) {
      headers['Content-Type'] = 'application/json';
    }
    const write = `${method} ${path} ${text}`;
    if (method !== 'GET') {
      headers['Idempotency-Key'] = this.unknown.get(write) ?? once();
      this.unknown.set(write, headers['Idempotency-Key']);
    }
    const answer = await this.reach(path, { method, headers, signal: signal ?? null, body: text });
    if (answer.status < 502) {
      this.unknown.delete(write); // the farm has said what became of it
    }
    if (!answer.ok) {
      throw new Problem(answer.status, await said(answer));
    }
    return (answer.status === 204 ? undefined : await answer.json()) as T;
  }

  private async reach(path: string, init: RequestInit): Promise<Response> {
    try {
      return await this.send(path, init);
    } catch (error) {
      if (init.signal?.aborted) {
        throw error;
      }
      throw new Problem(0, { detail: error instanceof Error ? error.message : String(error), hint: 'Try again shortly.' });
    }
  }

  /** Follow one stream until it ends, is cut (raises Problem) or `signal` is aborted. The first message has no data: it stands. */
  async *stream(path: string, after: number, signal: AbortSignal): AsyncGenerator<Message> {
    const cut = new AbortController();
    const stop = (): void => cut.abort();
    signal.addEventListener('abort', stop, { once: true });
    let alarm = setTimeout(stop, SILENCE_MS);
    try {
      const headers: Record<string, string> = { Accept: 'text/event-stream' };
      if (after) {
        headers['Last-Event-ID'] = String(after);
      }
      const answer = await this.reach(path, { method: 'GET', headers, signal: cut.signal });
      if (!answer.ok || !answer.body) {
        throw new Problem(answer.status, await said(answer));
      }
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      const parse = parser();
      for (;;) {
        const { value, done } = await reader.read();
        clearTimeout(alarm);
        if (done) {
          return;
        }
        alarm = setTimeout(stop, SILENCE_MS);
        yield* parse(value);
      }
    } catch (error) {
      throw error instanceof Problem ? error : Problem.of(error);
    } finally {
      clearTimeout(alarm);
      signal.removeEventListener('abort', stop);
      cut.abort();
    }
  }
}

/** Returns a function that takes text as it comes and gives the messages that it completes. */
export function parser(): (text: string) => Message[] {
  let rest = '';
  return text => {
    rest += text;
    const found: Message[] = [];
    const blocks = rest.split('\n\n');
    rest = blocks.pop() ?? '';
    for (const block of blocks) {
      found.push(message(block));
    }
    return found;
  };
}

function message(block: string): Message {
  const fields: Record<string, string> = {};
  for (const line of block.split('\n')) {
    const colon = line.indexOf(':');
    if (colon > 0) {
      fields[line.slice(0, colon)] = line.slice(colon + 1).replace(/^ /, '');
    }
  }
  const begin = { id: Number(fields.id ?? 0), event: fields.event ?? 'message' };
  return fields.data === undefined ? begin : { ...begin, data: JSON.parse(fields.data) as unknown };
}

async function said(answer: Response): Promise<ProblemDocument & Record<string, unknown>> {
  try {
    const body: unknown = await answer.json();
    return typeof body === 'object' && body !== null ? (body as Record<string, unknown>) : {};
  } catch {
    return {}; // a proxy's page: the status says enough
  }
}

/** A key for one write, so that a repeat is known. `randomUUID` exists on https and localhost alone. */
export function once(): string {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), one => one.toString(16)).join('-');
}

/** From a farm page: the session's cookie, and the XSRF header that the Hub's OAuth asks of every request.
 *
 * Whoever signs in again in another tab gets other cookies: their token is in `cookies()`, and is taken where the page's own is refused. */
export function pageTransport(base: string, xsrf: string, cookies: () => string = () => document.cookie): Transport {
  let token = xsrf;
  const send = (path: string, init: RequestInit): Promise<Response> =>
    fetch(`${base}api/v1${path}`, {
      ...init, credentials: 'same-origin', headers: { ...(init.headers as Record<string, string>), 'X-XSRFToken': token }
    });
  return async (path, init) => {
    const answer = await send(path, init);
    const other = /(?:^|; )_xsrf="?([^";]+)/.exec(cookies())?.[1];
    if (answer.status !== 401 || !other || other === token) {
      return answer;
    }
    token = other;
    return send(path, init);
  };
}

/** From JupyterLab: to the server that the page came from; its extension passes it on. */
export function labTransport<S extends { baseUrl: string }>(
  makeRequest: (url: string, init: RequestInit, settings: S) => Promise<Response>, settings: S
): Transport {
  return async (path, init) => {
    const answer = await makeRequest(`${settings.baseUrl}agentfarm${path}`, init, settings);
    // the server's own refusal, of somebody whom it no longer knows; the farm's are problem JSON
    const own = answer.status === 403 && !answer.headers.get('Content-Type')?.includes('problem');
    return own ? new Response(null, { status: 401 }) : answer;
  };
}
