/** What narrows a list, as it stands in the address. Pure. */
import type { Params } from './views/view';

/** By the names that the farm knows; '' does not narrow. */
export interface Filter {
  status: string;
  agent: string;
  owner: string;
  text: string;
}

export const filterOf = (params: Params): Filter => ({
  status: params.status ?? '', agent: params.agent ?? '', owner: params.owner ?? '', text: params.text ?? ''
});

export const sameFilter = (one: Filter, two: Filter): boolean => (Object.keys(one) as (keyof Filter)[]).every(name => one[name] === two[name]);

/** A route with what is not empty behind `?`: what `findView` gives back. */
export function addressOf(route: string, params: Params): string {
  const said = Object.entries(params).filter(([, value]) => value).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
  return said.length ? `${route}?${said.join('&')}` : route;
}
