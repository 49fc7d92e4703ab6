/** Many tasks from a CSV: one row a task, looked at before they are sent, as one batch. */
import React from 'react';

import { Button, ErrorBox, Field, Text } from '../../components';
import { useAction, useFarm } from '../../context';
import { fill, missing, parseCsv, tasksOf, type Sheet } from '../../csv';
import type { Submitted } from '../../protocol';
import { oneLine } from '../../words';
import { ChoiceFields, MoreFields, useChoice } from './Choice';

const SHOWN = 3; // rows of the preview

export function Many({ first }: { first?: string | undefined }): JSX.Element {
  const { t, api, model, navigate } = useFarm();
  const chosen = useChoice(first);
  const [sheet, setSheet] = React.useState<Sheet | null>(null);
  const [input, setInput] = React.useState('');
  const [batch, setBatch] = React.useState('');
  const lacks = sheet ? missing(input, sheet.columns) : [];
  const take = useAction(async (file: File | undefined) => {
    if (file) {
      const read = parseCsv(await file.text(), t);
      setSheet(read);
      setInput(before => before || read.columns.map(name => `{{${name}}}`).join(' '));
      setBatch(`${file.name.replace(/\.\w+$/, '')} ${new Date().toISOString().slice(0, 19)}Z`);
    }
  });
  const submit = useAction(async () => {
    const { batch_id } = await api.post<Submitted>('/tasks', { batch, tasks: tasksOf(sheet!, input, batch, chosen.asked!) });
    model.refresh('/tasks');
    navigate(`batches/${batch_id}`);
  });
  const flaw = sheet?.flaw || (lacks.length ? t('The sheet has no column %1.', lacks.join(', ')) : '');
  return (
    <form
      className="af-form" aria-label={t('Many from a CSV')}
      onSubmit={event => {
        event.preventDefault();
        void submit.run();
      }}
    >
      <ChoiceFields of={chosen} />
      <div className="af-line af-top">
        <Field label={t('CSV')} hint={t('The first row names the columns; each other row is a task.')} error={flaw}>
          {ids => <input {...ids} name="csv" type="file" accept=".csv,.tsv,.txt,text/csv" required onChange={event => void take.run(event.target.files?.[0])} />}
        </Field>
        <Field label={t('Key of the batch')} hint={t('Sent again under the same key, no row is done twice.')}>
          {ids => <input {...ids} name="batch" value={batch} required onChange={event => setBatch(event.target.value)} />}
        </Field>
      </div>
      <Field label={t('What is to be done with a row?')} hint={sheet ? t('Columns: %1', sheet.columns.map(name => `{{${name}}}`).join(' ')) : t('Columns as {{column}}')}>
        {ids => <textarea {...ids} name="input" rows={2} value={input} required onChange={event => setInput(event.target.value)} />}
      </Field>
      {sheet && !flaw && <Preview sheet={sheet} input={input} />}
      <MoreFields of={chosen} />
      <div className="af-line">
        <Button type="submit" look="primary" busy={submit.busy || take.busy} disabled={!chosen.asked || !sheet || flaw !== '' || !input || !batch}>
          {sheet && !flaw ? t('Submit %1 tasks', sheet.rows.length) : t('Submit')}
        </Button>
      </div>
      <ErrorBox problem={submit.problem ?? take.problem} />
    </form>
  );
}

function Preview({ sheet, input }: { sheet: Sheet; input: string }): JSX.Element {
  const { t } = useFarm();
  const rest = sheet.rows.length - SHOWN;
  return (
    <div role="group" aria-label={t('Preview')}>
      <ol className="af-preview">
        {sheet.rows.slice(0, SHOWN).map((row, at) => <li key={at}><Text>{oneLine(fill(input, sheet.columns, row), 400)}</Text></li>)}
      </ol>
      <p className="af-quiet">{rest > 0 ? t('and %1 more: %2 tasks', rest, sheet.rows.length) : t('%1 tasks', sheet.rows.length)}</p>
    </div>
  );
}
