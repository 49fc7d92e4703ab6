/** What an agent remembers over all of its runs: looked through, searched, and forgotten by a person who manages it. */
import React from 'react';

import { Button, Dialog, Empty, ErrorBox, Go, Loading, Table, Time, Value } from '../../components';
import { useAction, useFarm, useResource } from '../../context';
import type { Entry, Listed } from '../../protocol';
import { oneLine } from '../../words';

export function MemoryTab({ agent, readOnly }: { agent: string; readOnly: boolean }): JSX.Element {
  const { t, api, model } = useFarm();
  const [words, setWords] = React.useState('');
  const [asked, ask] = React.useState('');
  const [shown, show] = React.useState<Entry | null>(null);
  const base = `/agents/${agent}/memory`;
  const path = `${base}?limit=200${asked ? `&query=${encodeURIComponent(asked)}` : ''}`;
  const { state, value, problem, resource } = useResource<Listed<Entry>>(path, change => change.agent === agent && change.event.kind.startsWith('memory.'));
  const [older, setOlder] = React.useState<Listed<Entry>>({ items: [] });
  React.useEffect(() => setOlder({ items: [] }), [path]);
  const items = [...(value?.items ?? []), ...older.items];
  const cursor = older.items.length ? older.next : value?.next;
  const more = useAction(async () => {
    const page = await api.get<Listed<Entry>>(`${path}&cursor=${encodeURIComponent(String(cursor))}`);
    setOlder(now => ({ ...page, items: [...now.items, ...page.items] }));
  });
  const forget = useAction(async (key: string) => {
    await api.delete(`${base}?key=${encodeURIComponent(key)}`);
    setOlder(now => ({ ...now, items: now.items.filter(one => one.key !== key) }));
    show(null);
    model.refresh(base);
  });
  return (
    <>
      <form
        className="af-line" role="search"
        onSubmit={event => {
          event.preventDefault();
          ask(words.trim());
        }}
      >
        <input className="af-search" name="memory" type="search" aria-label={t('Words in key or value')} placeholder={t('Words in key or value')} value={words} onChange={event => setWords(event.target.value)} onBlur={() => ask(words.trim())} />
        <Button type="submit">{t('Search')}</Button>
        <span className="af-quiet">{t('One memory over all of its runs, whoever asks it.')}</span>
      </form>
      <ErrorBox problem={problem ?? forget.problem ?? more.problem} onRetry={problem ? resource.refresh : undefined} />
      {state === 'loading' && <Loading />}
      {value && (
        <Table<Entry>
          items={items} label={t('Memory')} keyOf={one => one.key} onOpen={show}
          more={asked || cursor == null || more.busy ? undefined : () => void more.run()}
          empty={<Empty title={asked ? t('It remembers nothing with these words.') : t('It remembers nothing. Tools that let it: remember, recall, forget.')} />}
          columns={[
            { id: 'key', title: t('Key'), cell: one => <strong>{one.key}</strong> },
            { id: 'value', title: t('Value'), width: 'minmax(0, 3fr)', cell: one => oneLine(one.value) },
            { id: 'run', title: t('By'), width: '6rem', cell: one => <span onClick={event => event.stopPropagation()}><Go to={`runs/${one.run_id}`}>{t('its run')}</Go></span> },
            { id: 'at', title: t('Since'), width: '7rem', cell: one => <Time at={one.changed_at} /> }
          ]}
        />
      )}
      {shown && (
        <Dialog
          title={shown.key} onClose={() => show(null)}
          acts={readOnly ? undefined : <Button look="danger" busy={forget.busy} onClick={() => void forget.run(shown.key)}>{t('Let it forget this')}</Button>}
        >
          <Value value={shown.value} />
          <p className="af-quiet">{t('What recorded it stays in its run until it is erased there.')} <Go to={`runs/${shown.run_id}`}>{t('The run')}</Go></p>
          <ErrorBox problem={forget.problem} />
        </Dialog>
      )}
    </>
  );
}
