/** Tasks, newest first, live. The farm filters; the next page comes when the end is in sight. */
import React from 'react';

import { Badge, Empty, ErrorBox, Head, Loading, Table, Time } from '../components';
import { useFarm, useResource } from '../context';
import { taskIcon } from '../icons';
import { movesTasks } from '../model';
import type { Listed, TaskView } from '../protocol';
import { oneLine, statusWord } from '../words';
import { NewTask } from './NewTask';
import type { Params, View } from './view';

export const TASKS = '/tasks?limit=100';

function Tasks({ params }: { params: Params }): JSX.Element {
  const { t, navigate } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<TaskView>>(TASKS, movesTasks);
  const { items, more, refused } = useOlder(value);
  return (
    <section className="af-view" aria-label={t('Tasks')}>
      <Head title={t('Tasks')} />
      <NewTask first={params.target} onSubmitted={task => resource.patch(now => ({ ...now, items: [task, ...now.items] }))} />
      <ErrorBox problem={problem ?? refused} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value && (
        <Table<TaskView>
          items={items}
          label={t('Tasks')}
          keyOf={task => task.task_id}
          onOpen={task => navigate(task.run_id ? `runs/${task.run_id}` : `tasks/${task.task_id}`)}
          more={more}
          empty={<Empty title={t('Nothing was asked for yet.')} />}
          columns={[
            { id: 'input', title: t('Task'), width: 'minmax(0, 3fr)', cell: task => oneLine(task.input) },
            { id: 'agent', title: t('Agent'), cell: task => task.agent ?? task.target },
            { id: 'status', title: t('Status'), width: '11rem', cell: task => <Badge state={task.status} word={statusWord(task.status, task.waiting)} /> },
            { id: 'at', title: t('Submitted'), width: '7rem', cell: task => <Time at={task.created_at} /> }
          ]}
        />
      )}
    </section>
  );
}

/** Pages behind the first one, which is kept live; ids sort by time, so pages meet without doubles. */
function useOlder(first: Listed<TaskView> | undefined): {
  items: TaskView[];
  more: (() => void) | undefined;
  refused: import('../api').Problem | null;
} {
  const { api } = useFarm();
  const [older, setOlder] = React.useState<Listed<TaskView>>({ items: [], next: null });
  const [refused, setRefused] = React.useState<import('../api').Problem | null>(null);
  const busy = React.useRef(false);
  const end = first?.items[first.items.length - 1]?.task_id ?? '';
  const items = React.useMemo(
    () => [...(first?.items ?? []), ...older.items.filter(task => task.task_id < end)], [first, older, end]
  );
  const cursor = older.items.length ? older.next : first?.next;
  const more = cursor == null ? undefined : (): void => {
    if (busy.current) {
      return;
    }
    busy.current = true;
    api.get<Listed<TaskView>>(`${TASKS}&cursor=${encodeURIComponent(String(cursor))}`)
      .then(page => setOlder(before => ({ items: [...before.items, ...page.items], next: page.next ?? null })), setRefused)
      .finally(() => {
        busy.current = false;
      });
  };
  return { items, more, refused };
}

export const tasksView: View = {
  id: 'tasks', title: t => t('Tasks'), icon: taskIcon, route: 'tasks', nav: 20, Component: Tasks
};
