/** The test cases of an agent: tried with the draft beside the published version, and what came of it. */
import React from 'react';

import { Badge, Button, Empty, ErrorBox, Go, Loading, Table, Time, Value } from '../../components';
import { useAction, useFarm, useResource } from '../../context';
import type { Change } from '../../model';
import type { AgentView, CaseRun, CaseView, Listed, Tried } from '../../protocol';
import { oneLine } from '../../words';

const runs = (change: Change): boolean => change.event.kind.startsWith('run.');

export function CasesTab({ agent, readOnly }: { agent: AgentView; readOnly: boolean }): JSX.Element {
  const { t, api, model } = useFarm();
  const path = `/agents/${agent.name}/cases`;
  const { state, value, problem, resource } = useResource<Listed<CaseView>>(path, () => false);
  const tried = useResource<Listed<CaseRun>>(`${path}/runs?limit=20`, runs);
  const [chosen, setChosen] = React.useState<string | null>(null);
  const latest = chosen ?? tried.value?.items[0]?.batch_id ?? null;
  const run = useAction(async () => {
    const made = await api.post<CaseRun>(`${path}/run`, { versions: ['draft', ...(agent.published ? [agent.published] : [])] });
    setChosen(made.batch_id);
    tried.resource.refresh();
  });
  const drop = useAction(async (id: string) => {
    await api.delete(`${path}/${id}`);
    model.refresh(path);
  });
  return (
    <>
      <div className="af-line af-middle">
        {!readOnly && (
          <Button look="primary" busy={run.busy} disabled={!value?.items.length} onClick={() => void run.run()}>
            {agent.published ? t('Try them with the draft and version %1', agent.published) : t('Try them with the draft')}
          </Button>
        )}
        <span className="af-quiet">{t('Their calls are answered from what was recorded: nothing happens outside.')}</span>
      </div>
      <ErrorBox problem={problem ?? run.problem ?? drop.problem ?? tried.problem} onRetry={problem ? resource.refresh : undefined} />
      {state === 'loading' && <Loading />}
      {latest && <Came path={`${path}/runs/${latest}`} />}
      {value && (
        <Table<CaseView>
          items={value.items} label={t('Test cases')} keyOf={one => one.case_id}
          empty={<Empty title={t('No test case yet: save one from a message in the playground.')} />}
          columns={[
            { id: 'name', title: t('Case'), cell: one => <strong>{one.name}</strong> },
            { id: 'input', title: t('Input'), width: 'minmax(0, 2fr)', cell: one => oneLine(one.input) },
            { id: 'expect', title: t('Passes where'), width: 'minmax(0, 2fr)', cell: one => one.expect.map(check => oneLine(check)).join('; ') },
            { id: 'by', title: t('By'), cell: one => one.created_by },
            {
              id: 'acts', title: '', width: '7rem',
              cell: one => !readOnly && <Button look="quiet" busy={drop.busy} onClick={() => void drop.run(one.case_id)}>{t('Delete')}</Button>
            }
          ]}
        />
      )}
    </>
  );
}

/** What came of trying them: a line for each case and version, with why. */
function Came({ path }: { path: string }): JSX.Element | null {
  const { t } = useFarm();
  const { value, problem, resource } = useResource<CaseRun>(path, runs);
  const open = (value?.items ?? []).some(one => one.verdict === null);
  React.useEffect(() => {
    if (!open) {
      return;
    }
    const timer = setTimeout(resource.refresh, 3000); // a verdict is no event: it comes a moment after the run's end
    return () => clearTimeout(timer);
  }, [open, value, resource]);
  if (!value) {
    return problem ? <ErrorBox problem={problem} onRetry={resource.refresh} /> : <Loading />;
  }
  const version = (one: string | number): string => (one === 'draft' ? t('the draft') : t('version %1', one));
  return (
    <section className="af-section" aria-label={t('What came of them')}>
      <div className="af-section-head">
        <h3>{t('What came of them')}</h3>
        <span className="af-quiet">{value.totals.map(one => t('%1: %2 passed, %3 failed, %4 errors', version(one.version), one.passed, one.failed, one.errors)).join(' · ')}</span>
        <span className="af-spring" />
        <Time at={value.created_at} />
      </div>
      <div className="af-section-body af-differences">
        {(value.items ?? []).map(one => <Line key={one.task_id} one={one} version={version(one.version)} />)}
      </div>
    </section>
  );
}

const LOOKS = { passed: 'good', failed: 'bad', error: 'bad' } as const;

function Line({ one, version }: { one: Tried; version: string }): JSX.Element {
  const { t } = useFarm();
  const verdict = one.verdict as keyof typeof LOOKS | null;
  const why = (one.checks ?? []).find(check => check.passed !== true)?.why;
  return (
    <details>
      <summary>
        <Badge state={`case-${verdict ?? 'open'}`} look={verdict ? LOOKS[verdict] : 'run'} word={verdict ?? one.status} /> <b>{one.name}</b> {version}{Boolean(why) && <span className="af-quiet"> {oneLine(why)}</span>}
      </summary>
      {one.run_id && <p><Go to={`runs/${one.run_id}`}>{t('The run')}</Go></p>}
      <Value value={{ result: one.result, checks: one.checks }} />
    </details>
  );
}
