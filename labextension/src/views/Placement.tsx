/** Why an agent's server stands where it stands, or cannot: what each microserver says, and what would have to change. */
import React from 'react';

import { Badge, ErrorBox, Loading, Text } from '../components';
import { useFarm, useResource, type Translate } from '../context';
import type { Explanation } from '../protocol';

/** `up`: its server runs; why it could not be started before is over then. */
export function Reasons({ agent, up }: { agent: string; up: boolean }): JSX.Element {
  const { t } = useFarm();
  // the stream tells of servers and microservers itself
  const { state, value, problem, resource } = useResource<Explanation>(`/placements/explain?agent=${encodeURIComponent(agent)}`, () => false);
  return (
    <>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {state === 'loading' && <Loading />}
      {value && (
        <>
          <p role="status">{placed(agent, value, t)}{value.why_here && <span className="af-quiet"> {value.why_here}</span>}</p>
          {value.why && !up && <Text>{value.why}</Text>}
          {value.change && <p>{t('What would have to change: %1', value.change)}</p>}
          {(value.queue ?? []).map(one => <p key={one} className="af-quiet">{one}</p>)}
          <table className="af-plain">
            <thead><tr><th scope="col">{t('Microserver')}</th><th scope="col">{t('What it says')}</th></tr></thead>
            <tbody>
              {Object.entries(value.reasons ?? {}).map(([name, why]) => (
                <tr key={name}>
                  <th scope="row">{name}</th>
                  <td>
                    {why
                      ? <Badge state="refused" look="wait" word={why} />
                      : <Badge state="ready" word={name === value.microserver ? t('here') : t('has room')} />}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </>
      )}
    </>
  );
}

function placed(agent: string, { microserver, stands, reasons }: Explanation, t: Translate): string {
  if (microserver) {
    return stands ? t('The server of %1 has its place on %2.', agent, microserver) : t('The server of %1 belongs on %2.', agent, microserver);
  }
  return Object.values(reasons ?? {}).includes(null)
    ? t('The server of %1 has no place yet: it gets one where there is room when it starts.', agent)
    : t('No microserver can take the server of %1 now.', agent);
}
