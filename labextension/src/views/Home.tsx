/** The farm at a glance: what runs, what waits for me, what was asked for last, the agents, and whether the farm is well. */
import React from 'react';

import { Badge, Button, Card, Empty, ErrorBox, Go, Head, Loading, Time } from '../components';
import { useFarm, useResource, useStore } from '../context';
import { kindWord, subject } from '../decisions';
import { homeIcon } from '../icons';
import { movesAgents, movesTasks, type Loaded } from '../model';
import type { AgentView, Counts, Health, InboxView, Listed, TaskView } from '../protocol';
import { actor, oneLine, statusWord } from '../words';
import { AGENTS, agentBadge, serverState } from './Agents';
import type { View } from './view';

const UNDER_WAY = 'queued,assigned,running,waiting,cancelling';
const MOST = 8;

function Home(): JSX.Element {
  const { t, navigate, operator } = useFarm();
  const agents = useResource<Listed<AgentView>>(AGENTS, movesAgents);
  const latest = useResource<Listed<TaskView>>(`/tasks?limit=${MOST}`, movesTasks);
  const fresh = agents.value?.items.length === 0;
  const mayRun = agents.value?.items.some(agent => agent.published && !agent.retired_at);
  return (
    <section className="af-view af-home" aria-label={t('Home')}>
      <Head title={operator ? t('The farm') : t('Your part of the farm')}>
        <Button onClick={() => navigate('new-agent')}>{t('New agent')}</Button>
        {mayRun && <Button look="primary" onClick={() => navigate('tasks')}>{t('New task')}</Button>}
      </Head>
      <FarmHealth />
      {fresh && (
        <Empty title={t('There is no agent yet. Make one: choose a template, say what it shall do, try it, publish it; then give it a task.')}>
          <Button look="primary" onClick={() => navigate('new-agent')}>{t('Make your first agent')}</Button>
        </Empty>
      )}
      <div className="af-frames">
        <UnderWay />
        <ForMe />
        <Card title={t('Latest tasks')} beside={<Go to="tasks">{t('all tasks')}</Go>}>
          <Shown {...latest} onRetry={latest.resource.refresh} empty={mayRun ? t('Nothing was asked for yet: give an agent a task.') : t('Nothing was asked for yet: publish an agent, then give it a task.')}>
            {latest.value?.items.map(task => <TaskLine key={task.task_id} task={task} />)}
          </Shown>
        </Card>
        <Card title={t('Agents')} beside={<Go to="agents">{t('all agents')}</Go>}>
          <Shown {...agents} onRetry={agents.resource.refresh} empty={t('No agent yet.')}>
            {agents.value?.items.slice(0, MOST).map(agent => (
              <li key={agent.name}>
                <Go to={`agents/${agent.name}`} className="af-grow">{agent.name}</Go>
                {agent.server && <Badge {...serverState(agent, t)} />}
                {agentBadge(agent, t)}
              </li>
            ))}
          </Shown>
        </Card>
      </div>
    </section>
  );
}

/** Whether the farm is well, and which model answers. What is wrong stands above everything, in the shell's own banner. */
function FarmHealth(): JSX.Element | null {
  const { t, model: farm } = useFarm();
  const { problems } = useStore(farm.health);
  const { value } = useResource<Health>('/health', () => false); // the stream tells when it is otherwise
  const model = value?.model as { name?: string; upstream?: string } | null | undefined;
  return value ? (
    <p className="af-line af-home-health">
      {problems.length === 0 && <Badge state="ok" word={t('the farm is well')} />}
      <span>{problems.some(one => one.startsWith('model')) ? '' : model?.name ? t('%1 answers, by %2', model.name, model.upstream ?? '') : t('no model answers')}</span>
      <span className="af-quiet">{t('AgentFarm %1 on %2', value.version, value.database)}</span>
    </p>
  ) : null;
}

function UnderWay(): JSX.Element {
  const { t } = useFarm();
  const tasks = useResource<Listed<TaskView>>(`/tasks?status=${UNDER_WAY}&limit=${MOST}`, movesTasks);
  const counts = useResource<Counts>(`/tasks/counts?status=${UNDER_WAY}`, movesTasks);
  const found = Object.entries(counts.value?.counts ?? {});
  return (
    <Card title={t('Under way')} beside={found.map(([status, many]) => <Badge key={status} state={status} word={`${many} ${statusWord(status, null, t)}`} />)}>
      <Shown {...tasks} onRetry={tasks.resource.refresh} empty={t('Nothing runs now.')}>
        {tasks.value?.items.map(task => <TaskLine key={task.task_id} task={task} />)}
      </Shown>
    </Card>
  );
}

function TaskLine({ task }: { task: TaskView }): JSX.Element {
  const { t } = useFarm();
  return (
    <li>
      <Go to={task.run_id ? `runs/${task.run_id}` : `tasks/${task.task_id}`} className="af-grow">{oneLine(task.input, 90) || task.task_id}</Go>
      <span className="af-quiet">{actor(task.agent ?? task.target, t)}</span>
      <Badge state={task.status} word={statusWord(task.status, task.waiting, t)} />
      <Time at={task.created_at} />
    </li>
  );
}

function ForMe(): JSX.Element {
  const { t, model, approver } = useFarm();
  const waiting = useStore(model.inbox);
  const items: InboxView[] = waiting.value?.items ?? [];
  return (
    <Card title={approver ? t('Waits for you') : t('Waits for a person')} beside={items.length > 0 && <Badge state="waiting" word={t('%1 waiting', items.length)} />}>
      <Shown {...waiting} onRetry={model.inbox.refresh} empty={t('Nothing waits for a person.')}>
        {items.slice(0, MOST).map(item => (
          <li key={item.inbox_id}>
            <Go to={`inbox/${item.inbox_id}`} className="af-grow">{oneLine(subject(item, t), 90)}</Go>
            <span className="af-quiet">{actor(item.agent, t)}</span>
            <Badge state={item.kind === 'in_doubt' ? 'in_doubt' : 'waiting'} word={kindWord(item.kind, t)} />
            <Time at={item.asked_at} />
          </li>
        ))}
      </Shown>
    </Card>
  );
}

/** The list of a card, or why there is none. */
function Shown({ state, value, problem, onRetry, empty, children }: Loaded<Listed<unknown>> & {
  onRetry: () => void;
  empty: string;
  children: React.ReactNode;
}): JSX.Element {
  const { t, model } = useFarm();
  const common = useStore(model.common);
  return (
    <>
      <ErrorBox problem={problem} onRetry={onRetry} />
      {state === 'error' && common && <p className="af-quiet">{t('Not known now.')}</p>}
      {state === 'loading' && <Loading />}
      {value && (value.items.length ? <ul className="af-lines">{children}</ul> : <p className="af-quiet">{empty}</p>)}
    </>
  );
}

export const homeView: View = {
  id: 'home', title: t => t('Home'), icon: homeIcon, route: 'home', nav: 0, where: 'page', Component: Home
};
