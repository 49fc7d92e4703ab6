/** What versions came to on the same cases, side by side: a line for each case, what moved marked, the whole of it on demand. */
import React from 'react';

import { Badge, Diff, ErrorBox, Go, Loading, Meter, Value } from '../../components';
import { rowsOf, whyNot, written, type Kind, type Row, type Version } from '../../cases';
import { useFarm, useResource, type Translate } from '../../context';
import type { Change } from '../../model';
import type { CaseRun, Total, Tried } from '../../protocol';
import { oneLine, statusWord } from '../../words';
import { checkWords } from './CaseForm';

export const versionWord = (one: Version, t: Translate): string => (one === 'draft' ? t('the draft') : t('version %1', one));

export function CaseTable({ path, batch }: { path: string; batch: string }): JSX.Element | null {
  const { t } = useFarm();
  // its runs as they go by their events; the verdicts by the stream's own word (model.ts)
  const { value, problem, resource } = useResource<CaseRun>(`${path}/${batch}`, change => ofBatch(change, batch));
  const [open, setOpen] = React.useState<string | null>(null);
  if (!value) {
    return problem ? <ErrorBox problem={problem} onRetry={resource.refresh} /> : <Loading />;
  }
  const versions = value.totals.map(one => one.version);
  const rows = rowsOf(value.items ?? [], versions);
  const two = versions.length > 1;
  return (
    <>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {two && <Summary rows={rows} versions={versions} />}
      <table className="af-plain af-came" aria-label={t('What came of them')}>
        <thead>
          <tr>
            <th scope="col" className="af-came-name">{t('Case')}</th>
            {value.totals.map(one => <th key={one.version} scope="col"><Figures total={one} /></th>)}
            {two && <th scope="col" className="af-came-moved">{t('Moved')}</th>}
          </tr>
        </thead>
        <tbody>
          {rows.map(row => (
            <React.Fragment key={row.case_id}>
              <tr data-moved={row.moved}>
                <th scope="row"><button type="button" className="af-fold" aria-expanded={open === row.case_id} onClick={() => setOpen(open === row.case_id ? null : row.case_id)}>{row.name}</button></th>
                {row.tried.map((one, at) => <td key={versions[at]}>{one && <Verdict one={one} />}</td>)}
                {two && <td><Moved moved={row.moved} /></td>}
              </tr>
              {open === row.case_id && <tr className="af-came-open"><td colSpan={versions.length + (two ? 2 : 1)}><Whole row={row} versions={versions} /></td></tr>}
            </React.Fragment>
          ))}
        </tbody>
      </table>
    </>
  );
}

const ofBatch = (change: Change, batch: string): boolean => change.task?.batch_id === batch && change.event.kind.startsWith('run.');

function Summary({ rows, versions }: { rows: Row[]; versions: Version[] }): JSX.Element {
  const { t } = useFarm();
  const many = (moved: Row['moved']): number => rows.filter(row => row.moved === moved).length;
  const better = many('better');
  const worse = many('worse');
  const last = versionWord(versions[versions.length - 1]!, t);
  const words = better + worse === 0
    ? many('open') ? t('Being tried …') : t('The same came of %1 as of %2.', last, versionWord(versions[0]!, t))
    : t('With %1: %2 better, %3 worse than with %4.', last, better, worse, versionWord(versions[0]!, t));
  return <p role="status"><Badge state="moved" look={worse ? 'bad' : better ? 'good' : 'quiet'} word={words} /></p>;
}

/** How a version did, in the head of its column. */
function Figures({ total }: { total: Total }): JSX.Element {
  const { t } = useFarm();
  const { passed, failed, errors, pending } = total;
  const whole = passed + failed + errors + pending;
  const words = [
    t('%1 of %2 passed', passed, whole), failed ? t('%1 failed', failed) : '', errors ? t('%1 could not be checked', errors) : '', pending ? t('%1 under way', pending) : ''
  ].filter(Boolean).join(', ');
  return (
    <>
      <span className="af-came-version">{versionWord(total.version, t)}</span> <span>{words}</span>
      <Meter whole={whole} words={`${versionWord(total.version, t)}: ${words}`} parts={[{ name: t('passed'), amount: passed, look: 'full' }, { name: t('failed'), amount: failed, look: 'bad' }, { name: t('could not be checked'), amount: errors, look: 'held' }]} />
    </>
  );
}

const LOOKS = { passed: 'good', failed: 'bad', error: 'wait' } as const;

function Verdict({ one }: { one: Tried }): JSX.Element {
  const { t } = useFarm();
  const verdict = one.verdict as keyof typeof LOOKS | null;
  const words = { passed: t('passed'), failed: t('failed'), error: t('could not be checked') };
  const why = whyNot(one);
  return (
    <>
      <Badge state={`case-${verdict ?? 'open'}`} look={verdict ? LOOKS[verdict] : 'run'} word={verdict ? words[verdict] : statusWord(one.status, one.waiting, t)} />
      {why && <div className="af-quiet af-came-why">{oneLine(why, 160)}</div>}
    </>
  );
}

function Moved({ moved }: { moved: Row['moved'] }): JSX.Element | null {
  const { t } = useFarm();
  const words = { better: t('better'), worse: t('worse'), other: t('otherwise'), same: t('the same'), open: '' };
  const looks = { better: 'good', worse: 'bad', other: 'wait', same: 'quiet', open: 'quiet' } as const;
  return words[moved] ? <Badge state={`moved-${moved}`} look={looks[moved]} word={words[moved]} /> : null;
}

function checked(check: { [name: string]: unknown }, t: Translate): string {
  const kind = check.kind === 'run' ? t('the run') : checkWords(t)[check.kind as Kind]?.[0] ?? String(check.kind);
  return check.passed === true ? t('%1: yes', kind) : check.passed === false ? t('%1: no', kind) : t('%1: could not be checked', kind);
}

/** Results and checks of one case: of two versions what differs between them. */
function Whole({ row, versions }: { row: Row; versions: Version[] }): JSX.Element {
  const { t } = useFarm();
  const [first, last] = [row.tried[0], row.tried[row.tried.length - 1]];
  const both = first !== last && first && last && first.verdict && last.verdict;
  return (
    <div className="af-came-whole">
      {both && <Diff before={written(first.result)} after={written(last.result)} names={[versionWord(versions[0]!, t), versionWord(versions[versions.length - 1]!, t)]} />}
      <div className="af-came-sides">
        {row.tried.map((one, at) => one && (
          <section key={versions[at]} aria-label={versionWord(versions[at]!, t)}>
            <div className="af-line af-middle"><b>{versionWord(versions[at]!, t)}</b>{one.run_id && <Go to={`runs/${one.run_id}`}>{t('The run')}</Go>}</div>
            {!both && one.result !== null && one.result !== undefined && <Value value={one.result} />}
            <ul className="af-lines">
              {(one.checks ?? []).map((check, number) => (
                <li key={number}>
                  <Badge
                    state={`check-${String(check.passed)}`} look={check.passed === true ? 'good' : check.passed === false ? 'bad' : 'wait'}
                    word={checked(check, t)}
                  />
                  <span className="af-came-why">{String(check.why ?? '')}</span>
                  {typeof check.judge_run === 'string' && <Go to={`runs/${check.judge_run}`}>{t('who judged')}</Go>}
                </li>
              ))}
            </ul>
          </section>
        ))}
      </div>
    </div>
  );
}
