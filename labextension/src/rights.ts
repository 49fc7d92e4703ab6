/** Who may do what, as the farm decides it (handlers/asking.py): a page offers nothing that would be refused. Pure. */
const RANK: { [rights: string]: number } = { view: 1, chat: 2, manage: 3, owner: 4, operator: 5 };

export type Need = 'view' | 'chat' | 'manage' | 'owner';

export const reaches = (has: string | undefined, need: Need): boolean => (RANK[has ?? ''] ?? 0) >= RANK[need]!;

export interface Asker {
  person: string;
  operator: boolean;
}

/** Of a task or run: its owner may all, others by their rights on its agent. */
export function may(asker: Asker, thing: { owner: string; agent?: string | null }, agents: readonly { name: string; rights: string }[], need: Need): boolean {
  return asker.operator || thing.owner === asker.person || reaches(agents.find(one => one.name === thing.agent)?.rights, need);
}
