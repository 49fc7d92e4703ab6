/** Tasks, newest first: submit one or many, and find them again. The farm filters and counts. */
import React from 'react';

import { Button, Empty, Field, Head } from '../components';
import { useFarm, useResource } from '../context';
import { addressOf, filterOf, sameFilter, type Filter } from '../filters';
import { taskIcon } from '../icons';
import { movesAgents, movesTasks } from '../model';
import type { AgentView, Counts, Listed } from '../protocol';
import { statusWord } from '../words';
import { NewTask } from './NewTask';
import { Many } from './task/Many';
import { TaskList } from './task/TaskList';
import type { Params, View } from './view';

const TASKS = '/tasks?limit=100';
const STATUSES = ['queued', 'assigned', 'running', 'waiting', 'cancelling', 'succeeded', 'failed', 'cancelled'];

function Tasks({ params }: { params: Params }): JSX.Element {
  const { t, model, readdress } = useFarm();
  const [many, setMany] = React.useState(false);
  const filter = filterOf(params);
  const change = (part: Partial<Filter>): void => {
    const next = { ...filter, ...part };
    if (!sameFilter(filter, next)) {
      readdress(addressOf('tasks', { ...next, thread: params.thread ?? '', parent: params.parent ?? '' }));
    }
  };
  const { status, ...rest } = filter;
  const narrowed = query({ ...rest, thread: params.thread ?? '', parent: params.parent ?? '' });
  const path = TASKS + narrowed + query({ status });
  const nothing = narrowed || status ? t('No task is like that.') : t('Nothing was asked for yet.');
  return (
    <section className="af-view" aria-label={t('Tasks')}>
      <Head title={params.thread ? t('Tasks of the thread %1', params.thread) : params.parent ? t('Tasks delegated by %1', params.parent) : t('Tasks')}>
        <Button onClick={() => setMany(!many)}>{many ? t('One task') : t('Many from a CSV')}</Button>
      </Head>
      {many ? <Many first={params.target} /> : <NewTask first={params.target} onSubmitted={() => model.refresh('/tasks')} />}
      <Filters filter={filter} narrowed={narrowed} change={change} />
      <TaskList key={path} path={path} empty={<Empty title={nothing} />} />
    </section>
  );
}

const query = (by: { [name: string]: string }): string => Object.entries(by).filter(([, value]) => value).map(([name, value]) => `&${name}=${encodeURIComponent(value)}`).join('');

function Filters({ filter, narrowed, change }: { filter: Filter; narrowed: string; change: (part: Partial<Filter>) => void }): JSX.Element {
  const { t, person } = useFarm();
  const { value: agents } = useResource<Listed<AgentView>>('/agents?limit=500', movesAgents);
  const { value } = useResource<Counts>(`/tasks/counts?${narrowed.slice(1)}`, movesTasks);
  const [text, setText] = React.useState(filter.text);
  React.useEffect(() => setText(filter.text), [filter.text]); // Back, or a link
  const chip = (status: string, word: string, count: number | undefined): JSX.Element => (
    <button key={status} type="button" className="af-chip" aria-pressed={filter.status === status} onClick={() => change({ status })}>
      {word} <span className="af-quiet">{count ?? ''}</span>
    </button>
  );
  return (
    <form
      className="af-filters" role="search" aria-label={t('Filter tasks')}
      onSubmit={event => {
        event.preventDefault();
        change({ text });
      }}
    >
      <div className="af-line" role="group" aria-label={t('Status')}>
        {chip('', t('all'), value?.total)}
        {STATUSES.filter(one => value?.counts[one] || filter.status === one).map(one => chip(one, statusWord(one, null, t), value?.counts[one] ?? 0))}
      </div>
      <span className="af-spring" />
      <label className="af-check"><input type="checkbox" checked={filter.owner === person} onChange={event => change({ owner: event.target.checked ? person : '' })} /> {t('only mine')}</label>
      <Field label={t('Of the agent')}>
        {ids => (
          <select {...ids} name="of" value={filter.agent} onChange={event => change({ agent: event.target.value })}>
            <option value="">{t('all agents')}</option>
            {(agents?.items ?? []).map(agent => <option key={agent.name} value={agent.name}>{agent.name}</option>)}
          </select>
        )}
      </Field>
      <Field label={t('Text in input or result')}>
        {ids => <input {...ids} name="text" type="search" value={text} onChange={event => setText(event.target.value)} onBlur={() => change({ text })} />}
      </Field>
    </form>
  );
}

export const tasksView: View = {
  id: 'tasks', title: t => t('Tasks'), icon: taskIcon, route: 'tasks', nav: 20, Component: Tasks
};
