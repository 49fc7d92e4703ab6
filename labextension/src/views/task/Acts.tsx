/** What can be done with a task: stop it, rest it, let it go on, do it again. */
import React from 'react';

import { Problem } from '../../api';
import { Button, Dialog, ErrorBox, Value } from '../../components';
import { useAction, useFarm } from '../../context';
import type { TaskView } from '../../protocol';
import { ENDED } from '../../words';
import { useMay } from '../useMay';

/** A call with effect `once` that was made, as a refused rerun names it. */
interface Effect {
  call: string;
  tool: string;
  /** JSON text. */
  arguments: string;
  state: string;
}

/** Buttons for the head, and what stands under it: why one was refused, and the dialog before effects happen again. */
export function useTaskActs(task: Pick<TaskView, 'task_id' | 'status' | 'waiting' | 'run_id' | 'owner' | 'agent'> | undefined): { buttons: React.ReactNode; below: React.ReactNode } {
  const { t, api, model, navigate } = useFarm();
  const may = useMay();
  const [effects, setEffects] = React.useState<Effect[] | null>(null);
  const at = `/tasks/${task?.task_id}`;
  const act = useAction(async (name: 'cancel' | 'pause' | 'resume') => {
    await api.post<TaskView>(`${at}/${name}`, name === 'resume' ? {} : { reason: t('at the panel') });
    model.refresh('/tasks');
    model.refresh('/runs');
  });
  const rerun = useAction(async (confirm: boolean) => {
    try {
      const anew = await api.post<TaskView>(`${at}/rerun`, { confirm });
      setEffects(null);
      model.refresh('/tasks');
      navigate(`tasks/${anew.task_id}`);
    } catch (error) {
      const had = error instanceof Problem && error.status === 409 ? error.body.effects : undefined;
      if (!Array.isArray(had)) {
        throw error;
      }
      setEffects(had as Effect[]);
    }
  });
  const rests = task?.waiting === 'paused' || task?.waiting === 'restored';
  const buttons = task && may(task, 'chat') && (ENDED.has(task.status)
    ? <Button busy={rerun.busy} onClick={() => void rerun.run(false)}>{t('Run again')}</Button>
    : (
      <>
        {rests && <Button look="primary" busy={act.busy} onClick={() => void act.run('resume')}>{t('Resume')}</Button>}
        {!rests && task.run_id && task.status !== 'cancelling' && <Button busy={act.busy} onClick={() => void act.run('pause')}>{t('Pause')}</Button>}
        {task.status !== 'cancelling' && <Button look="danger" busy={act.busy} onClick={() => void act.run('cancel')}>{t('Cancel')}</Button>}
      </>
    ));
  const below = (
    <>
      <ErrorBox problem={act.problem ?? (effects ? null : rerun.problem)} />
      {effects && (
        <Dialog
          title={t('This may happen a second time')} onClose={() => setEffects(null)}
          acts={<Button look="danger" busy={rerun.busy} onClick={() => void rerun.run(true)}>{t('Run again all the same')}</Button>}
        >
          <p>{t('The run has done this, or may have. Another run begins anew and may do it again:')}</p>
          {effects.map(one => <div key={one.call}><b>{one.tool}</b> <span className="af-quiet">{one.state.replace(/_/g, ' ')}</span><Value value={one.arguments} /></div>)}
          <ErrorBox problem={rerun.problem} />
        </Dialog>
      )}
    </>
  );
  return { buttons, below };
}
