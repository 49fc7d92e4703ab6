/** One task: while it has no run yet, why; then its run. */
import React from 'react';

import { Badge, ErrorBox, Head, Loading, Value } from '../components';
import { useFarm, useResource } from '../context';
import { taskIcon } from '../icons';
import { movesTasks } from '../model';
import type { TaskView } from '../protocol';
import { statusWord } from '../words';
import { ModeBadge } from './mode';
import { RunOf } from './Run';
import { TaskLinks, TaskOutcome } from './task/About';
import { useTaskActs } from './task/Acts';
import type { Params, View } from './view';

function Task({ params }: { params: Params }): JSX.Element {
  const { t } = useFarm();
  const { value: task, problem, resource } = useResource<TaskView>(`/tasks/${params.id}`, movesTasks);
  const { buttons, below } = useTaskActs(task);
  if (!task) {
    return <section className="af-view">{problem ? <ErrorBox problem={problem} onRetry={resource.refresh} /> : <Loading />}</section>;
  }
  if (task.run_id) {
    return <RunOf run_id={task.run_id} key={task.run_id} />;
  }
  return (
    <section className="af-view" aria-label={t('Task')}>
      <Head title={task.agent ?? task.target} beside={<><Badge state={task.status} word={statusWord(task.status, task.waiting, t)} /><ModeBadge mode={task.mode} /></>}>
        {buttons}
      </Head>
      <TaskLinks task={task} delegates={false} />
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {below}
      <TaskOutcome task={task} run_id="" />
      <Value value={task.input} />
      <p className="af-quiet" role="status">{task.note || t('It has no run yet.')}</p>
    </section>
  );
}

export const taskView: View = { id: 'task', title: t => t('Task'), icon: taskIcon, route: 'tasks/:id', Component: Task };
