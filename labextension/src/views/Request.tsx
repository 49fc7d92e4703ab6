/** A request to the model, message by message, as it was really sent: rebuilt from the ledger, and checked by its digest. */
import React from 'react';

import { Badge, Dialog, ErrorBox, Json, Loading, Text } from '../components';
import { useFarm, useResource } from '../context';
import type { RequestView } from '../protocol';

export function RequestDialog({ run_id, seq, onClose }: { run_id: string; seq: number; onClose: () => void }): JSX.Element {
  const { t } = useFarm();
  const { value, problem, resource } = useResource<RequestView>(`/runs/${run_id}/requests/${seq}`, () => false);
  return (
    <Dialog title={t('The exact request')} onClose={onClose}>
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {!value && !problem && <Loading />}
      {value && <Whole of={value} />}
    </Dialog>
  );
}

function Whole({ of }: { of: RequestView }): JSX.Element {
  const { t } = useFarm();
  const proof = of.matches === null
    ? <Badge state="pending" word={of.why || t('cannot be checked')} />
    : of.matches ? <Badge state="verified" word={t('as recorded')} /> : <Badge state="broken" word={of.why || t('not as recorded')} />;
  const { messages, tools, tool_choice, parameters, answer } = of;
  return (
    <>
      <p className="af-quiet">{[of.model, of.upstream, t('attempt %1', of.attempt), of.at].join(' · ')} {proof}</p>
      {messages.map((message, at) => {
        const { role, content, ...more } = message;
        return (
          <div key={at} className="af-message">
            <b>{String(role)}</b>
            {typeof content === 'string' ? <Text mono>{content}</Text> : content ? <Json value={content} /> : null}
            {Object.keys(more).length > 0 && <Json value={more} />}
          </div>
        );
      })}
      <details>
        <summary>{t('Parameters and tools')}</summary>
        <Json value={{ parameters, tool_choice, tools, ...(answer ? { answer } : {}) }} open={2} />
      </details>
    </>
  );
}
