/** The agent's server: up or not, opened in an editor, reached by VS Code; and the end of the agent. */
import React from 'react';

import { Badge, Button, Dialog, ErrorBox, Field, Loading, Table, Time } from '../../components';
import { useAction, useFarm, useResource } from '../../context';
import type { AgentView, Connected, ConnectionView, EditorView, Listed, ServerView } from '../../protocol';
import { reaches } from '../../rights';
import { Reasons } from '../Placement';
import { Section } from './fields';
import { ServerLog } from './Log';
import { PoolPart } from './PoolPart';
import { Resources } from './Resources';

export function ServerTab({ agent, path }: { agent: AgentView; path: string }): JSX.Element {
  const { t, api, model } = useFarm();
  const can = agent.retired_at === null && reaches(agent.rights, 'chat');
  const [told, setTold] = React.useState('');
  const start = useAction(async () => {
    const server = await api.post<ServerView>(`/agents/${agent.name}/start`);
    setTold(server.ready ? t('The server is up.') : t('The server is starting.'));
    model.refresh(path);
  });
  const stop = useAction(async () => {
    await api.post(`/agents/${agent.name}/stop`);
    setTold(t('The server is stopped; what the agent was working on is taken up when it is up again.'));
    model.refresh(path);
  });
  const manages = can && reaches(agent.rights, 'manage');
  const server = agent.server;
  const ready = server?.ready ?? null;
  React.useEffect(() => setTold(''), [ready]); // what was said of it is over
  return (
    <>
      <div className="af-line af-middle">
        {server && <Badge state={server.ready ? 'ready' : server.pending ? 'starting' : 'stopped'} word={serverWord(server, t)} />}
        {server?.microserver && <span className="af-quiet">{t('on %1', server.microserver)}</span>}
        {can && <Button busy={start.busy} disabled={ready === true} onClick={() => void start.run()}>{t('Start')}</Button>}
        {manages && <Button busy={stop.busy} disabled={ready === false && !server?.pending} onClick={() => void stop.run()}>{t('Stop')}</Button>}
        {told && <span role="status" className="af-quiet">{told}</span>}
      </div>
      {server?.reasons && <p className="af-quiet">{server.reasons}</p>}
      <ErrorBox problem={start.problem ?? stop.problem} />
      {agent.retired_at === null && (
        <Section title={t('Why it stands where it stands')} open={!server?.ready}><Reasons agent={agent.name} up={server?.ready ?? false} /></Section>
      )}
      <Editors editors={agent.editors ?? []} stopped={ready === false} />
      {(agent.pool || manages) && <PoolPart agent={agent} manages={manages} />}
      <Resources agent={agent.name} manages={manages} />
      {manages && <Connections agent={agent} />}
      {reaches(agent.rights, 'manage') && <Section title={t('Log of the server')} open={false}><ServerLog agent={agent.name} /></Section>}
      {agent.retired_at === null && reaches(agent.rights, 'owner') && <Retire agent={agent} path={path} />}
    </>
  );
}

export function serverWord(server: NonNullable<AgentView['server']>, t: ReturnType<typeof useFarm>['t']): string {
  return server.ready ? t('server up') : server.pending ? t('server: %1', server.pending) : t('server stopped');
}

