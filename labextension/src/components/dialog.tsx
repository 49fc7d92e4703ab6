/** A modal dialog: the browser's own, so focus stays inside and Escape closes it. In a hidden tab of JupyterLab it is closed: it would
 * keep everything else from the mouse. */
import React from 'react';

import { useFarm, useShown } from '../context';
import { Button } from './basic';

export function Dialog({ title, onClose, children, acts }: {
  title: string;
  onClose: () => void;
  children: React.ReactNode;
  /** Buttons at the foot, beside Close. */
  acts?: React.ReactNode;
}): JSX.Element {
  const { t } = useFarm();
  const id = React.useId();
  const element = React.useRef<HTMLDialogElement>(null);
  const shown = useShown();
  React.useEffect(() => {
    const dialog = element.current;
    if (!shown || !dialog) {
      return;
    }
    dialog.showModal();
    return () => dialog.close();
  }, [shown]);
  return (
    <dialog
      ref={element} className="af-dialog" aria-labelledby={id}
      onCancel={event => {
        event.preventDefault();
        onClose();
      }}
    >
      <h2 id={id}>{title}</h2>
      <div className="af-dialog-body">{children}</div>
      <div className="af-dialog-foot">
        <Button onClick={onClose}>{t('Close')}</Button>
        {acts}
      </div>
    </dialog>
  );
}
