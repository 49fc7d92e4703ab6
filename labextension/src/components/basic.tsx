/** Small things of the kit: button, badge, field, tabs, time, states. They draw their props. */
import React from 'react';

import type { Problem } from '../api';
import { useFarm, useStore } from '../context';
import { partsOf } from '../hints';

type ButtonProps = React.ButtonHTMLAttributes<HTMLButtonElement> & {
  look?: 'primary' | 'plain' | 'danger' | 'quiet';
  busy?: boolean;
};

export function Button({ look = 'plain', busy, className, disabled, type, ...more }: ButtonProps): JSX.Element {
  return (
    <button
      {...more}
      type={type ?? 'button'}
      className={`af-button ${className ?? ''}`}
      data-look={look}
      disabled={disabled || busy}
      aria-busy={busy || undefined}
    />
  );
}

export type Look = 'good' | 'bad' | 'wait' | 'run' | 'quiet';

const LOOKS: { [state: string]: Look } = {
  succeeded: 'good', published: 'good', ready: 'good', live: 'good', ok: 'good', approved: 'good', verified: 'good',
  failed: 'bad', away: 'bad', lost: 'bad', silent: 'bad', broken: 'bad', refused: 'bad', 'signed-out': 'bad', stopped: 'quiet',
  waiting: 'wait', connecting: 'wait', in_doubt: 'wait', draining: 'wait', cancelling: 'wait', pending: 'wait',
  running: 'run', assigned: 'run', starting: 'run'
};

/** A state as a dot and a word: never by colour alone. */
export function Badge({ state, word, look }: { state: string; word?: string; look?: Look }): JSX.Element {
  const { t } = useFarm();
  return (
    <span className="af-badge" data-state={state} data-look={look ?? LOOKS[state] ?? 'quiet'}>
      {word ?? t(state.replace(/_/g, ' '))}
    </span>
  );
}

/** A labelled control; `hint` and `error` are read out with it. `children` gets the ids to carry. */
export function Field(props: {
  label: string;
  hint?: string;
  error?: string;
  children: (ids: { id: string; 'aria-describedby'?: string; 'aria-invalid'?: boolean }) => React.ReactNode;
}): JSX.Element {
  const id = React.useId();
  const said = [props.hint ? `${id}-hint` : '', props.error ? `${id}-error` : ''].filter(Boolean).join(' ');
  return (
    <div className="af-field">
      <label htmlFor={id}>{props.label}</label>
      {props.children({ id, ...(said ? { 'aria-describedby': said } : {}), ...(props.error ? { 'aria-invalid': true } : {}) })}
      {props.hint && <div id={`${id}-hint`} className="af-quiet">{props.hint}</div>}
      {props.error && <div id={`${id}-error`} className="af-bad" role="alert">{props.error}</div>}
    </div>
  );
}

export interface Tab {
  id: string;
  label: React.ReactNode;
  content: () => React.ReactNode;
}

/** Tabs by the keyboard too: arrows, Home, End. */
export function Tabs({ tabs, label, chosen, onChoose }: {
  tabs: Tab[];
  label: string;
  chosen?: string;
  onChoose?: (id: string) => void;
}): JSX.Element {
  const base = React.useId();
  const [own, setOwn] = React.useState(tabs[0]?.id ?? '');
  const now = tabs.find(tab => tab.id === (chosen ?? own)) ?? tabs[0];
  const buttons = React.useRef(new Map<string, HTMLButtonElement | null>());
  const choose = (id: string): void => {
    setOwn(id);
    onChoose?.(id);
  };
  const onKeyDown = (event: React.KeyboardEvent): void => {
    const at = tabs.findIndex(tab => tab.id === now?.id);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    const next = to === undefined ? undefined : tabs[(to + tabs.length) % tabs.length];
    if (next) {
      event.preventDefault();
      choose(next.id);
      buttons.current.get(next.id)?.focus();
    }
  };
  return (
    <div className="af-tabs">
      <div role="tablist" aria-label={label} className="af-tablist" onKeyDown={onKeyDown}>
        {tabs.map(tab => (
          <button
            key={tab.id} type="button" role="tab" id={`${base}-${tab.id}`} aria-controls={`${base}-panel`}
            aria-selected={tab.id === now?.id} tabIndex={tab.id === now?.id ? 0 : -1}
            ref={element => void buttons.current.set(tab.id, element)} onClick={() => choose(tab.id)}
          >
            {tab.label}
          </button>
        ))}
      </div>
      {now && (
        <div role="tabpanel" id={`${base}-panel`} aria-labelledby={`${base}-${now.id}`} className="af-tabpanel" key={now.id}>
          {now.content()}
        </div>
      )}
    </div>
  );
}

