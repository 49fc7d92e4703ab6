/** Small charts: a bar of parts, and bars by day. Drawn by us as SVG; the figures stand beside them as text. */
import React from 'react';

export interface Part {
  /** What it is, as `spent`; read out with its share. */
  name: string;
  amount: number;
  look: 'full' | 'held' | 'bad';
}

/** Parts of a whole in one bar. `words`: what the bar says, for who does not see it. */
export function Meter({ parts, whole, words }: { parts: Part[]; whole: number; words: string }): JSX.Element {
  const share = (amount: number): number => (whole > 0 ? Math.min(100, Math.max(0, (100 * amount) / whole)) : 0);
  let at = 0;
  return (
    <svg className="af-meter" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label={words}>
      <rect className="af-meter-room" width="100" height="8" />
      {parts.map(part => {
        const from = at;
        at = Math.min(100, at + share(part.amount));
        return <rect key={part.name} data-look={part.look} x={from} width={at - from} height="8" />;
      })}
    </svg>
  );
}

export interface Bar {
  name: string;
  amount: number;
  /** Its figure in words, shown where the pointer rests. */
  words: string;
}

const HEIGHT = 100;

/** One bar for each, side by side, up to the highest. */
export function Bars({ bars, label }: { bars: Bar[]; label: string }): JSX.Element {
  const most = Math.max(...bars.map(bar => bar.amount), 0);
  return (
    <svg className="af-bars" viewBox={`0 0 ${bars.length * 10} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={label}>
      {bars.map((bar, at) => {
        const height = most > 0 ? Math.max(bar.amount > 0 ? 2 : 0, (HEIGHT * bar.amount) / most) : 0;
        return (
          <g key={bar.name}>
            <title>{`${bar.name}: ${bar.words}`}</title>
            <rect className="af-bars-room" x={at * 10} width="10" height={HEIGHT} />
            <rect x={at * 10 + 1.5} y={HEIGHT - height} width="7" height={height} />
          </g>
        );
      })}
    </svg>
  );
}
