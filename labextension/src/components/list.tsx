/** Lists: a virtual one of any length, and a table whose rows can be chosen by keyboard. */
import React from 'react';

import { Heights } from './heights';

/** Draws only the rows in sight. Heights are measured; `stick`: stays at the end while the reader is there. */
export function VirtualList<T>({ items, count, row, keyOf, label, estimate = 32, stick, className }: {
  items: readonly T[];
  /** How many of `items`: an array that grows in place. */
  count?: number;
  row: (item: T, at: number) => React.ReactNode;
  keyOf: (item: T, at: number) => string | number;
  label: string;
  estimate?: number;
  stick?: boolean;
  className?: string;
}): JSX.Element {
  const length = count ?? items.length;
  const scroller = React.useRef<HTMLDivElement>(null);
  const heights = React.useRef<Heights>();
  heights.current ??= new Heights(estimate);
  heights.current.resize(length);
  const [view, setView] = React.useState({ top: 0, height: 600 });
  const [, redraw] = React.useReducer((n: number) => n + 1, 0);
  const atEnd = React.useRef(true);
  const lastTop = React.useRef(0);

  const look = React.useCallback(() => {
    const element = scroller.current;
    if (element) {
      // the reader leaves the end by going up; rows that come or grow leave nobody behind
      const end = element.scrollHeight - element.scrollTop - element.clientHeight < 40;
      atEnd.current = end || (atEnd.current && element.scrollTop >= lastTop.current);
      lastTop.current = element.scrollTop;
      setView(before => before.top === element.scrollTop && before.height === element.clientHeight
        ? before : { top: element.scrollTop, height: element.clientHeight });
    }
  }, []);
  React.useLayoutEffect(() => {
    const watch = new ResizeObserver(look);
    if (scroller.current) {
      watch.observe(scroller.current);
    }
    look();
    return () => watch.disconnect();
  }, [look]);

  const measure = useMeasure(heights.current, redraw);
  const first = Math.max(0, heights.current.at(view.top) - 4);
  const last = Math.min(length, heights.current.at(view.top + view.height) + 6);
  React.useLayoutEffect(() => {
    if (stick && atEnd.current && scroller.current) {
      scroller.current.scrollTop = scroller.current.scrollHeight;
    }
  });
  const rows = [];
  for (let at = first; at < last; at++) {
    const item = items[at]!;
    rows.push(
      <div
        key={keyOf(item, at)} role="listitem" aria-setsize={length} aria-posinset={at + 1} data-row={at} className="af-virtual-row"
        style={{ transform: `translateY(${heights.current.top(at)}px)` }} ref={measure}
      >
        {row(item, at)}
      </div>
    );
  }
  return (
    <div ref={scroller} className={`af-virtual ${className ?? ''}`} onScroll={look} tabIndex={0} role="list" aria-label={label}>
      <div className="af-virtual-space" style={{ height: heights.current.total }} role="presentation">{rows}</div>
    </div>
  );
}

/** A ref for rows that tells their heights as they are and become. */
function useMeasure(heights: Heights, redraw: () => void): (element: HTMLElement | null) => void {
  const observer = React.useRef<ResizeObserver>();
  observer.current ??= new ResizeObserver(entries => {
    let moved = false;
    for (const { target } of entries) {
      const element = target as HTMLElement;
      if (element.isConnected) {
        moved = heights.measured(Number(element.dataset.row), element.offsetHeight) || moved;
      } else {
        observer.current?.unobserve(element);
      }
    }
    if (moved) {
      redraw();
    }
  });
  React.useEffect(() => () => observer.current?.disconnect(), []);
  return React.useCallback(element => element && observer.current?.observe(element), []);
}

export interface Column<T> {
  id: string;
  title: string;
  cell: (item: T) => React.ReactNode;
  /** CSS width, e.g. `8rem` or `2fr`. */
  width?: string;
  /** Stays beside the first one where there is little room; the others go, where a table says this of one. */
  stays?: boolean;
}

/** A table of any length with rows of one height. A row is opened by click or Enter; arrows move between rows. */
export function Table<T>({ items, columns, keyOf, label, onOpen, empty, more }: {
  items: readonly T[];
  columns: Column<T>[];
  keyOf: (item: T) => string;
  label: string;
  onOpen?: (item: T) => void;
  empty?: React.ReactNode;
  /** Called when the end comes in sight: the next page. */
  more?: (() => void) | undefined;
}): JSX.Element {
  const body = React.useRef<HTMLDivElement>(null);
  const [from, setFrom] = React.useState(0);
  const [room, setRoom] = React.useState(40);
  const widths = columns.map(column => column.width ?? 'minmax(0, 1fr)').join(' ');
  const look = (): void => {
    const element = body.current;
    if (!element) {
      return;
    }
    setFrom(Math.max(0, Math.floor(element.scrollTop / ROW) - 5));
    setRoom(Math.ceil(element.clientHeight / ROW) + 10);
    if (more && element.scrollHeight - element.scrollTop - element.clientHeight < 5 * ROW) {
      more();
    }
  };
  React.useLayoutEffect(look, [items.length]);
  const onKeyDown = (event: React.KeyboardEvent<HTMLDivElement>): void => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const row = (event.target as HTMLElement).closest<HTMLElement>('[role=row]');
    if (step && row && body.current) {
      event.preventDefault();
      const next = body.current.querySelector<HTMLElement>(`[aria-rowindex="${Number(row.getAttribute('aria-rowindex')) + step}"]`);
      next?.focus();
    }
  };
  if (items.length === 0 && empty) {
    return <>{empty}</>;
  }
  const shown = items.slice(from, from + room);
  return (
    <div className="af-table" role="table" aria-label={label} data-narrows={columns.some(column => column.stays) ? '' : undefined} aria-rowcount={items.length + 1} style={{ minHeight: HEAD + ROW * Math.min(items.length, 5) }}>
      <div role="rowgroup" className="af-table-head">
        <div role="row" aria-rowindex={1} style={{ gridTemplateColumns: widths }}>
          {columns.map((column, at) => <div key={column.id} role="columnheader" data-stays={at === 0 || column.stays ? '' : undefined}>{column.title}</div>)}
        </div>
      </div>
      <div ref={body} role="rowgroup" className="af-table-body" onScroll={look} onKeyDown={onKeyDown} tabIndex={-1}>
        <div style={{ height: from * ROW }} role="presentation" />
        {shown.map((item, at) => (
          <div
            key={keyOf(item)} role="row" aria-rowindex={from + at + 2} style={{ gridTemplateColumns: widths, height: ROW }}
            tabIndex={onOpen ? 0 : -1} data-opens={onOpen ? '' : undefined} onClick={() => onOpen?.(item)}
            onKeyDown={event => event.key === 'Enter' && event.target === event.currentTarget && onOpen?.(item)}
          >
            {columns.map((column, place) => <div key={column.id} role="cell" data-stays={place === 0 || column.stays ? '' : undefined}>{column.cell(item)}</div>)}
          </div>
        ))}
        <div style={{ height: Math.max(0, items.length - from - shown.length) * ROW }} role="presentation" />
      </div>
    </div>
  );
}

const ROW = 36; // px; kit.css draws rows so high
const HEAD = 34; // px, with the frame; in a narrow place five rows stay in sight
