/** A list of tasks, live. The farm filters; the next page comes when the end is in sight. */
import React from 'react';

import type { Problem } from '../../api';
import { Badge, ErrorBox, Loading, Table, Time } from '../../components';
import { useFarm, useResource } from '../../context';
import { movesTasks } from '../../model';
import type { Listed, TaskView } from '../../protocol';
import { actor, oneLine, statusWord } from '../../words';

export const routeOf = (task: TaskView): string => (task.run_id ? `runs/${task.run_id}` : `tasks/${task.task_id}`);

/** `path`: `/tasks?limit=100` and what narrows it. Give it as `key` too: another filter is another list. */
export function TaskList({ path, empty }: { path: string; empty: React.ReactNode }): JSX.Element {
  const { t, navigate } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<TaskView>>(path, movesTasks);
  const { items, more, refused } = useOlder(path, value);
  return (
    <>
      <ErrorBox problem={problem ?? refused} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value && (
        <Table<TaskView>
          items={items}
          label={t('Tasks')}
          keyOf={task => task.task_id}
          onOpen={task => navigate(routeOf(task))}
          more={more}
          empty={empty}
          columns={[
            { id: 'input', title: t('Task'), width: 'minmax(0, 3fr)', cell: task => oneLine(task.input) },
            { id: 'agent', title: t('Agent'), cell: task => actor(task.agent ?? task.target, t) },
            { id: 'status', title: t('Status'), width: '11rem', stays: true, cell: task => <Badge state={task.status} word={statusWord(task.status, task.waiting, t)} /> },
            { id: 'outcome', title: t('Outcome'), width: 'minmax(0, 2fr)', cell: task => <span className="af-quiet">{outcome(task)}</span> },
            { id: 'at', title: t('Submitted'), width: '7rem', cell: task => <Time at={task.created_at} /> }
          ]}
        />
      )}
    </>
  );
}

const outcome = (task: TaskView): string => oneLine(task.error ? task.error.message : task.result);

/** Pages behind the first one, which is kept live; ids sort by time, so pages meet without doubles. */
function useOlder(path: string, first: Listed<TaskView> | undefined): { items: TaskView[]; more: (() => void) | undefined; refused: Problem | null } {
  const { api } = useFarm();
  const [older, setOlder] = React.useState<Listed<TaskView>>({ items: [], next: null });
  const [refused, setRefused] = React.useState<Problem | null>(null);
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
    api.get<Listed<TaskView>>(`${path}&cursor=${encodeURIComponent(String(cursor))}`)
      .then(page => setOlder(before => ({ items: [...before.items, ...page.items], next: page.next ?? null })), setRefused)
      .finally(() => {
        busy.current = false;
      });
  };
  return { items, more, refused };
}
