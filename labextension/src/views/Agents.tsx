/** The agents that I may see: whose, published or draft. */
import React from 'react';

import { Badge, Button, Empty, ErrorBox, Go, Head, Loading, Table } from '../components';
import { useFarm, useResource, type Translate } from '../context';
import { agentIcon } from '../icons';
import { movesAgents } from '../model';
import type { AgentView, Listed } from '../protocol';
import { oneLine } from '../words';
import type { View } from './view';

export const AGENTS = '/agents?limit=500';

function Agents(): JSX.Element {
  const { t, navigate } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<AgentView>>(AGENTS, movesAgents);
  return (
    <section className="af-view" aria-label={t('Agents')}>
      <Head title={t('Agents')}>
        {value?.items.some(agent => agent.pool && !agent.retired_at) && <Go to="pools">{t('Pools')}</Go>}
        <Button look="primary" onClick={() => navigate('new-agent')}>{t('New agent')}</Button>
      </Head>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value && (
        <Table<AgentView>
          items={value.items}
          label={t('Agents')}
          keyOf={agent => agent.name}
          onOpen={agent => navigate(`agents/${agent.name}`)}
          empty={
            <Empty title={t('No agent yet.')}>
              <Button onClick={() => navigate('new-agent')}>{t('Make one')}</Button>
            </Empty>
          }
          columns={[
            { id: 'name', title: t('Agent'), cell: agent => <strong>{agent.name}</strong> },
            { id: 'what', title: t('What it does'), width: 'minmax(0, 2fr)', cell: agent => oneLine(agent.draft.description || agent.draft.prompt) },
            { id: 'owner', title: t('Owner'), cell: agent => agent.owner },
            { id: 'server', title: t('Server'), width: 'minmax(0, 1.2fr)', cell: agent => !agent.retired_at && agent.server && <span title={agent.server.reasons || agent.server.why || undefined}><Badge {...serverState(agent, t)} />{agent.server.reasons && <span className="af-quiet"> {oneLine(agent.server.reasons, 80)}</span>}</span> },
            { id: 'status', title: t('Status'), width: '9rem', stays: true, cell: agent => agentBadge(agent, t) }
          ]}
        />
      )}
    </section>
  );
}

export function agentBadge(agent: AgentView, t: Translate): JSX.Element {
  if (agent.retired_at) {
    return <Badge state="retired" word={t('retired')} />;
  }
  return agent.published
    ? <Badge state="published" word={t('version %1', agent.published)} />
    : <Badge state="draft" word={t('draft')} />;
}

/** Where its server is, or how far. */
export function serverState(agent: AgentView, t: Translate): { state: string; word: string } {
  if (agent.server?.pending) {
    return { state: 'pending', word: agent.server.pending === 'stop' ? t('stops') : agent.server.microserver ? t('starts on %1', agent.server.microserver) : t('starts') };
  }
  return agent.server?.ready ? { state: 'ready', word: t('on %1', agent.server.microserver ?? '?') } : { state: 'stopped', word: t('off') };
}

export const agentsView: View = {
  id: 'agents', title: t => t('Agents'), icon: agentIcon, route: 'agents', nav: 10, Component: Agents
};
