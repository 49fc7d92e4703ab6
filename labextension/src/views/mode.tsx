/** How much a run may do by itself: a choice, and a mark that nobody overlooks. */
import React from 'react';

import { Badge, Field } from '../components';
import { useFarm, type Translate } from '../context';
import type { Mode } from '../protocol';

export const modeWord = (mode: string, t: Translate): string =>
  ({ live: t('live'), ask: t('ask before each effect'), simulate: t('simulate') })[mode] ?? mode;

/** `live` in red: what is called then really happens. */
export function ModeBadge({ mode }: { mode: string }): JSX.Element {
  const { t } = useFarm();
  return <Badge state={`mode-${mode}`} look={mode === 'live' ? 'bad' : mode === 'ask' ? 'wait' : 'quiet'} word={t('mode: %1', modeWord(mode, t))} />;
}

export function ModeField({ mode, onChange }: { mode: Mode; onChange: (mode: Mode) => void }): JSX.Element {
  const { t } = useFarm();
  return (
    <Field label={t('Mode')}>
      {ids => (
        <select {...ids} name="mode" value={mode} className="af-mode" data-mode={mode} onChange={event => onChange(event.target.value as Mode)}>
          {(['ask', 'simulate', 'live'] as Mode[]).map(one => <option key={one} value={one}>{modeWord(one, t)}</option>)}
        </select>
      )}
    </Field>
  );
}
