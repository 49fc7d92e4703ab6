/** A new agent: from a template, from nothing, or from a file. */
import React from 'react';

import { Button, Dialog, Empty, ErrorBox, Field, Head, Loading } from '../components';
import { useAction, useFarm, useResource } from '../context';
import { agentIcon } from '../icons';
import { movesAgents } from '../model';
import type { AgentView, Definition, Listed, Template } from '../protocol';
import { oneLine } from '../words';
import { AGENTS } from './Agents';
import type { View } from './view';

const EMPTY = '';

function NewAgent(): JSX.Element {
  const { t, api, model, navigate } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<Template>>('/templates', () => false);
  const [chosen, setChosen] = React.useState<string | null>(null);
  const [name, setName] = React.useState('');
  const [pool, setPool] = React.useState('');
  const form = React.useRef<HTMLFormElement>(null);
  const template = value?.items.find(one => one.name === chosen);
  const open = (agent: AgentView): void => {
    model.refresh('/agents');
    navigate(`agents/${agent.name}`);
  };
  const create = useAction(async () => {
    const draft: Definition = template?.definition ?? {};
    open(await api.post<AgentView>('/agents', { name: name.trim(), draft, ...(pool ? { pool } : {}) }));
  });
  const [file, setFile] = React.useState<Chosen | null>(null);
  const choose = (one: string): void => {
    setChosen(one);
    form.current?.querySelector('input')?.focus();
  };
  return (
    <section className="af-view" aria-label={t('New agent')}>
      <Head title={t('New agent')}>
        <label className="af-button af-file">
          {t('Import a file …')}
          <input
            type="file" className="af-hidden" accept=".yaml,.yml,.json"
            onChange={event => {
              const chosen = event.target.files?.[0];
              event.target.value = '';
              void chosen?.text().then(text => setFile({ called: chosen.name, text }));
            }}
          />
        </label>
      </Head>
      {file && <Import file={file} onClose={() => setFile(null)} onMade={open} />}
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      <form
        ref={form} className="af-form"
        onSubmit={event => {
          event.preventDefault();
          void create.run();
        }}
      >
        <div className="af-line">
          <Field label={t('Name')} hint={t('lowercase letters, digits and single hyphens, at most 25; it is for ever')}>
            {ids => <input {...ids} name="name" value={name} required pattern="[a-z](-?[a-z0-9]){0,24}" maxLength={25} onChange={event => setName(event.target.value)} />}
          </Field>
          <Field label={t('Pool (may be empty)')} hint={t('agents of one pool share its tasks')}>
            {ids => <input {...ids} name="pool" value={pool} pattern="[a-z](-?[a-z0-9]){0,24}" onChange={event => setPool(event.target.value)} />}
          </Field>
        </div>
        <div className="af-line af-middle">
          <Button type="submit" look="primary" busy={create.busy} disabled={chosen === null || !name.trim()}>{t('Create')}</Button>
          <span className="af-quiet">{chosen === null ? t('Choose what it begins with.') : template ? template.title : t('An empty draft')}</span>
        </div>
        <ErrorBox problem={create.problem} />
      </form>
      {state === 'loading' && <Loading />}
      {value?.items.length === 0 && <Empty title={t('This farm has no templates.')} />}
      {value && (
        <div className="af-cards" role="group" aria-label={t('Templates')}>
          {value.items.map(one => <Card key={one.name} template={one} chosen={one.name === chosen} onChoose={() => choose(one.name)} />)}
          <button type="button" className="af-card" aria-pressed={chosen === EMPTY} onClick={() => choose(EMPTY)}>
            <b>{t('Empty')}</b>
            <span>{t('A draft without prompt and tools.')}</span>
          </button>
        </div>
      )}
    </section>
  );
}

interface Chosen {
  called: string;
  text: string;
}

/** An agent's file under the name that it says, or another one. Where that agent is there already its draft becomes the file's. */
function Import({ file, onClose, onMade }: { file: Chosen; onClose: () => void; onMade: (agent: AgentView) => void }): JSX.Element {
  const { t, api } = useFarm();
  const { value } = useResource<Listed<AgentView>>(AGENTS, movesAgents);
  const [name, setName] = React.useState(() => /^"?name"?:\s*["']?([\w-]+)/m.exec(file.text)?.[1] ?? '');
  const taken = value?.items.some(agent => agent.name === name.trim()) ?? false;
  const act = useAction(async () => {
    const under = name.trim() ? `?name=${encodeURIComponent(name.trim())}` : '';
    onMade(await api.post<AgentView>(`/agents/import${under}`, { text: file.text }));
  });
  return (
    <Dialog
      title={t('Import %1', file.called)} onClose={onClose}
      acts={<Button look={taken ? 'danger' : 'primary'} busy={act.busy} onClick={() => void act.run()}>{taken ? t('Replace the draft of %1', name) : t('Import')}</Button>}
    >
      <Field label={t('Name')} hint={taken ? t('This agent is there already: its draft becomes what the file says; its versions stay.') : t('a new agent of yours')}>
        {ids => <input {...ids} name="import-name" value={name} placeholder={t('as the file says')} onChange={event => setName(event.target.value)} />}
      </Field>
      <ErrorBox problem={act.problem} />
    </Dialog>
  );
}

function Card({ template, chosen, onChoose }: { template: Template; chosen: boolean; onChoose: () => void }): JSX.Element {
  const { t } = useFarm();
  const tools = (template.definition.tools ?? []).map(tool => tool.name);
  return (
    <button type="button" className="af-card" aria-pressed={chosen} onClick={onChoose}>
      <b>{template.title}</b>
      <span>{template.description}</span>
      {tools.length > 0 && <span className="af-quiet">{t('Tools: %1', tools.join(', '))}</span>}
      {(template.tasks ?? []).length > 0 && <span className="af-quiet">{t('e.g. %1', oneLine(template.tasks![0], 90))}</span>}
      {(template.needs ?? []).map(need => <span key={need} className="af-need">{t('needs %1', need)}</span>)}
    </button>
  );
}

export const newAgentView: View = { id: 'new-agent', title: t => t('New agent'), icon: agentIcon, route: 'new-agent', under: 'agents', Component: NewAgent };
