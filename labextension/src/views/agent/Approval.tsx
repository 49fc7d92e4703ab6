/** Who is asked before a tool is called, and what follows where nobody answers. */
import React from 'react';

import { Field } from '../../components';
import { useFarm, type Translate } from '../../context';
import type { ToolSpec } from '../../protocol';
import { NumberField } from './fields';

export const approvalWord = (approval: string, t: Translate): string =>
  approval === 'never' ? t('no approval') : approval === 'always' ? t('approval of each call') : t('approval if %1', approval);

export function Approval({ tool, change, readOnly }: { tool: ToolSpec; change: (to: Partial<ToolSpec>) => void; readOnly: boolean }): JSX.Element {
  const { t } = useFarm();
  const approval = tool.approval ?? 'never';
  const kind = approval === 'never' || approval === 'always' ? approval : 'if';
  const [condition, setCondition] = React.useState(kind === 'if' ? approval : '');
  const [chosen, setChosen] = React.useState<string>(kind);
  React.useEffect(() => {
    if (approval !== 'never' && approval !== 'always') {
      setCondition(approval);
      setChosen('if');
    } else {
      setChosen(now => (now === 'if' ? now : approval));
    }
  }, [approval]);
  const choose = (to: string): void => {
    setChosen(to);
    if (to !== 'if') {
      change({ approval: to });
    } else if (condition) {
      change({ approval: condition });
    }
  };
  return (
    <>
      <div className="af-line">
        <Field label={t('Approval')}>
          {ids => (
            <select {...ids} name={`approval-${tool.name}`} value={chosen} disabled={readOnly} onChange={event => choose(event.target.value)}>
              <option value="never">{t('never asked')}</option>
              <option value="always">{t('a person approves each call')}</option>
              <option value="if">{t('a person approves if …')}</option>
            </select>
          )}
        </Field>
        {chosen !== 'never' && (
          <>
            <NumberField label={t('Approvers')} value={tool.approvers} usual="1" step={1} readOnly={readOnly} onChange={to => change({ approvers: to ?? 1 })} />
            <NumberField
              label={t('Expires, seconds')} value={tool.approval_expires} usual={t('never')} readOnly={readOnly} onChange={to => change({ approval_expires: to ?? null })}
            />
          </>
        )}
      </div>
      {chosen === 'if' && (
        <Field label={t('Condition on the arguments')} hint={t('e.g. amount > 100 and currency != "EUR"; what cannot be evaluated asks a person')}>
          {ids => (
            <input
              {...ids} className="af-mono" value={condition} readOnly={readOnly} spellCheck={false}
              onChange={event => {
                setCondition(event.target.value);
                if (event.target.value.trim()) {
                  change({ approval: event.target.value });
                }
              }}
            />
          )}
        </Field>
      )}
      {chosen !== 'never' && <Escalation tool={tool} change={change} readOnly={readOnly} />}
    </>
  );
}

/** Who is shown it too where it has waited for long. */
function Escalation({ tool, change, readOnly }: { tool: ToolSpec; change: (to: Partial<ToolSpec>) => void; readOnly: boolean }): JSX.Element {
  const { t } = useFarm();
  const waits = tool.escalate_after != null;
  return (
    <div className="af-line af-top">
      <NumberField
        label={t('Escalated after, seconds')} value={tool.escalate_after} usual={t('never')} readOnly={readOnly}
        // a group without a time is refused by the farm: it goes with it
        onChange={to => change(to === undefined ? { escalate_after: null, escalate_to: '' } : { escalate_after: to })}
      />
      <Field label={t('To this group too')}>
        {ids => (
          <input
            {...ids} name={`escalate-${tool.name}`} key={tool.escalate_to ?? ''} defaultValue={tool.escalate_to ?? ''} readOnly={readOnly} disabled={!waits} placeholder={t('operators')}
            onBlur={event => event.target.value.trim() !== (tool.escalate_to ?? '') && change({ escalate_to: event.target.value.trim() })}
          />
        )}
      </Field>
    </div>
  );
}
