/** What a microserver's own figures say of it: its silence, its health, pressure, GPUs, clock, disks. */
import React from 'react';

import { Badge, Meter, Text } from '../components';
import { useFarm } from '../context';
import { bytes } from '../figures';
import type { MicroserverView } from '../protocol';

type Gpu = { index?: number; name?: string; memory?: number; memory_used?: number | null; utilisation?: number | null; temperature?: number | null };
type Disk = { device?: string; model?: string; healthy?: boolean | null };

const PRESSING = 0.1; // of a minute: more is drawn as bad
const CLOCK_SHOWN = 0.1; // seconds off, beyond what the line may account for

/** Why it cannot be asked and since when; what it said last is as old as it says. */
export function Silence({ one }: { one: MicroserverView }): JSX.Element | null {
  const { t } = useFarm();
  if (!one.silent) {
    return null;
  }
  return (
    <div role="status">
      <Text>{one.silent}</Text>
      <p className="af-quiet">
        {one.since && <>{t('It does not answer since %1.', moment(one.since))} </>}
        {one.state === 'lost'
          ? t('No run there renews its lease either. What ran there is unknown until it returns, or you decide.')
          : t('Its servers may work on: nothing there is called dead.')}
      </p>
      <p className="af-quiet">{one.seen_at ? t('The figures below are what it said last, %1.', moment(one.seen_at)) : t('It has told no figures yet.')}</p>
    </div>
  );
}

const moment = (at: string): string => new Date(at).toLocaleString([], { hour12: false });

/** Taints that came by themselves, and those of operators. */
export function Taints({ one }: { one: MicroserverView }): JSX.Element {
  const { t } = useFarm();
  const health = one.health ?? {};
  return (
    <>
      {Object.entries(one.taints ?? {}).map(([taint, reason]) => (
        <div key={taint}>
          <Badge state="tainted" look={health[taint] ? 'bad' : 'wait'} word={t('tainted %1', taint)} /> <Text>{reason}</Text>
          {health[taint] && <p className="af-quiet">{t('By itself, since %1. It goes when that is over; until then nothing new is placed here.', moment(health[taint]!.since ?? ''))}</p>}
        </div>
      ))}
    </>
  );
}

/** Rows of the table of meters: what its work waits for, and each GPU. */
export function Strain({ one }: { one: MicroserverView }): JSX.Element {
  const { t } = useFarm();
  const names: [string, string][] = [['memory', t('Waits for memory')], ['io', t('Waits for disks')]];
  return (
    <>
      {names.map(([what, name]) => {
        const share = one.pressure?.[what]?.full;
        return share === undefined ? null : <Row key={what} name={name} used={share} whole={1} bad={share >= PRESSING} words={t('%1 % of a minute', (100 * share).toFixed(1))} />;
      })}
      {((one.gpus ?? []) as Gpu[]).map((gpu, at) => <GpuRow key={gpu.index ?? at} gpu={gpu} at={gpu.index ?? at} />)}
    </>
  );
}

function GpuRow({ gpu, at }: { gpu: Gpu; at: number }): JSX.Element {
  const { t } = useFarm();
  const [whole, used] = [gpu.memory ?? 0, gpu.memory_used];
  const words = [
    used == null ? bytes(whole) : t('%1 of %2', bytes(used), bytes(whole)), gpu.utilisation == null ? '' : t('%1 % busy', gpu.utilisation),
    gpu.temperature == null ? '' : t('%1 °C', gpu.temperature)
  ].filter(Boolean).join(', ');
  return <Row name={t('GPU %1', at)} title={gpu.name ?? ''} used={used ?? 0} whole={whole} bad={false} words={words} />;
}

export function Row({ name, title, used, whole, bad, words }: { name: string; title?: string; used: number; whole: number; bad: boolean; words: string }): JSX.Element {
  return (
    <>
      <dt title={title}>{name}</dt>
      <dd><Meter parts={[{ name, amount: used, look: bad ? 'bad' : 'full' }]} whole={whole} words={`${name}: ${words}`} /></dd>
      <dd className="af-quiet">{words}</dd>
    </>
  );
}

/** What is said in words only where there is something to say. */
export function Notes({ one }: { one: MicroserverView }): JSX.Element {
  const { t } = useFarm();
  const offset = one.clock_offset ?? 0;
  const failing = ((one.disks ?? []) as Disk[]).filter(disk => disk.healthy === false);
  const notes = [
    Math.abs(offset) - (one.clock_unsure ?? 0) > CLOCK_SHOWN ? t('Its clock is %1 s %2 the farm’s.', Math.abs(offset).toFixed(1), offset > 0 ? t('ahead of') : t('behind')) : '',
    one.gpus_problem ? t('Its GPUs are not told anew: %1.', one.gpus_problem) : '',
    ...failing.map(disk => t('SMART says that the disk %1 %2 is about to fail.', disk.device ?? '', disk.model ?? '')),
    one.ecc?.uncorrected ? t('Its memory had %1 errors that could not be corrected.', one.ecc.uncorrected) : ''
  ].filter(Boolean);
  return (
    <>
      {notes.map(note => <p key={note} className="af-need">{note}</p>)}
    </>
  );
}
