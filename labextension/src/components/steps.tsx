/** A run's steps, each foldable: what was asked and answered, how long it took, what it cost. Shared by run, playground and tasks. */
import React from 'react';

import { useAction, useFarm, useRun } from '../context';
import type { Event } from '../protocol';
import { duration, modelSeconds, money, Timeline, type CallStep, type EventStep, type ModelStep, type Step } from '../timeline';
import { oneLine, sayEvent } from '../words';
import { Button, ErrorBox, Text, Time, type Look } from './basic';
import { Json, Value } from './data';

/** What can be done with a step, by whoever shows it. */
export interface StepActs {
  /** Begin another run with the messages before this reply. */
  onFork?: ((run_id: string, step: number) => void) | undefined;
  /** Show the request as it was sent. */
  onRequest?: ((run_id: string, seq: number) => void) | undefined;
}

/** A run's steps as they come; the array grows in place. */
export function useSteps(run_id: string): { steps: readonly Step[]; count: number; complete: boolean; problem: ReturnType<typeof useRun>['problem'] } {
  const { events, count, complete, problem } = useRun(run_id);
  const timeline = React.useRef<{ run_id: string; of: Timeline }>();
  if (timeline.current?.run_id !== run_id) {
    timeline.current = { run_id, of: new Timeline() };
  }
  const { steps } = timeline.current.of.take(events, count);
  return { steps, count: steps.length, complete, problem };
}

export const stepKey = (step: Step): string => step.id;

/** One row. `rev` makes it be drawn again: steps change in place. */
export const StepRow = React.memo(function StepRow({ run_id, step, acts }: { run_id: string; step: Step; rev: number; acts: StepActs }): JSX.Element {
  return step.kind === 'model'
    ? <ModelRow run_id={run_id} step={step} acts={acts} />
    : step.kind === 'call' ? <CallRow run_id={run_id} step={step} /> : <EventRow step={step} />;
});

function Row({ look, kind, seq, title, facts, at, children, open = true }: {
  look: Look;
  kind: string;
  seq: number;
  title: React.ReactNode;
  facts?: string;
  at: string;
  children?: React.ReactNode;
  open?: boolean;
}): JSX.Element {
  const { t } = useFarm();
  const [shown, setShown] = React.useState(open);
  return (
    <div className="af-step" data-look={look} data-kind={kind} data-seq={seq}>
      <div className="af-step-head">
        {children
          ? (
            <button type="button" className="af-fold" aria-expanded={shown} onClick={() => setShown(!shown)} title={shown ? t('Fold') : t('Unfold')}>
              <b>{title}</b>
            </button>
          )
          : <b>{title}</b>}
        <span className="af-quiet af-facts">{facts}</span>
        <span className="af-spring" />
        <Time at={at} exact />
      </div>
      {shown && children}
    </div>
  );
}

const facts = (...parts: (string | number | null | undefined | false)[]): string => parts.filter(part => part !== null && part !== undefined && part !== false && part !== '').join(' · ');

function ModelRow({ run_id, step, acts }: { run_id: string; step: ModelStep; acts: StepActs }): JSX.Element {
  const { t } = useFarm();
  const { usage } = step;
  const said = facts(
    step.model, duration(modelSeconds(step)), usage && t('%1 tokens in, %2 out', usage.input ?? 0, usage.output ?? 0), usage?.estimated && t('estimated'),
    money(step.cost), step.reported && t('reported by the worker'), step.finish === 'length' && t('cut at its limit')
  );
  const title = step.replied === null ? t('Asks the model') : step.step === null ? t('Summary') : t('Reply %1', step.step + 1);
  const buttons = (
    <div className="af-step-acts">
      {acts.onFork && step.step !== null && <Button look="quiet" onClick={() => acts.onFork!(run_id, step.step!)}>{t('Fork from here')}</Button>}
      {acts.onRequest && <Button look="quiet" onClick={() => acts.onRequest!(run_id, step.seq)}>{t('Exact request')}</Button>}
    </div>
  );
  return (
    <Row look={step.replied ? 'good' : step.failures.length ? 'bad' : 'run'} kind="model" seq={step.seq} title={title} facts={said} at={step.replied ?? step.asked}>
      <>
        {step.failures.map((failure, at) => <p key={at} className="af-bad">{t('Attempt %1 failed: %2', at + 1, failure.message)}</p>)}
        {step.text && <Text>{step.text}</Text>}
        {buttons}
      </>
    </Row>
  );
}

