/** What was published, when, by whom, and why; what differs; an old one taken back as the draft. */
import React from 'react';

import { Button, Dialog, Diff, Empty, ErrorBox, Field, Json, Loading, Table, Time } from '../../components';
import { useAction, useFarm, useResource } from '../../context';
import { jsonText } from '../../draft';
import type { AgentView, Difference, Listed, VersionView } from '../../protocol';
import { download } from './file';
import type { DraftEditing } from './useDraft';

const DRAFT = 'draft';

export function VersionsTab({ agent, editing, readOnly }: { agent: AgentView; editing: DraftEditing; readOnly: boolean }): JSX.Element {
  const { t, api } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<VersionView>>(`/agents/${agent.name}/versions?limit=500`, () => false);
  const [shown, setShown] = React.useState<VersionView | null>(null);
  React.useEffect(() => {
    if (value && (agent.published ?? 0) > (value.items[0]?.number ?? 0)) {
      resource.refresh(); // published meanwhile
    }
  }, [agent.published, value, resource]);
  const restore = useAction(async (number: number) => {
    if (await editing.flush()) {
      editing.adopt(await api.post<AgentView>(`/agents/${agent.name}/restore`, { number }, { 'If-Match': `"${editing.rev}"` }));
    }
  });
  const exported = useAction((number: number) => download(api, agent.name, number));
  return (
    <>
      <ErrorBox problem={problem ?? restore.problem ?? exported.problem} onRetry={problem ? resource.refresh : undefined} />
      {state === 'loading' && <Loading />}
      {value && (
        <>
          {value.items.length > 0 && <Compare agent={agent} versions={value.items} rev={editing.rev} />}
          <Table<VersionView>
            items={value.items} label={t('Versions')} keyOf={version => String(version.number)} onOpen={setShown}
            empty={<Empty title={t('Nothing is published yet: the draft can be tried in the playground.')} />}
            columns={[
              { id: 'number', title: t('Version'), width: '5rem', cell: version => <strong>{version.number}</strong> },
              { id: 'note', title: t('Note'), width: 'minmax(0, 2fr)', cell: version => version.note || '—' },
              { id: 'by', title: t('By'), cell: version => version.created_by },
              { id: 'at', title: t('Published'), width: '8rem', cell: version => <Time at={version.created_at} /> },
              {
                id: 'acts', title: '', width: '16rem', cell: version => (
                  <span onClick={event => event.stopPropagation()}>
                    {!readOnly && <Button look="quiet" busy={restore.busy} onClick={() => void restore.run(version.number)}>{t('Make it the draft')}</Button>}
                    <Button look="quiet" onClick={() => void exported.run(version.number)}>{t('Export')}</Button>
                  </span>
                )
              }
            ]}
          />
        </>
      )}
      {shown && (
        <Dialog title={t('Version %1 of %2', shown.number, agent.name)} onClose={() => setShown(null)}>
          <p className="af-quiet">{[shown.hash, shown.created_by, shown.note].filter(Boolean).join(' · ')}</p>
          <Json value={shown.definition} open={3} />
        </Dialog>
      )}
    </>
  );
}

/** Two versions, or a version and the draft, side by side. */
function Compare({ agent, versions, rev }: { agent: AgentView; versions: VersionView[]; rev: number }): JSX.Element {
  const { t } = useFarm();
  const [from, setFrom] = React.useState(String(versions[0]!.number));
  const [to, setTo] = React.useState(DRAFT);
  const query = [`from=${from}`, ...(to === DRAFT ? [] : [`to=${to}`])].join('&');
  const { value, problem, resource } = useResource<Listed<Difference>>(`/agents/${agent.name}/diff?${query}`, () => false);
  React.useEffect(() => resource.refresh(), [resource, rev]);
  const names = versions.map(version => String(version.number));
  const word = (one: string): string => (one === DRAFT ? t('the draft') : t('version %1', one));
  const choice = (label: string, now: string, set: (to: string) => void, of: string[]): JSX.Element => (
    <Field label={label}>
      {ids => <select {...ids} value={now} onChange={event => set(event.target.value)}>{of.map(one => <option key={one} value={one}>{word(one)}</option>)}</select>}
    </Field>
  );
  return (
    <section className="af-section" aria-label={t('What differs')}>
      <div className="af-section-body">
        <div className="af-line">
          {choice(t('From'), from, setFrom, names)}
          {choice(t('To'), to, setTo, [DRAFT, ...names])}
        </div>
        <ErrorBox problem={problem} onRetry={resource.refresh} />
        {value?.items.length === 0 && <p className="af-quiet">{t('They are the same.')}</p>}
        {value && value.items.length > 0 && (
          <div className="af-differences">
            {value.items.map(one => (
              <div key={one.path}>
                <h4>{one.path}</h4>
                <Diff before={text(one.from)} after={text(one.to)} names={[word(from), word(to)]} />
              </div>
            ))}
          </div>
        )}
      </div>
    </section>
  );
}

const text = (value: unknown): string => (typeof value === 'string' ? value : value === null || value === undefined ? '' : jsonText(value) || JSON.stringify(value));
