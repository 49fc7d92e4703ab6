/** One agent: its draft, versions, people and server. */
import React from 'react';

import { Badge, Button, Dialog, ErrorBox, Field, Head, Loading, Tabs } from '../components';
import { useAction, useFarm, useResource } from '../context';
import { addressOf } from '../filters';
import { agentIcon } from '../icons';
import { movesAgents } from '../model';
import type { AgentView, VersionView } from '../protocol';
import { reaches } from '../rights';
import { agentBadge } from './Agents';
import { CasesTab } from './agent/Cases';
import { DraftTab, SaveBadge } from './agent/Draft';
import { download } from './agent/file';
import { MemoryTab } from './agent/Memory';
import { PeopleTab } from './agent/People';
import { ServerTab, serverWord } from './agent/Server';
import { ThreadsTab } from './agent/Threads';
import { useDraft, type DraftEditing } from './agent/useDraft';
import { VersionsTab } from './agent/Versions';
import type { Params, View } from './view';

/** Whether this person may change the agent. */
export const manages = (agent: AgentView): boolean => agent.retired_at === null && reaches(agent.rights, 'manage');

function Agent({ params }: { params: Params }): JSX.Element {
  const name = params.name ?? '';
  const { t } = useFarm();
  const path = `/agents/${name}`;
  const { value, problem, resource } = useResource<AgentView>(path, movesAgents);
  return value
    ? <Known key={name} agent={value} path={path} tab={params.tab} thread={params.thread} />
    : <section className="af-view" aria-label={t('Agent')}>{problem ? <ErrorBox problem={problem} onRetry={resource.refresh} /> : <Loading />}</section>;
}

function Known({ agent, path, tab, thread }: { agent: AgentView; path: string; tab: string | undefined; thread: string | undefined }): JSX.Element {
  const { t, api, navigate, readdress } = useFarm();
  const editing = useDraft(agent);
  const here = (to: { [part: string]: string }): void => readdress(addressOf(`agents/${agent.name}`, to));
  const [publishing, setPublishing] = React.useState(false);
  const exported = useAction(() => download(api, agent.name));
  const may = manages(agent);
  const beside = (
    <>
      {agentBadge(agent, t)}
      {agent.server && <Badge state={agent.server.ready ? 'ready' : agent.server.pending ? 'starting' : 'stopped'} word={serverWord(agent.server, t)} />}
      {may && <SaveBadge editing={editing} />}
    </>
  );
  return (
    <section className="af-view af-agent" aria-label={t('Agent %1', agent.name)}>
      <Head title={agent.name} beside={beside}>
        <Button look="quiet" busy={exported.busy} onClick={() => void exported.run()}>{t('Export')}</Button>
        {agent.retired_at === null && reaches(agent.rights, 'chat') && <Button onClick={() => void editing.flush().then(() => navigate(`agents/${agent.name}/playground`))}>{t('Playground')}</Button>}
        {may && <Button look="primary" disabled={editing.state === 'clash'} onClick={() => setPublishing(true)}>{t('Publish …')}</Button>}
      </Head>
      {!may && <p className="af-quiet">{agent.retired_at ? t('This agent is retired: it takes no work, its record stays.') : t('You may read it: %1. It belongs to %2.', agent.rights, agent.owner)}</p>}
      <ErrorBox problem={exported.problem} />
      <Tabs
        label={t('Parts of the agent')} chosen={tab ?? 'draft'} onChoose={id => here({ tab: id })}
        tabs={[
          { id: 'draft', label: t('Draft'), content: () => <DraftTab agent={agent} editing={editing} readOnly={!may} /> },
          { id: 'versions', label: t('Versions'), content: () => <VersionsTab agent={agent} editing={editing} readOnly={!may} /> },
          { id: 'cases', label: t('Test cases'), content: () => <CasesTab agent={agent} readOnly={!may} /> },
          { id: 'threads', label: t('Conversations'), content: () => <ThreadsTab agent={agent} thread={thread} onOpen={id => here({ tab: 'threads', thread: id })} /> },
          { id: 'memory', label: t('Memory'), content: () => <MemoryTab agent={agent.name} readOnly={!may} /> },
          { id: 'people', label: t('People'), content: () => <PeopleTab agent={agent} readOnly={!may} /> },
          { id: 'server', label: t('Server'), content: () => <ServerTab agent={agent} path={path} /> }
        ]}
      />
      {publishing && <Publish agent={agent} editing={editing} path={path} onClose={() => setPublishing(false)} />}
    </section>
  );
}

/** Make the draft, all of it saved, the next version. */
function Publish({ agent, editing, path, onClose }: { agent: AgentView; editing: DraftEditing; path: string; onClose: () => void }): JSX.Element {
  const { t, api, model } = useFarm();
  const [note, setNote] = React.useState('');
  const [made, setMade] = React.useState<VersionView | null>(null);
  const publish = useAction(async () => {
    if (await editing.flush()) {
      setMade(await api.post<VersionView>(`/agents/${agent.name}/publish`, { note }));
      model.refresh(path);
      model.refresh('/agents?');
    } else {
      onClose(); // the page says why it could not be saved
    }
  });
  const acts = made
    ? <Submit agent={agent} onGo={onClose} />
    : <Button look="primary" busy={publish.busy} onClick={() => void publish.run()}>{t('Publish version %1', (agent.published ?? 0) + 1)}</Button>;
  return (
    <Dialog title={t('Publish %1', agent.name)} onClose={onClose} acts={acts}>
      {made
        ? <p role="status">{t('Version %1 is published: new tasks are done by it.', made.number)}</p>
        : (
          <>
            <p className="af-quiet">{t('The draft becomes a version that never changes. Runs under way keep theirs.')}</p>
            <Field label={t('Note: what is new, and why')}>
              {ids => <textarea {...ids} name="note" rows={3} value={note} onChange={event => setNote(event.target.value)} />}
            </Field>
          </>
        )}
      <ErrorBox problem={publish.problem} />
    </Dialog>
  );
}

function Submit({ agent, onGo }: { agent: AgentView; onGo: () => void }): JSX.Element {
  const { t, navigate } = useFarm();
  const go = (): void => {
    onGo();
    navigate(`tasks?target=${agent.name}`);
  };
  return <Button look="primary" onClick={go}>{t('Give it a task')}</Button>;
}

export const agentView: View = { id: 'agent', title: t => t('Agent'), icon: agentIcon, route: 'agents/:name', Component: Agent };