/** A moment: how long ago, or the time of day; the exact UTC time as its title. */
export function Time({ at, exact }: { at: string | null | undefined; exact?: boolean }): JSX.Element | null {
  const { t } = useFarm();
  const [, tick] = React.useReducer((n: number) => n + 1, 0);
  React.useEffect(() => {
    if (exact) {
      return;
    }
    const timer = setInterval(tick, 30_000);
    return () => clearInterval(timer);
  }, [exact]);
  if (!at) {
    return null;
  }
  const moment = new Date(at);
  const text = exact ? moment.toLocaleTimeString([], { hour12: false }) : ago((Date.now() - moment.getTime()) / 1000, moment, t);
  return <time className="af-time" dateTime={at} title={at}>{text}</time>;
}

function ago(seconds: number, moment: Date, t: ReturnType<typeof useFarm>['t']): string {
  if (seconds < 45) {
    return t('now');
  }
  if (seconds < 3600) {
    return t('%1 min ago', Math.max(1, Math.round(seconds / 60)));
  }
  return seconds < 86400 ? moment.toLocaleTimeString([], { hour12: false, hour: '2-digit', minute: '2-digit' }) : moment.toLocaleDateString();
}

export function Empty({ title, children }: { title: string; children?: React.ReactNode }): JSX.Element {
  return (
    <div className="af-empty">
      <p>{title}</p>
      {children}
    </div>
  );
}

export function Loading({ what }: { what?: string }): JSX.Element {
  const { t } = useFarm();
  return <p className="af-loading" role="status">{what ?? t('Loading …')}</p>;
}

/** What went wrong, and what to do: the farm's own words. `onRetry`: it is about what could not be read. */
export function ErrorBox({ problem, onRetry }: { problem: Problem | null | undefined; onRetry?: (() => void) | undefined }): JSX.Element | null {
  const { t, model } = useFarm();
  const common = useStore(model.common);
  if (!problem || problem.signedOut || (onRetry && problem.message === common?.message)) {
    return null; // an expired login, and what keeps several things from being read, have a banner above everything
  }
  return (
    <div className="af-error" role="alert">
      <strong>{problem.title}</strong>
      {problem.detail && <p>{problem.detail}</p>}
      {problem.hint && <p className="af-quiet"><Hint words={problem.hint} /></p>}
      {onRetry && !problem.unknown && <Button onClick={onRetry}>{t('Try again')}</Button>}
    </div>
  );
}

/** What to do: where the farm names a command, the page that does the same. */
export function Hint({ words }: { words: string }): JSX.Element {
  const { t } = useFarm();
  return <>{partsOf(words, t).map((part, at) => (part.to ? <Go key={at} to={part.to}>{part.words}</Go> : <React.Fragment key={at}>{part.words}</React.Fragment>))}</>;
}

/** Text that a model, a tool or a person wrote: only ever text, never markup, never a link. */
export function Text({ children, mono }: { children: string; mono?: boolean }): JSX.Element {
  return <div className={mono ? 'af-text af-mono' : 'af-text'} dir="auto">{children}</div>;
}

/** A way to another view. */
export function Go({ to, children, className }: { to: string; children: React.ReactNode; className?: string }): JSX.Element {
  const { navigate, href } = useFarm();
  const address = href(to);
  const onClick = (event: React.MouseEvent): void => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) {
      return; // the browser's own: a new tab
    }
    event.preventDefault();
    navigate(to);
  };
  return address
    ? <a className={`af-go ${className ?? ''}`} href={address} onClick={onClick}>{children}</a>
    : <button type="button" className={`af-go ${className ?? ''}`} onClick={() => navigate(to)}>{children}</button>;
}

/** A page's head: title, what belongs beside it, acts at the right. */
export function Head({ title, beside, children }: { title: React.ReactNode; beside?: React.ReactNode; children?: React.ReactNode }): JSX.Element {
  return (
    <div className="af-head">
      <h2>{title}</h2>
      {beside}
      <span className="af-spring" />
      {children}
    </div>
  );
}

/** Something with a title, in a frame. `beside`: badges or a link at the right. */
export function Card({ title, beside, children }: { title: string; beside?: React.ReactNode; children: React.ReactNode }): JSX.Element {
  return (
    <section className="af-frame" aria-label={title}>
      <header><h3>{title}</h3>{beside}</header>
      {children}
    </section>
  );
}
