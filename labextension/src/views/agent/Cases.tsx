/** The test cases of an agent: made and changed, tried with the draft and versions, and what came of it. */
import React from 'react';

import { Button, Empty, ErrorBox, Field, Loading, Table } from '../../components';
import type { Version } from '../../cases';
import { useAction, useFarm, useResource } from '../../context';
import type { AgentView, CaseRun, CaseView, Listed, Total, VersionView } from '../../protocol';
import { oneLine } from '../../words';
import { CaseForm, checkWords } from './CaseForm';
import { CaseTable, versionWord } from './CaseTable';
import { Section } from './fields';

const DRAFT = 'draft';
const NONE = '';

export function CasesTab({ agent, readOnly }: { agent: AgentView; readOnly: boolean }): JSX.Element {
  const { t, api, model } = useFarm();
  const path = `/agents/${agent.name}/cases`;
  const { state, value, problem, resource } = useResource<Listed<CaseView>>(path, () => false);
  const tried = useResource<Listed<CaseRun>>(`${path}/runs?limit=20`, () => false); // the stream tells of verdicts itself
  const [chosen, setChosen] = React.useState<string | null>(null);
  const [form, setForm] = React.useState<CaseView | 'new' | null>(null);
  const shown = chosen ?? tried.value?.items[0]?.batch_id ?? null;
  const drop = useAction(async (id: string) => {
    await api.delete(`${path}/${id}`);
    model.refresh(path);
  });
  const words = checkWords(t);
  const begun = (batch: string): void => {
    setChosen(batch);
    tried.resource.refresh();
  };
  return (
    <>
      <div className="af-line">
        {!readOnly && <Try agent={agent} none={!value?.items.length} onBegun={begun} />}
        {!readOnly && <Button onClick={() => setForm('new')}>{t('New test case')}</Button>}
      </div>
      <ErrorBox problem={problem ?? drop.problem ?? tried.problem} onRetry={problem ? resource.refresh : undefined} />
      {state === 'loading' && <Loading />}
      {shown && (
        <Section title={t('What came of them')} aside={<Which runs={tried.value?.items ?? []} shown={shown} onChoose={setChosen} />}>
          <CaseTable path={`${path}/runs`} batch={shown} key={shown} />
        </Section>
      )}
      {value && (
        <Table<CaseView>
          items={value.items} label={t('Test cases')} keyOf={one => one.case_id} {...(readOnly ? {} : { onOpen: setForm })}
          empty={<Empty title={t('No test case yet: make one here, or save one from a message in the playground.')} />}
          columns={[
            { id: 'name', title: t('Case'), cell: one => <strong>{one.name}</strong> },
            { id: 'input', title: t('Input'), width: 'minmax(0, 2fr)', cell: one => oneLine(one.input) },
            { id: 'expect', title: t('Passes where it'), width: 'minmax(0, 2fr)', cell: one => one.expect.map(check => said(check, words)).join('; ') },
            { id: 'by', title: t('By'), width: '7rem', cell: one => one.created_by },
            {
              id: 'acts', title: '', width: '11rem',
              cell: one => !readOnly && (
                <span onClick={event => event.stopPropagation()}>
                  <Button look="quiet" onClick={() => setForm(one)}>{t('Edit')}</Button>
                  <Button look="quiet" busy={drop.busy} onClick={() => void drop.run(one.case_id)}>{t('Delete')}</Button>
                </span>
              )
            }
          ]}
        />
      )}
      {form && <CaseForm agent={agent.name} {...(form === 'new' ? {} : { known: form })} onClose={() => setForm(null)} />}
    </>
  );
}

function said(check: { [name: string]: unknown }, words: ReturnType<typeof checkWords>): string {
  const kind = words[check.kind as keyof typeof words]?.[0] ?? String(check.kind);
  return `${kind} ${oneLine(check.value ?? check.text ?? check.question ?? check.code ?? check.schema, 80)}`;
}

/** Which versions are tried: the draft beside the published one, unless somebody chooses otherwise. */
function Try({ agent, none, onBegun }: { agent: AgentView; none: boolean; onBegun: (batch: string) => void }): JSX.Element {
  const { t, api } = useFarm();
  const versions = useResource<Listed<VersionView>>(`/agents/${agent.name}/versions?limit=500`, () => false);
  const [one, setOne] = React.useState<string>(agent.published ? String(agent.published) : NONE);
  const [other, setOther] = React.useState(DRAFT);
  const numbers = (versions.value?.items ?? []).map(version => String(version.number));
  const wish: Version[] = [...new Set([one, other])].filter(name => name !== NONE).map(name => (name === DRAFT ? DRAFT : Number(name)));
  const run = useAction(async () => onBegun((await api.post<CaseRun>(`/agents/${agent.name}/cases/run`, { versions: wish })).batch_id));
  const choice = (label: string, name: string, now: string, set: (to: string) => void, of: string[]): JSX.Element => (
    <Field label={label}>
      {ids => (
        <select {...ids} name={name} value={now} onChange={event => set(event.target.value)}>
          {of.map(version => <option key={version} value={version}>{version === NONE ? t('nothing') : versionWord(version, t)}</option>)}
        </select>
      )}
    </Field>
  );
  return (
    <div className="af-case-try">
      <div className="af-line">
        {choice(t('Try'), 'case-version', other, setOther, [DRAFT, ...numbers])}
        {choice(t('Beside'), 'case-beside', one, setOne, [NONE, DRAFT, ...numbers])}
        <Button look="primary" busy={run.busy} disabled={none} onClick={() => void run.run()}>{t('Try the cases')}</Button>
      </div>
      <ErrorBox problem={run.problem} />
    </div>
  );
}

function Which({ runs, shown, onChoose }: { runs: CaseRun[]; shown: string; onChoose: (batch: string) => void }): JSX.Element {
  const { t } = useFarm();
  const word = (total: Total): string => t('%1: %2 of %3', versionWord(total.version, t), total.passed, total.passed + total.failed + total.errors + total.pending);
  return (
    <select className="af-case-which" name="case-run" aria-label={t('Which trial')} value={shown} onChange={event => onChoose(event.target.value)}>
      {!runs.some(one => one.batch_id === shown) && <option value={shown}>{t('now')}</option>}
      {runs.map(one => <option key={one.batch_id} value={one.batch_id}>{`${new Date(one.created_at).toLocaleString()} · ${one.totals.map(word).join(' · ')}`}</option>)}
    </select>
  );
}
