/** The farm pages: the same views without JupyterLab, routed by the address. */
import React from 'react';
import { createRoot } from 'react-dom/client';

import { Api, pageTransport } from './api';
import { Badge } from './components';
import { FarmProvider, useStore, type Farm } from './context';
import { farmIcon } from './icons';
import { FarmModel } from './model';
import { findView } from './routes';
import { LinkState, Routed, SignedOut, Unwell } from './shell';
import { plain } from './translate';
import { views } from './views';
import '../style/pages.css';
import '../style/kit.css';

const page = document.querySelector<HTMLMetaElement>('meta[name="farm"]')!.dataset as Record<string, string>;
const base = page.base ?? '/services/agentfarm/';

const t = plain;

const HOME = 'home';
const routeNow = (): string => decodeURI(location.pathname.slice(base.length)) + location.search;

function App(): JSX.Element {
  const [route, setRoute] = React.useState(routeNow);
  const main = React.useRef<HTMLElement>(null);
  const farm = React.useMemo<Farm>(() => {
    const api = new Api(pageTransport(base, page.xsrf ?? ''));
    const go = (to: string): void => {
      if (to !== routeNow()) {
        history.pushState(null, '', base + to);
      }
      setRoute(to);
    };
    return {
      api, model: new FarmModel(api), t, page: true, person: page.person ?? '', approver: Boolean(page.approver), operator: Boolean(page.operator),
      href: to => base + to,
      signIn: () => void window.open(base, '_blank'), // what is typed here stays; this page goes on when it is looked at again
      navigate: to => {
        go(to);
        main.current?.focus();
      },
      readdress: go
    };
  }, []);
  React.useEffect(() => {
    const back = (): void => setRoute(routeNow());
    const seen = (): void => void (document.visibilityState === 'visible' && farm.model.wake());
    const seenAgain = (): void => void (farm.model.link.get() !== 'live' && farm.model.wake());
    window.addEventListener('popstate', back);
    window.addEventListener('online', farm.model.wake);
    window.addEventListener('focus', seenAgain);
    document.addEventListener('visibilitychange', seen);
    return () => {
      window.removeEventListener('popstate', back);
      window.removeEventListener('online', farm.model.wake);
      window.removeEventListener('focus', seenAgain);
      document.removeEventListener('visibilitychange', seen);
    };
  }, [farm]);
  const shown = findView(views, route || HOME)?.view;
  React.useEffect(() => {
    document.title = shown ? `${shown.title(t)} · AgentFarm` : 'AgentFarm';
  }, [shown]);
  return (
    <FarmProvider farm={farm}>
      <Header farm={farm} now={shown?.under ?? shown?.route.split('/')[0] ?? ''} />
      <SignedOut />
      <Unwell />
      {page.note && page.model !== 'none' && <aside className="af-note" aria-label={t('Model')}><strong>{page.model}</strong> {page.note}</aside>}
      <main ref={main} tabIndex={-1}>
        <Routed route={route || HOME} />
      </main>
    </FarmProvider>
  );
}

function Header({ farm, now }: { farm: Farm; now: string }): JSX.Element {
  const waiting = useStore(farm.model.waiting);
  const links = views.filter(view => view.nav !== undefined && view.where !== 'lab' && (view.who !== 'operator' || farm.operator)).sort((a, b) => a.nav! - b.nav!);
  return (
    <header className="af-header">
      <a
        className="af-brand" href={base}
        onClick={event => {
          event.preventDefault();
          farm.navigate('');
        }}
      >
        <Icon svg={farmIcon} /> AgentFarm
      </a>
      <nav aria-label={t('Farm')}>
        {links.map(view => (
          <a
            key={view.id} href={base + view.route} aria-current={view.route === now ? 'page' : undefined}
            onClick={event => {
              if (!event.ctrlKey && !event.metaKey && !event.shiftKey) {
                event.preventDefault();
                farm.navigate(view.route);
              }
            }}
          >
            <Icon svg={view.icon} /> {view.title(t)}
            {view.id === 'inbox' && waiting > 0 && <Badge state="waiting" word={String(waiting)} />}
          </a>
        ))}
      </nav>
      <span className="af-spring" />
      <LinkState />
      <span className="af-quiet">{page.person}</span>
      <a href={page.hub}>Hub</a>
    </header>
  );
}

/** Our own constant SVG alone. */
function Icon({ svg }: { svg: string }): JSX.Element {
  return <span className="af-icon" aria-hidden="true" dangerouslySetInnerHTML={{ __html: svg }} />;
}

createRoot(document.getElementById('app')!).render(<App />);
