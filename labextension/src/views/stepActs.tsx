/** What can be done at a reply of a run: begin another run there, perhaps with another prompt; see what the model was really sent. */
import React from 'react';

import { Button, Dialog, ErrorBox, Field, type StepActs } from '../components';
import { useAction, useFarm, useRun } from '../context';
import type { AgentView, Event, Mode, NewFork, TaskView } from '../protocol';
import { PromptField } from './agent/PromptField';
import { ModeField } from './mode';
import { RequestDialog } from './Request';

interface Asked {
  run_id: string;
  step: number;
}

/** What a run's steps offer, and the dialog that is open. `onForked` left out: the new task is shown. */
export function useStepActs(agent: string, mode: string | undefined, onForked?: (task: TaskView) => void, mayFork = true): { acts: StepActs; dialog: React.ReactNode } {
  const { navigate } = useFarm();
  const [fork, setFork] = React.useState<Asked | null>(null);
  const [request, setRequest] = React.useState<{ run_id: string; seq: number } | null>(null);
  const acts = React.useMemo<StepActs>(() => ({
    onFork: mayFork ? (run_id, step) => setFork({ run_id, step }) : undefined, onRequest: (run_id, seq) => setRequest({ run_id, seq })
  }), [mayFork]);
  const done = (task: TaskView): void => {
    setFork(null);
    (onForked ?? (one => navigate(`tasks/${one.task_id}`)))(task);
  };
  const dialog = (
    <>
      {fork && <ForkDialog asked={fork} agent={agent} usual={mode === 'simulate' ? 'simulate' : 'ask'} onClose={() => setFork(null)} onForked={done} />}
      {request && <RequestDialog {...request} onClose={() => setRequest(null)} />}
    </>
  );
  return { acts, dialog };
}

function ForkDialog({ asked, agent, usual, onClose, onForked }: {
  asked: Asked;
  agent: string;
  usual: Mode;
  onClose: () => void;
  onForked: (task: TaskView) => void;
}): JSX.Element {
  const { t, api } = useFarm();
  const { events, count } = useRun(asked.run_id);
  const [of, setOf] = React.useState<'run' | 'draft'>('run');
  const [drafted, setDrafted] = React.useState('');
  const [prompt, setPrompt] = React.useState<string | null>(null);
  const [input, setInput] = React.useState('');
  const [chosen, setChosen] = React.useState<Mode>(usual);
  const choose = useAction(async (which: 'run' | 'draft') => {
    if (which === 'draft') {
      setDrafted((await api.get<AgentView>(`/agents/${agent}`)).draft.prompt ?? '');
    }
    setOf(which);
  });
  const act = useAction(async () => {
    const wish: NewFork = {
      step: asked.step, mode: chosen, ...(of === 'draft' ? { version: 'draft' as const } : {}), ...(prompt !== null ? { prompt } : {}), ...(input ? { input } : {})
    };
    onForked(await api.post<TaskView>(`/runs/${asked.run_id}/fork`, wish));
  });
  return (
    <Dialog
      title={t('Fork before reply %1', asked.step + 1)} onClose={onClose}
      acts={<Button look="primary" busy={act.busy} onClick={() => void act.run()}>{t('Begin the fork')}</Button>}
    >
      <p className="af-quiet">{t('A new run begins with the messages before this reply; the run itself stays as it is.')}</p>
      <div className="af-line">
        <Field label={t('Definition')}>
          {ids => (
            <select {...ids} value={of} onChange={event => void choose.run(event.target.value as 'run' | 'draft')}>
              <option value="run">{t('as the run had it')}</option>
              <option value="draft">{t('the draft')}</option>
            </select>
          )}
        </Field>
        <ModeField mode={chosen} onChange={setChosen} />
      </div>
      <PromptField
        prompt={prompt ?? (of === 'draft' ? drafted : promptOf(events, count))} rows={8} onChange={setPrompt} hint={t('As it was. Change it to see what another prompt does.')}
      />
      <Field label={t('Then say (may be empty)')}>
        {ids => <textarea {...ids} rows={2} value={input} onChange={event => setInput(event.target.value)} />}
      </Field>
      <ErrorBox problem={act.problem ?? choose.problem} />
    </Dialog>
  );
}

/** The rendered system prompt of a run: its first message. */
function promptOf(events: readonly Event[], count: number): string {
  const found = events.slice(0, Math.min(count, 50)).find(event => event.kind === 'message.added' && (event.body as { role?: string } | null)?.role === 'system');
  return String((found?.body as { content?: unknown } | undefined)?.content ?? '');
}
