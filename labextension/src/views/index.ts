/** Every view of the farm; panel and pages draw their navigation from this list. */
import { agentView } from './Agent';
import { agentsView } from './Agents';
import { budgetsView } from './Budgets';
import { auditView } from './Audit';
import { homeView } from './Home';
import { microserversView } from './Microservers';
import { batchView } from './Batch';
import { newAgentView } from './NewAgent';
import { peopleView } from './People';
import { playgroundView } from './Playground';
import { poolsView } from './Pools';
import { inboxItemView, inboxView } from './Inbox';
import { runView } from './Run';
import { taskView } from './Task';
import { tasksView } from './Tasks';
import type { View } from './view';

export const views: View[] = [
  homeView, agentsView, poolsView, newAgentView, agentView, playgroundView, tasksView, taskView, batchView, runView, inboxView, inboxItemView, microserversView,
  budgetsView, auditView, peopleView
];

export type { Params, View } from './view';
