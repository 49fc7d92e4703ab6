/** What both shells draw: a view by its route, guarded, and the line to the farm as a badge. */
import React from 'react';

import { Problem } from './api';
import { Badge, Button, Empty, ErrorBox, Go, Hint } from './components';
import { useFarm, useStore } from './context';
import { findView } from './routes';
import { views } from './views';

/** The view of a route; what breaks in it is shown in its place. */
export function Routed({ route }: { route: string }): JSX.Element {
  const { t } = useFarm();
  const found = findView(views, route);
  if (!found) {
    return <Empty title={t('There is no such page: %1', route)}><Go to="agents">{t('Agents')}</Go></Empty>;
  }
  return (
    <Guard key={found.view.id}>
      <found.view.Component params={found.params} />
    </Guard>
  );
}

class Guard extends React.Component<{ children: React.ReactNode }, { error: unknown }> {
  override state: { error: unknown } = { error: null };

  static getDerivedStateFromError(error: unknown): { error: unknown } {
    return { error };
  }

  override render(): React.ReactNode {
    const { error } = this.state;
    return error === null
      ? this.props.children
      : <ErrorBox problem={new Problem(0, { title: 'This view broke', detail: String(error) })} onRetry={() => this.setState({ error: null })} />;
  }
}

/** Whether what is shown is live; what to do where the login has expired. */
export function LinkState(): JSX.Element {
  const { model, t } = useFarm();
  const link = useStore(model.link);
  const words: Record<typeof link, string> = {
    idle: t('idle'), connecting: t('connecting'), live: t('live'), away: t('reconnecting'), 'signed-out': t('signed out')
  };
  return <span role="status" className="af-link"><Badge state={link} word={words[link]} /></span>;
}

/** Above everything where the login has expired: nothing typed is lost until the person says so. */
export function SignedOut(): JSX.Element | null {
  const { model, t, signIn } = useFarm();
  const link = useStore(model.link);
  return link === 'signed-out' ? (
    <div className="af-banner" role="alert">
      <span>{t('Your login has expired. Sign in again; what you see is from before.')}</span>
      <Button look="primary" onClick={signIn}>{t('Sign in')}</Button>
    </div>
  ) : null;
}

/** Above everything while the farm is not well (its database or its model is away), or cannot be read at all. */
export function Unwell(): JSX.Element | null {
  const { model, t } = useFarm();
  const { problems } = useStore(model.health);
  const common = useStore(model.common);
  if (!common && problems.length === 0) {
    return null;
  }
  const others = problems.filter(one => !common?.detail || !one.includes(common.detail));
  return (
    <div className="af-banner" data-state="unwell" role="alert">
      <span>
        {common && <><strong>{common.title}</strong>{common.detail && ` · ${common.detail}`}{common.hint && <span className="af-quiet"> · <Hint words={common.hint} /></span>}{others.length > 0 && ' · '}</>}
        {others.length > 0 && <><strong>{t('The farm is not well')}</strong> · {others.join(' · ')}</>}
      </span>
      {common && <Button onClick={model.wake}>{t('Try again')}</Button>}
    </div>
  );
}
