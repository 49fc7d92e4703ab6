/** How much of the model's context the draft takes, and what its prompt still lacks: as the farm would begin a run. */
import React from 'react';

import { useFarm } from '../../context';
import type { Definition, Preview } from '../../protocol';

/** Asked when a draft has been saved; what the farm refuses the draft's own saving has said. */
export function Length({ draft, saved }: { draft: Definition; saved: boolean }): JSX.Element | null {
  const { t, api } = useFarm();
  const [told, setTold] = React.useState<Preview | null>(null);
  React.useEffect(() => {
    let late = false;
    if (saved) {
      api.post<Preview>('/preview', { definition: draft }).then(answer => late || setTold(answer), () => late || setTold(null));
    }
    return () => {
      late = true;
    };
  }, [api, draft, saved]);
  if (!told) {
    return null;
  }
  const { tokens, context, missing } = told;
  return (
    <p className="af-quiet af-facts" role="status">
      {t('A run begins with about %1 tokens: prompt %2, tools %3.', tokens.total, tokens.prompt, tokens.tools)}
      {context ? ` ${t('The model takes %1.', context.toLocaleString())}` : ''}
      {missing.length > 0 && ` ${t('Each task has to give: %1.', missing.join(', '))}`}
    </p>
  );
}