/** Where it is stopped the Hub would turn people away: it starts agents' servers for the farm alone. */
function Editors({ editors, stopped }: { editors: EditorView[]; stopped: boolean }): JSX.Element | null {
  const { t } = useFarm();
  const links = editors.filter(one => one.name !== 'vscode' && /^(https?:)?\//.test(one.url));
  return links.length === 0 ? null : (
    <section className="af-section" aria-label={t('Open its workspace')}>
      <div className="af-section-head"><h3>{t('Open its workspace')}</h3></div>
      <div className="af-section-body af-line">
        {stopped ? <p className="af-quiet">{t('Start the server first.')}</p> : links.map(one => <a key={one.name} className="af-button" href={one.url} target="_blank" rel="noopener">{one.title}</a>)}
      </div>
    </section>
  );
}

/** A way in for VS Code: a token of the agent's, shown once, for some hours; who holds one; its end. */
function Connections({ agent }: { agent: AgentView }): JSX.Element {
  const { t, api } = useFarm();
  const path = `/agents/${agent.name}/connections`;
  const { state, value, problem, resource } = useResource<Listed<ConnectionView>>(path, () => false);
  const [hours, setHours] = React.useState(8);
  const [made, setMade] = React.useState<Connected | null>(null);
  const [note, setNote] = React.useState('');
  const gone = React.useRef(false);
  React.useEffect(() => {
    gone.current = false; // drawn twice in development
    return () => void (gone.current = true);
  }, []);
  const connect = useAction(async () => {
    for (;;) { // each answer waits for the server up to 20 s
      const answer = await api.post<Connected>(`/agents/${agent.name}/connect`, { hours });
      if (answer.ready || gone.current) {
        setMade(answer);
        break;
      }
      setNote(answer.note ?? answer.pending ?? '');
    }
    setNote('');
    resource.refresh();
  });
  const end = useAction(async (id: string) => {
    const left = await api.delete<Listed<ConnectionView>>(id ? `${path}/${id}` : path);
    resource.patch(() => left);
  });
  return (
    <section className="af-section" aria-label={t('Connect VS Code')}>
      <div className="af-section-head"><h3>{t('Connect VS Code')}</h3></div>
      <div className="af-section-body">
        <p className="af-quiet">{t('By the extensions Jupyter and JupyterHub: “Existing JupyterHub Server”, then what is shown here.')}</p>
        <div className="af-line af-short">
          <Field label={t('For how many hours')}>
            {ids => <input {...ids} type="number" min={1} max={24} value={hours} onChange={event => setHours(Math.max(1, Math.min(24, event.target.valueAsNumber || 1)))} />}
          </Field>
          <Button look="primary" busy={connect.busy} onClick={() => void connect.run()}>{t('Connect')}</Button>
        </div>
        {note && <p role="status" className="af-quiet">{note}</p>}
        <ErrorBox problem={connect.problem ?? end.problem ?? problem} />
        {state === 'loading' && <Loading />}
        {value && value.items.length > 0 && (
          <>
            <Table<ConnectionView>
              items={value.items} label={t('Connections')} keyOf={one => one.connection_id}
              columns={[
                { id: 'person', title: t('Person'), cell: one => one.person },
                { id: 'made', title: t('Made'), cell: one => <Time at={one.created_at} /> },
                { id: 'until', title: t('Good until'), cell: one => new Date(one.expires_at).toLocaleString() },
                { id: 'end', title: '', width: '8rem', cell: one => <Button look="quiet" busy={end.busy} onClick={() => void end.run(one.connection_id)}>{t('Revoke')}</Button> }
              ]}
            />
            <div><Button busy={end.busy} onClick={() => void end.run('')}>{t('Revoke all')}</Button></div>
          </>
        )}
      </div>
      {made && <Connection made={made} onClose={() => setMade(null)} />}
    </section>
  );
}

function Connection({ made, onClose }: { made: Connected; onClose: () => void }): JSX.Element {
  const { t } = useFarm();
  const lines: [string, string][] = [[t('URL of the JupyterHub'), made.url], [t('User'), made.user], [t('Token'), made.token ?? '']];
  return (
    <Dialog title={t('Connect VS Code')} onClose={onClose}>
      <p>{t('Type these into VS Code. The token is shown this once.')}</p>
      {lines.map(([label, value]) => (
        <Field key={label} label={label}>
          {ids => (
            <div className="af-copy">
              <input {...ids} className="af-mono" value={value} readOnly onFocus={event => event.currentTarget.select()} />
              <Copy value={value} />
            </div>
          )}
        </Field>
      ))}
      {made.expires_at && <p className="af-quiet">{t('Good until %1', new Date(made.expires_at).toLocaleString())}</p>}
    </Dialog>
  );
}

function Copy({ value }: { value: string }): JSX.Element | null {
  const { t } = useFarm();
  const [done, setDone] = React.useState(false);
  if (typeof navigator.clipboard === 'undefined') {
    return null; // pages that are not https: the person selects and copies
  }
  return <Button onClick={() => void navigator.clipboard.writeText(value).then(() => setDone(true), () => setDone(false))}>{done ? t('Copied') : t('Copy')}</Button>;
}

function Retire({ agent, path }: { agent: AgentView; path: string }): JSX.Element {
  const { t, api, model } = useFarm();
  const [asked, setAsked] = React.useState(false);
  const [typed, setTyped] = React.useState('');
  const retire = useAction(async () => {
    await api.delete(`/agents/${agent.name}`);
    setAsked(false);
    model.refresh(path);
    model.refresh('/agents?');
  });
  return (
    <section className="af-section" aria-label={t('Retire the agent')}>
      <div className="af-section-body">
        <p className="af-quiet">{t('A retired agent takes no work; its runs and its name stay in the record for ever.')}</p>
        <div><Button look="danger" onClick={() => setAsked(true)}>{t('Retire the agent …')}</Button></div>
      </div>
      {asked && (
        <Dialog
          title={t('Retire %1', agent.name)} onClose={() => setAsked(false)}
          acts={<Button look="danger" busy={retire.busy} disabled={typed !== agent.name} onClick={() => void retire.run()}>{t('Retire it for good')}</Button>}
        >
          <p>{t('This cannot be undone. Its server is stopped, its user at the Hub is deleted, nobody can use its name again.')}</p>
          <Field label={t('Type its name to confirm')}>{ids => <input {...ids} value={typed} onChange={event => setTyped(event.target.value)} />}</Field>
          <ErrorBox problem={retire.problem} />
        </Dialog>
      )}
    </section>
  );
}
