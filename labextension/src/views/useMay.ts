/** Whether this person may do something with a task or a run; by the list of agents, which is read once for all. */
import { useFarm, useResource } from '../context';
import { movesAgents } from '../model';
import type { AgentView, Listed } from '../protocol';
import { may, type Need } from '../rights';
import { AGENTS } from './Agents';

export function useMay(): (thing: { owner: string; agent?: string | null } | undefined, need: Need) => boolean {
  const { person, operator } = useFarm();
  const { value } = useResource<Listed<AgentView>>(AGENTS, movesAgents);
  return (thing, need) => thing !== undefined && may({ person, operator }, thing, value?.items ?? [], need);
}
