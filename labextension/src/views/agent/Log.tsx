/** What the agent's server wrote, wherever it runs: its end, and what comes while it is shown. Text of programs, and nothing else. */
import React from 'react';

import { Problem } from '../../api';
import { Empty, ErrorBox, Loading, Text } from '../../components';
import { useFarm } from '../../context';
import type { LogView } from '../../protocol';

const KEPT = 1000; // lines on the page
const WAIT_SECONDS = 10;
const PAUSE_MS = 2000;

export function ServerLog({ agent }: { agent: string }): JSX.Element {
  const { t, api } = useFarm();
  const [lines, setLines] = React.useState<string[] | null>(null);
  const [problem, setProblem] = React.useState<Problem | null>(null);
  const box = React.useRef<HTMLDivElement | null>(null);
  const atEnd = React.useRef(true);
  React.useEffect(() => {
    const end = new AbortController();
    const path = `/agents/${encodeURIComponent(agent)}/logs`;
    void (async () => {
      for (let cursor = ''; !end.signal.aborted;) {
        const [behind, began] = [cursor ? `&wait=${WAIT_SECONDS}&after=${encodeURIComponent(cursor)}` : '', Date.now()];
        try {
          const told = await api.get<LogView>(`${path}?lines=200${behind}`, end.signal);
          setLines(before => [...(behind ? before ?? [] : []), ...told.lines].slice(-KEPT));
          setProblem(null);
          cursor = told.cursor;
        } catch (error) {
          if (end.signal.aborted) {
            return;
          }
          setProblem(Problem.of(error));
        }
        if (Date.now() - began < PAUSE_MS) {
          await new Promise(resolve => setTimeout(resolve, PAUSE_MS));
        }
      }
    })();
    return () => end.abort();
  }, [agent, api]);
  React.useLayoutEffect(() => {
    if (box.current && atEnd.current) {
      box.current.scrollTop = box.current.scrollHeight;
    }
  }, [lines]);
  const onScroll = (event: React.UIEvent<HTMLDivElement>): void => {
    const { scrollTop, scrollHeight, clientHeight } = event.currentTarget;
    atEnd.current = scrollHeight - scrollTop - clientHeight < 20;
  };
  return (
    <>
      <ErrorBox problem={problem} />
      {!lines && !problem && <Loading />}
      {lines?.length === 0 && <Empty title={t('It has written nothing yet.')} />}
      {lines && lines.length > 0 && (
        <div className="af-log" ref={box} onScroll={onScroll} role="log" aria-live="off" aria-label={t('Log of the server')} tabIndex={0}>
          <Text mono>{lines.join('\n')}</Text>
        </div>
      )}
    </>
  );
}
