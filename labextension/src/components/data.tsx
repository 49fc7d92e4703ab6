/** Values: JSON that folds, two texts side by side. */
import React from 'react';

import { useFarm } from '../context';
import { Text } from './basic';
import { differences } from './diff';

/** A JSON value that folds. Strings are text; long ones and deep ones begin folded. */
export function Json({ value, open = 2 }: { value: unknown; open?: number }): JSX.Element {
  return <div className="af-json">{leaf(value) ? <Leaf value={value} /> : <Branch value={value as object} open={open} />}</div>;
}

const leaf = (value: unknown): boolean => value === null || typeof value !== 'object' || Object.keys(value).length === 0;

function Leaf({ value }: { value: unknown }): JSX.Element {
  const kind = value === null ? 'null' : typeof value;
  const text = typeof value === 'string' ? value : JSON.stringify(value) ?? String(value);
  return <span className="af-json-leaf" data-kind={kind}>{text}</span>;
}

function Branch({ value, open }: { value: object; open: number }): JSX.Element {
  const { t } = useFarm();
  const [shown, setShown] = React.useState(open > 0);
  const entries = Object.entries(value);
  const brackets = Array.isArray(value) ? ['[', ']'] : ['{', '}'];
  return (
    <>
      <button type="button" className="af-json-fold" aria-expanded={shown} onClick={() => setShown(!shown)}>
        {shown ? brackets[0] : `${brackets[0]} ${t('%1 values', entries.length)} ${brackets[1]}`}
      </button>
      {shown && (
        <>
          <ul>
            {entries.map(([key, one]) => (
              <li key={key}>
                <span className="af-json-key">{key}</span>{' '}
                {leaf(one) ? <Leaf value={one} /> : <Branch value={one as object} open={open - 1} />}
              </li>
            ))}
          </ul>
          <span>{brackets[1]}</span>
        </>
      )}
    </>
  );
}

/** A value as people read it: text as text, the rest as JSON. */
export function Value({ value }: { value: unknown }): JSX.Element {
  return typeof value === 'string' ? <Text>{value}</Text> : <Json value={value} />;
}

/** Two texts side by side, line by line. */
export function Diff({ before, after, names }: { before: string; after: string; names: [string, string] }): JSX.Element {
  const { t } = useFarm();
  const rows = React.useMemo(() => differences(before, after), [before, after]);
  return (
    <table className="af-diff">
      <thead>
        <tr><th scope="col">{names[0]}</th><th scope="col">{names[1]}</th></tr>
      </thead>
      <tbody>
        {rows.map((row, at) => (
          <tr key={at} data-kind={row.kind}>
            <td data-side={row.kind === 'same' || row.before === undefined ? undefined : 'removed'}>
              {row.kind !== 'same' && row.before !== undefined && <span className="af-hidden">{t('removed:')} </span>}
              {row.before}
            </td>
            <td data-side={row.kind === 'same' || row.after === undefined ? undefined : 'added'}>
              {row.kind !== 'same' && row.after !== undefined && <span className="af-hidden">{t('added:')} </span>}
              {row.after}
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
