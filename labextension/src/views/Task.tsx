/** One task: while it has no run yet, why; then its run. */
import React from 'react';

import { Badge, ErrorBox, Head, Loading, Value } from '../components';
import { useFarm, useResource } from '../context';
import { taskIcon } from '../icons';
import { movesTasks } from '../model';
import type { TaskView } from '../protocol';
import { statusWord } from '../words';
import { RunOf } from './Run';
import type { Params, View } from './view';

function Task({ params }: { params: Params }): JSX.Element {
  const { t } = useFarm();
  const { value: task, problem, resource } = useResource<TaskView>(`/tasks/${params.id}`, movesTasks);
  if (!task) {
    return <section className="af-view">{problem ? <ErrorBox problem={problem} onRetry={resource.refresh} /> : <Loading />}</section>;
  }
  if (task.run_id) {
    return <RunOf run_id={task.run_id} />;
  }
  return (
    <section className="af-view" aria-label={t('Task')}>
      <Head title={t('Task')} beside={<Badge state={task.status} word={statusWord(task.status, task.waiting)} />} />
      <Value value={task.input} />
      <p className="af-quiet" role="status">{task.note || t('It has no run yet.')}</p>
    </section>
  );
}

export const taskView: View = { id: 'task', title: t => t('Task'), icon: taskIcon, route: 'tasks/:id', Component: Task };
