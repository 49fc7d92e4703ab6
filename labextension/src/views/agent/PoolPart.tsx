/** The pool that the agent is in: its tasks are shared with the other members. */
import React from 'react';

import { Button, ErrorBox, Field, Go } from '../../components';
import { useAction, useFarm } from '../../context';
import type { AgentView } from '../../protocol';
import { Section } from './fields';

export function PoolPart({ agent, manages }: { agent: AgentView; manages: boolean }): JSX.Element {
  const { t, api, model } = useFarm();
  const [name, setName] = React.useState(agent.pool ?? '');
  React.useEffect(() => setName(agent.pool ?? ''), [agent.pool]);
  const save = useAction(async () => {
    await api.patch<AgentView>(`/agents/${agent.name}`, { pool: name.trim() || null }, agent.draft_rev);
    model.refresh('/agents');
    model.refresh('/pools');
  });
  return (
    <Section title={t('Pool')}>
      {agent.pool ? <p>{t('In pool %1.', agent.pool)} <Go to="pools">{t('all pools')}</Go></p> : <p className="af-quiet">{t('In no pool. Agents of one pool share its tasks.')}</p>}
      {manages && (
        <form className="af-line af-narrow" onSubmit={event => { event.preventDefault(); void save.run(); }}>
          <Field label={t('Pool (may be empty)')}>
            {ids => <input {...ids} name="pool" value={name} pattern="[a-z](-?[a-z0-9]){0,24}" onChange={event => setName(event.target.value)} />}
          </Field>
          <Button type="submit" busy={save.busy} disabled={name.trim() === (agent.pool ?? '')}>{t('Save')}</Button>
        </form>
      )}
      <ErrorBox problem={save.problem} />
    </Section>
  );
}
