/** The draft as it is edited: saved a moment after the last change, by its revision, so that nobody's work is overwritten. */
import React from 'react';

import { Problem } from '../../api';
import { useFarm, useStore, type Farm } from '../../context';
import { merge, same, type Clash } from '../../draft';
import type { FarmModel } from '../../model';
import type { AgentView, Definition } from '../../protocol';
import { Store } from '../../store';

export type SaveState = 'saved' | 'edited' | 'saving' | 'refused' | 'clash';

export interface Conflict {
  /** Who wrote the other one, where the farm says so. */
  by: string;
  clashes: Clash[];
  /** What only they changed: it is in the draft already. */
  taken: string[];
}

export interface DraftEditing {
  draft: Definition;
  rev: number;
  state: SaveState;
  problem: Problem | null;
  conflict: Conflict | null;
  /** Change it; it is saved by itself. `files`: sources of tools that the draft names `file:<name>` from now on. */
  edit: (change: (draft: Definition) => Definition, files?: Files) => void;
  /** Both sides were seen: what stands in the draft now is saved. */
  settle: () => void;
  /** Save at once; says whether all of it is saved. */
  flush: () => Promise<boolean>;
  /** Take over an agent that an own act changed: restore, import. */
  adopt: (agent: AgentView) => void;
}

type Files = { [name: string]: string };

const CALM_MS = 700; // after the last key, until it is saved

/** Holds everything outside of React: a save under way sees what was typed meanwhile, and who leaves the view and comes back finds it. */
class Editing extends Store<number> {
  base: Definition;
  rev: number;
  draft: Definition;
  state: SaveState = 'saved';
  problem: Problem | null = null;
  conflict: Conflict | null = null;
  private files: Files = {}; // what is not saved yet
  private timer: ReturnType<typeof setTimeout> | null = null;
  private saving: Promise<void> | null = null;
  private readonly name: string;

  constructor(private readonly farm: Farm, agent: AgentView) {
    super(0);
    this.base = this.draft = agent.draft;
    this.rev = agent.draft_rev;
    this.name = agent.name;
  }

  private changed(): void {
    this.set(this.get() + 1);
  }

  private saved(): void {
    this.farm.model.refresh('/agents');
  }

  readonly edit = (change: (draft: Definition) => Definition, files: Files = {}): void => {
    this.draft = change(this.draft);
    this.files = { ...this.files, ...files };
    this.state = this.conflict ? 'clash' : 'edited';
    this.changed();
    if (!this.conflict) {
      this.later();
    }
  };

  readonly settle = (): void => {
    this.conflict = null;
    this.state = 'edited';
    this.changed();
    void this.flush();
  };

  readonly adopt = (agent: AgentView): void => {
    this.base = this.draft = agent.draft;
    this.rev = agent.draft_rev;
    this.state = 'saved';
    this.conflict = this.problem = null;
    this.changed();
    this.saved();
  };

  /** What the farm says meanwhile: taken over where nothing of one's own is unsaved. */
  readonly heard = (agent: AgentView): void => {
    if (agent.draft_rev > this.rev && this.state === 'saved' && !this.saving) {
      this.base = this.draft = agent.draft;
      this.rev = agent.draft_rev;
      this.changed();
    }
  };

  readonly flush = async (): Promise<boolean> => {
    this.stop();
    while (this.saving) {
      await this.saving;
    }
    if ((this.state === 'edited' || this.state === 'refused') && !this.conflict) {
      this.saving = this.save();
      await this.saving;
    }
    return this.whole;
  };

  get whole(): boolean {
    return this.state === 'saved';
  }

  private stop(): void {
    if (this.timer !== null) {
      clearTimeout(this.timer);
      this.timer = null;
    }
  }

  private later(): void {
    this.stop();
    this.timer = setTimeout(() => void this.flush(), CALM_MS);
  }

  private async save(): Promise<void> {
    const sent = this.draft;
    this.state = 'saving';
    this.problem = null;
    this.changed();
    try {
      const files = Object.keys(this.files).length ? { files: this.files } : {};
      const agent = await this.farm.api.patch<AgentView>(`/agents/${this.name}`, { draft: sent, ...files }, this.rev);
      this.base = agent.draft;
      this.rev = agent.draft_rev;
      if (this.draft === sent) {
        this.draft = agent.draft;
        this.files = {};
        this.state = 'saved';
      } else {
        this.state = 'edited';
        this.later();
      }
      this.saved();
    } catch (error) {
      await this.failed(Problem.of(error));
    } finally {
      this.saving = null;
      this.changed();
    }
  }

  private async failed(problem: Problem): Promise<void> {
    this.farm.model.judge(problem);
    this.state = 'refused';
    this.problem = problem;
    if (problem.status === 409) {
      try {
        await this.moved(await this.farm.api.get<AgentView>(`/agents/${this.name}`));
      } catch (error) {
        this.problem = Problem.of(error);
      }
    } else if (problem.passing) {
      this.later();
    }
  }

  /** Somebody else saved first: what only they changed is taken, what both changed is asked. */
  private async moved(agent: AgentView): Promise<void> {
    if (agent.retired_at || agent.draft_rev === this.rev) {
      return; // refused for another reason
    }
    const { merged, clashes, taken } = merge(this.base, this.draft, agent.draft);
    this.base = agent.draft;
    this.rev = agent.draft_rev;
    this.draft = merged;
    this.problem = null;
    if (clashes.length) {
      this.conflict = { by: agent.edited_by ?? '', clashes, taken };
      this.state = 'clash';
    } else {
      this.state = same(merged, agent.draft) ? 'saved' : 'edited';
      this.later();
    }
  }
}

const editings = new WeakMap<FarmModel, Map<string, Editing>>();

function editingOf(farm: Farm, agent: AgentView): Editing {
  const all = editings.get(farm.model) ?? new Map<string, Editing>();
  editings.set(farm.model, all);
  const found = all.get(agent.name) ?? new Editing(farm, agent);
  all.set(agent.name, found);
  return found;
}

export function useDraft(agent: AgentView): DraftEditing {
  const now = editingOf(useFarm(), agent);
  useStore(now);
  React.useEffect(() => now.heard(agent), [now, agent]);
  React.useEffect(() => {
    const leaving = (event: BeforeUnloadEvent): void => {
      if (!now.whole) {
        void now.flush();
        event.preventDefault();
      }
    };
    window.addEventListener('beforeunload', leaving);
    return () => {
      window.removeEventListener('beforeunload', leaving);
      void now.flush();
    };
  }, [now]);
  const { draft, rev, state, problem, conflict, edit, settle, flush, adopt } = now;
  return { draft, rev, state, problem, conflict, edit, settle, flush, adopt };
}
