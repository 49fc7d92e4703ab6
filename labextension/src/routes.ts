/** Which view a route shows. Pure. */
import type { Params, View } from './views/view';

export interface Found {
  view: View;
  params: Params;
}

/** `runs/run-1` → the view `runs/:id` with `{id: 'run-1'}`; null where there is none. What stands behind `?` joins the parameters. */
export function findView(views: readonly View[], route: string): Found | null {
  const [path = '', query = ''] = route.split('?', 2);
  const parts = path.split('/').filter(Boolean);
  for (const view of views) {
    const wanted = view.route.split('/').filter(Boolean);
    const params: Params = Object.fromEntries(new URLSearchParams(query));
    const fits = wanted.length === parts.length && wanted.every((one, at) => {
      if (!one.startsWith(':')) {
        return one === parts[at];
      }
      params[one.slice(1)] = decode(parts[at]!);
      return true;
    });
    if (fits) {
      return { view, params };
    }
  }
  return null;
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
