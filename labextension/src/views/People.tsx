/** Who owns and shares which agents: all of it for an operator, for others those whom their agents concern. */
import React from 'react';

import { Empty, ErrorBox, Go, Head, Loading } from '../components';
import { useFarm, useResource, type Translate } from '../context';
import { peopleIcon } from '../icons';
import { movesAgents } from '../model';
import type { Listed, PersonView } from '../protocol';
import type { View } from './view';

const RIGHTS = ['owner', 'manage', 'chat', 'view'];

function rightsWord(rights: string, t: Translate): string {
  const words: { [rights: string]: string } = { owner: t('owns'), manage: t('manages'), chat: t('gives work to'), view: t('sees') };
  return words[rights] ?? rights;
}

function People(): JSX.Element {
  const { t, operator, person } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<PersonView>>('/people', movesAgents);
  const [words, setWords] = React.useState('');
  const people = (value?.items ?? []).filter(one => `${one.person} ${one.agents.map(has => has.agent).join(' ')}`.includes(words.trim()));
  return (
    <section className="af-view af-scrolls" aria-label={t('People')}>
      <Head title={t('People and rights')} beside={<span className="af-quiet">{operator ? t('of the whole farm') : t('whom your agents concern')}</span>}>
        {(value?.items.length ?? 0) > 5 && (
          <input className="af-search" type="search" aria-label={t('Find a person or an agent')} placeholder={t('Find …')} value={words} onChange={event => setWords(event.target.value)} />
        )}
      </Head>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value && people.length === 0 && <Empty title={words ? t('Nobody of that name.') : t('Nobody owns an agent yet.')} />}
      {people.length > 0 && (
        <table className="af-plain" aria-label={t('People')}>
          <thead><tr><th scope="col">{t('Person')}</th>{RIGHTS.map(rights => <th key={rights} scope="col">{rightsWord(rights, t)}</th>)}</tr></thead>
          <tbody>
            {people.map(one => (
              <tr key={one.person}>
                <th scope="row">{one.person}{one.person === person && <span className="af-quiet"> {t('(you)')}</span>}</th>
                {RIGHTS.map(rights => <td key={rights}><Owned agents={one.agents.filter(has => has.rights === rights).map(has => has.agent)} /></td>)}
              </tr>
            ))}
          </tbody>
        </table>
      )}
      <p className="af-quiet">{t('Who manages an agent may change, publish and share it. An agent is shared on its own page. Who may sign in, and who is an operator, is settled at the Hub.')}</p>
    </section>
  );
}

function Owned({ agents }: { agents: string[] }): JSX.Element {
  return <>{agents.map((agent, at) => <React.Fragment key={agent}>{at > 0 && ', '}<Go to={`agents/${agent}`}>{agent}</Go></React.Fragment>)}</>;
}

export const peopleView: View = {
  id: 'people', title: t => t('People'), icon: peopleIcon, route: 'people', nav: 70, where: 'page', Component: People
};