const LOOKS: { [state in CallStep['state']]: Look } = {
  asked: 'quiet', waiting: 'wait', running: 'run', succeeded: 'good', failed: 'bad', refused: 'bad', in_doubt: 'wait'
};

function CallRow({ run_id, step }: { run_id: string; step: CallStep }): JSX.Element {
  const { t } = useFarm();
  const words: Record<CallStep['state'], string> = {
    asked: t('asked for'), waiting: t('waits'), running: t('running'), succeeded: t('succeeded'), failed: t('failed'), refused: t('refused'), in_doubt: t('in doubt')
  };
  const between = step.events.filter(event => !/^tool\.(started|succeeded|failed)$/.test(event.kind));
  return (
    <Row
      look={LOOKS[step.state]} kind="call" seq={step.seq} at={step.ended ?? step.started ?? step.events[0]?.at ?? ''}
      title={step.tool || t('Call')} facts={facts(words[step.state], step.effect && effectWord(step.effect, t), duration(step.seconds))}
    >
      <>
        {step.arguments !== undefined && <Part label={t('Arguments')}>{<Value value={step.arguments} />}</Part>}
        {between.map(event => <Between key={event.seq} event={event} />)}
        {step.result !== undefined && <Part label={t('Result')}><Outcome run_id={run_id} value={step.result} /></Part>}
        {step.error && <Part label={t('Error')}><Text>{step.error}</Text></Part>}
      </>
    </Row>
  );
}

/** What an effect means, in a person's words. */
export function effectWord(effect: string, t: ReturnType<typeof useFarm>['t']): string {
  const known: { [effect: string]: string } = { read: t('only reads'), idempotent: t('may be repeated'), once: t('at most once') };
  return known[effect] ?? effect;
}

function Part({ label, children }: { label: string; children: React.ReactNode }): JSX.Element {
  return <div className="af-part"><span className="af-part-label">{label}</span><div className="af-part-value">{children}</div></div>;
}

function Between({ event }: { event: Event }): JSX.Element {
  const { t } = useFarm();
  const { title, text } = sayEvent(event, t);
  return <p className="af-between"><span>{title}</span>{text && <span className="af-quiet"> {oneLine(text)}</span>} <span className="af-quiet">{event.by}</span></p>;
}

interface Kept {
  $blob: string;
  size: number;
  preview?: string;
}

const kept = (value: unknown): value is Kept => typeof value === 'object' && value !== null && typeof (value as Kept).$blob === 'string';

/** A result; one that is kept beside the ledger begins with its first characters. */
export function Outcome({ run_id, value }: { run_id: string; value: unknown }): JSX.Element {
  const { api, t } = useFarm();
  const [whole, setWhole] = React.useState<string | null>(null);
  const load = useAction(async (blob: string) => setWhole(await (await api.raw('GET', `/runs/${run_id}/blobs/${blob}`)).text()));
  if (!kept(value)) {
    return <Value value={value} />;
  }
  return (
    <>
      <Text>{whole ?? `${value.preview ?? ''}…`}</Text>
      {whole === null && <Button look="quiet" busy={load.busy} onClick={() => void load.run(value.$blob)}>{t('Show all %1 bytes', value.size)}</Button>}
      <ErrorBox problem={load.problem} />
    </>
  );
}

/** Kinds that say who did what where: their text is long and known, they begin folded. */
const FOLDED = new Set(['run.created', 'thread.continued', 'run.forked', 'context.compacted']);

function EventRow({ step: { event } }: { step: EventStep }): JSX.Element {
  const { t } = useFarm();
  const { title, text, look } = sayEvent(event, t);
  const system = event.kind === 'message.added' && (event.body as { role?: string } | null)?.role === 'system';
  const body = event.body as { content?: unknown } | null;
  return (
    <Row look={look} kind={event.kind} seq={event.seq} title={title} at={event.at} open={!system && !FOLDED.has(event.kind)}>
      {text && (event.kind === 'message.added' && typeof body?.content !== 'string' ? <Json value={body?.content} /> : <Text>{text}</Text>)}
    </Row>
  );
}
