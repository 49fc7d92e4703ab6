/** Figures as people read them. Pure. */

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB'];

/** Bytes, as `3.2 GB` (powers of 1000). */
export function bytes(amount: number): string {
  let at = 0;
  while (amount >= 1000 && at < UNITS.length - 1) {
    amount /= 1000;
    at++;
  }
  return `${amount >= 100 || at === 0 ? Math.round(amount) : amount.toFixed(1)} ${UNITS[at]}`;
}

/** A whole figure with its thousands apart. */
export const count = (amount: number): string => Math.round(amount).toLocaleString('en');

/** How long something is up, as `3 d 4 h`. `seconds`: at least 0. */
export function lasting(seconds: number): string {
  const minutes = Math.floor(seconds / 60);
  const [days, hours] = [Math.floor(minutes / 1440), Math.floor((minutes % 1440) / 60)];
  return days ? `${days} d ${hours} h` : hours ? `${hours} h ${minutes % 60} min` : `${minutes} min`;
}

/** A short while, as `90 s` or `15 min`. `seconds`: at least 0. */
export function shortly(seconds: number): string {
  return seconds < 120 ? `${Math.round(seconds)} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min` : lasting(seconds);
}

/** The days (UTC, `2026-11-21`) up to today, the oldest first. */
export function daysUntil(now: Date, how_many: number): string[] {
  return Array.from({ length: how_many }, (_, at) => new Date(now.getTime() - (how_many - 1 - at) * 86_400_000).toISOString().slice(0, 10));
}
