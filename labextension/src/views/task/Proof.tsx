/** That a run's record is whole: its chain checked by the farm, and all that proves it in one file, for a check elsewhere. */
import React from 'react';

import { Badge, Button, ErrorBox } from '../../components';
import { useAction, useFarm, useResource } from '../../context';
import { save } from '../../file';
import type { Verified } from '../../protocol';

const never = (): boolean => false; // nothing follows the end of a run; "Check again" asks anew

export function VerifiedBadge({ run_id }: { run_id: string }): JSX.Element {
  const { t } = useFarm();
  const { value, problem, resource } = useResource<Verified>(`/runs/${run_id}/verify`, never);
  if (!value) {
    return problem ? <Badge state="unknown" look="wait" word={t('not checked: %1', problem.title)} /> : <Badge state="checking" word={t('checking …')} />;
  }
  const word = value.ok ? t('verified: %1 events', value.events) : t('not whole from event %1: %2', value.bad_seq ?? '?', value.why ?? '');
  return (
    <button type="button" className="af-recheck" title={t('The hash chain of its events, checked by the farm. Click to check again.')} onClick={resource.refresh}>
      <Badge state={value.ok ? 'verified' : 'broken'} word={word} />
    </button>
  );
}

export function Evidence({ run_id }: { run_id: string }): JSX.Element {
  const { t, api } = useFarm();
  const load = useAction(async () => save(await (await api.raw('GET', `/runs/${run_id}/bundle`)).blob(), `${run_id}.zip`));
  return (
    <>
      <Button busy={load.busy} title={t('All that proves this run, in one file: agentfarm audit verify FILE')} onClick={() => void load.run()}>{t('Download evidence')}</Button>
      <ErrorBox problem={load.problem} />
    </>
  );
}
