/** What every view gets, by React context, and the hooks over the model. */
import React from 'react';

import { Problem, type Api } from './api';
import type { FarmModel, Loaded, Resource, RunEvents, Touches } from './model';
import type { Store } from './store';
import type { Translate } from './translate';

export type { Translate } from './translate';

export interface Farm {
  api: Api;
  model: FarmModel;
  /** Show a route, as `agents/analyst` or `runs/run-…`. In JupyterLab a tab of the main area, on farm pages the page. */
  navigate: (route: string) => void;
  /** Give what is shown another address (filters, a tab): a reload, a link and Back find it so. */
  readdress: (route: string) => void;
  /** The address of a route at the farm pages, for a link in a new tab; '' where it is not known. */
  href: (route: string) => string;
  /** Where the login has expired. */
  signIn: () => void;
  t: Translate;
  /** Whether this is a farm page: deciding in the inbox, secrets and administration work there alone. */
  page: boolean;
  person: string;
  /** Whether this person may decide here. */
  approver: boolean;
  /** Whether this person sees the whole farm, as far as it is known here. */
  operator: boolean;
}

const FarmContext = React.createContext<Farm | null>(null);
/** Whether the view is shown: a hidden tab asks for nothing. */
const ShownContext = React.createContext(true);

export function FarmProvider(props: { farm: Farm; shown?: boolean; children: React.ReactNode }): JSX.Element {
  return (
    <FarmContext.Provider value={props.farm}>
      <ShownContext.Provider value={props.shown ?? true}>{props.children}</ShownContext.Provider>
    </FarmContext.Provider>
  );
}

export function useFarm(): Farm {
  const farm = React.useContext(FarmContext);
  if (!farm) {
    throw new Error('a component of the farm stands outside its FarmProvider');
  }
  return farm;
}

/** Whether the view is shown: what stands above the page (a dialog) goes with its tab. */
export const useShown = (): boolean => React.useContext(ShownContext);

const nothing = (): void => undefined;

/** The store's value, drawn again when it changes, while the view is shown. */
export function useStore<T>(store: Store<T>): T {
  const shown = React.useContext(ShownContext);
  const subscribe = React.useCallback((listener: () => void) => (shown ? store.subscribe(listener) : nothing), [store, shown]);
  return React.useSyncExternalStore(subscribe, store.get);
}

/** What a GET answers, kept true while the view is shown; `touches` says which changes may move it. */
export function useResource<T>(path: string, touches?: Touches): Loaded<T> & { resource: Resource<T> } {
  const { model } = useFarm();
  const resource = model.resource<T>(path, touches);
  const loaded = useStore(resource);
  return { ...loaded, resource };
}

/** The events of a run as they come. */
export function useRun(run_id: string): RunEvents {
  const { model } = useFarm();
  return useStore(model.run(run_id));
}

/** The model's words while it speaks, until the recorded reply replaces them. `live`: false ends it. */
export function useTokens(run_id: string, live: boolean): string {
  const { api } = useFarm();
  const shown = React.useContext(ShownContext);
  const [words, setWords] = React.useState('');
  React.useEffect(() => {
    setWords('');
    if (!live || !shown) {
      return;
    }
    const end = new AbortController();
    void (async () => {
      try {
        for await (const message of api.stream(`/runs/${run_id}/tokens`, 0, end.signal)) {
          const data = message.data as { content?: string; text?: string; reset?: boolean } | undefined;
          if (data?.content) {
            setWords(before => before + data.content);
          }
        }
      } catch {
        // for the eye only: the recorded reply comes by the stream of changes, which shows that it was cut
      }
    })();
    return () => end.abort();
  }, [api, run_id, live, shown]);
  return words;
}

/** An act of the person: `run` it, `busy` meanwhile, `problem` where it was refused. */
export function useAction<A extends unknown[]>(
  act: (...args: A) => Promise<unknown>
): { run: (...args: A) => Promise<boolean>; busy: boolean; problem: Problem | null; clear: () => void } {
  const { model } = useFarm();
  const [busy, setBusy] = React.useState(false);
  const [problem, setProblem] = React.useState<Problem | null>(null);
  const run = async (...args: A): Promise<boolean> => {
    setBusy(true);
    setProblem(null);
    try {
      await act(...args);
      return true;
    } catch (error) {
      const found = Problem.of(error);
      model.judge(found);
      setProblem(found);
      return false;
    } finally {
      setBusy(false);
    }
  };
  return { run, busy, problem, clear: () => setProblem(null) };
}

/** What a dialog's form does: it is sent, and where that went well, `onDone` follows. */
export function useForm(
  act: () => Promise<unknown>, onDone: () => void
): { submit: (event: React.FormEvent) => Promise<void>; busy: boolean; problem: Problem | null } {
  const { run, busy, problem } = useAction(act);
  const submit = async (event: React.FormEvent): Promise<void> => {
    event.preventDefault();
    if (await run()) {
      onDone();
    }
  };
  return { submit, busy, problem };
}
