/** With whom an agent is shared, and what they may. */
import React from 'react';

import { Button, ErrorBox, Field, Loading, Table } from '../../components';
import { useAction, useFarm, useResource } from '../../context';
import type { AgentView, Listed, Share, Shared } from '../../protocol';
import { reaches } from '../../rights';

type Rights = NonNullable<Share['rights']>;

export function PeopleTab({ agent, readOnly }: { agent: AgentView; readOnly: boolean }): JSX.Element {
  const { t } = useFarm();
  return readOnly
    ? <p className="af-quiet">{t('%1 owns this agent; with whom else it is shared is seen by those who manage it. You may: %2.', agent.owner, agent.rights)}</p>
    : <Shares agent={agent} />;
}

function Shares({ agent }: { agent: AgentView }): JSX.Element {
  const { t, api } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<Shared>>(`/agents/${agent.name}/shares`, () => false);
  const [person, setPerson] = React.useState('');
  const [rights, setRights] = React.useState<Rights>('chat');
  const share = useAction(async (wish: Share) => {
    const now = await api.post<Listed<Shared>>(`/agents/${agent.name}/shares`, wish);
    resource.patch(() => now);
  });
  const words: Record<Rights, string> = { view: t('see it and its runs'), chat: t('give it work'), manage: t('edit, publish, decide') };
  return (
    <>
      <p className="af-quiet">{t('Owner: %1', agent.owner)}</p>
      <form
        className="af-line"
        onSubmit={event => {
          event.preventDefault();
          void share.run({ person: person.trim(), rights }).then(done => done && setPerson(''));
        }}
      >
        <Field label={t('Person')}>{ids => <input {...ids} name="person" placeholder={t('their name at the Hub')} value={person} required onChange={event => setPerson(event.target.value)} />}</Field>
        <Field label={t('They may')}>
          {ids => (
            <select {...ids} name="rights" value={rights} onChange={event => setRights(event.target.value as Rights)}>
              {(Object.keys(words) as Rights[]).filter(one => one !== 'manage' || reaches(agent.rights, 'owner')).map(one => <option key={one} value={one}>{words[one]}</option>)}
            </select>
          )}
        </Field>
        <Button type="submit" look="primary" busy={share.busy}>{t('Share')}</Button>
      </form>
      <ErrorBox problem={share.problem ?? problem} onRetry={problem ? resource.refresh : undefined} />
      {state === 'loading' && <Loading />}
      {value && (
        <Table<Shared>
          items={value.items} label={t('People')} keyOf={one => one.person} empty={<p className="af-quiet">{t('Shared with nobody.')}</p>}
          columns={[
            { id: 'person', title: t('Person'), cell: one => one.person },
            { id: 'rights', title: t('They may'), cell: one => words[one.rights as Rights] ?? one.rights },
            { id: 'end', title: '', width: '9rem', cell: one => <Button look="quiet" busy={share.busy} onClick={() => void share.run({ person: one.person, rights: null })}>{t('End')}</Button> }
          ]}
        />
      )}
    </>
  );
}
