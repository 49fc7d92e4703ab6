/** Every view of the farm; panel and pages draw their navigation from this list. */
import { agentsView } from './Agents';
import { runView } from './Run';
import { taskView } from './Task';
import { tasksView } from './Tasks';
import type { View } from './view';

export const views: View[] = [agentsView, tasksView, taskView, runView];

export type { Params, View } from './view';
