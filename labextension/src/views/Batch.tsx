/** Many tasks submitted together: how far they are, live, and each with its outcome. */
import React from 'react';

import { Badge, Button, Empty, ErrorBox, Head, Loading, Time } from '../components';
import { useAction, useFarm, useResource } from '../context';
import { taskIcon } from '../icons';
import { movesTasks } from '../model';
import type { BatchView } from '../protocol';
import { ENDED, statusWord } from '../words';
import { TaskList } from './task/TaskList';
import type { Params, View } from './view';

function Batch({ params }: { params: Params }): JSX.Element {
  const { t, api, model } = useFarm();
  const id = params.id ?? '';
  const { value: batch, problem, resource } = useResource<BatchView>(`/batches/${id}`, movesTasks);
  const cancel = useAction(async () => {
    await api.post(`/batches/${id}/cancel`);
    resource.refresh();
    model.refresh('/tasks');
  });
  const counts = Object.entries(batch?.counts ?? {});
  const ended = counts.reduce((sum, [status, count]) => sum + (ENDED.has(status) ? count : 0), 0);
  const path = `/tasks?limit=100&batch=${encodeURIComponent(id)}`;
  return (
    <section className="af-view" aria-label={t('Batch')}>
      <Head title={batch?.key ?? t('Batch')} beside={batch && <Badge state={ended < batch.tasks ? 'running' : 'ok'} word={t('%1 of %2 ended', ended, batch.tasks)} />}>
        {batch && ended < batch.tasks && <Button busy={cancel.busy} onClick={() => void cancel.run()}>{t('Cancel all')}</Button>}
      </Head>
      <ErrorBox problem={problem ?? cancel.problem} onRetry={resource.refresh} />
      {!batch && !problem && <Loading />}
      {batch && (
        <>
          <p className="af-quiet">{t('submitted by %1', batch.submitted_by)} · {batch.batch_id} · <Time at={batch.created_at} /></p>
          <progress className="af-progress" max={batch.tasks || 1} value={ended} aria-label={t('Tasks that have ended')} />
          <div className="af-line">{counts.map(([status, count]) => <Badge key={status} state={status} word={`${count} ${statusWord(status, null, t)}`} />)}</div>
          <TaskList key={path} path={path} empty={<Empty title={t('It has no task.')} />} />
        </>
      )}
    </section>
  );
}

export const batchView: View = { id: 'batch', title: t => t('Batch'), icon: taskIcon, route: 'batches/:id', under: 'tasks', Component: Batch };
