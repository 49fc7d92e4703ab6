/** The Lumino shell: the list at the left, a tab of the main area for each route, the figure in the status bar. */
import { ReactWidget } from '@jupyterlab/apputils';
import { LabIcon } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import { Signal } from '@lumino/signaling';
import React from 'react';

import { Badge, Button, Empty, ErrorBox, Loading } from './components';
import { agentBadge } from './views/Agents';
import { FarmProvider, useFarm, useResource, useStore, type Farm } from './context';
import { farmIcon } from './icons';
import { movesAgents, movesTasks } from './model';
import type { AgentView, Listed, TaskView } from './protocol';
import { findView } from './routes';
import { LinkState, Routed, SignedOut, Unwell } from './shell';
import { views } from './views';
import { oneLine, statusWord } from './words';

export const icon = new LabIcon({ name: 'agentfarm:farm', svgstr: farmIcon });

/** A React tree in a Lumino widget that asks for nothing while it is hidden. */
abstract class FarmWidget extends ReactWidget {
  constructor(protected readonly farm: Farm) {
    super();
    this.addClass('jp-AgentFarm');
  }

  protected abstract draw(): JSX.Element;

  protected override render(): JSX.Element {
    return <FarmProvider farm={this.farm} shown={this.isVisible}>{this.draw()}</FarmProvider>;
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this.update();
  }

  protected override onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this.update();
  }
}

/** A tab of the main area: one route, whose filters and tabs may change. */
export class RouteWidget extends FarmWidget {
  readonly readdressed = new Signal<this, string>(this);

  /** `key`: the route by which it was opened first; the saved layout knows it by this. */
  constructor(farm: Farm, public route: string, readonly key: string) {
    super({
      ...farm,
      readdress: to => {
        this.route = to;
        this.title.caption = `AgentFarm: ${to}`;
        this.update();
        this.readdressed.emit(to);
      }
    });
    const found = findView(views, route);
    const name = found?.params.name ?? found?.params.id ?? '';
    this.id = `agentfarm-${key.replace(/[^A-Za-z0-9]+/g, '-')}`;
    this.title.label = [found?.view.title(farm.t) ?? 'AgentFarm', name.replace(/^(run|task)-0*(\w{8})\w*$/, '$2')].filter(Boolean).join(' ');
    this.title.caption = `AgentFarm: ${route}`;
    this.title.icon = icon;
    this.title.closable = true;
    this.addClass('jp-AgentFarm-main');
  }

  protected draw(): JSX.Element {
    return <><SignedOut /><Unwell /><Routed route={this.route} /></>;
  }
}

/** The list at the left. */
export class PanelWidget extends FarmWidget {
  constructor(farm: Farm) {
    super(farm);
    this.id = 'agentfarm-panel';
    this.title.icon = icon;
    this.title.caption = 'AgentFarm';
    this.node.setAttribute('aria-label', 'AgentFarm');
    this.addClass('jp-AgentFarm-panel');
  }

  protected draw(): JSX.Element {
    return <><SignedOut /><Unwell /><Panel /></>;
  }
}

function Panel(): JSX.Element {
  const { t, navigate, model } = useFarm();
  const waiting = useStore(model.waiting);
  const links = views.filter(view => view.nav !== undefined && view.where !== 'page').sort((a, b) => a.nav! - b.nav!);
  return (
    <div className="af-panel">
      <div className="af-head"><h2>AgentFarm</h2><span className="af-spring" /><LinkState /></div>
      <nav aria-label="AgentFarm">
        {links.map(view => (
          <button key={view.id} type="button" className="af-row" onClick={() => navigate(view.route)}>
            <span className="af-icon" aria-hidden="true" dangerouslySetInnerHTML={{ __html: view.icon }} />
            <span className="af-grow">{view.title(t)}</span>
            {view.id === 'inbox' && waiting > 0 && <Badge state="waiting" word={String(waiting)} />}
          </button>
        ))}
      </nav>
      <PanelAgents />
      <PanelTasks />
    </div>
  );
}

function PanelAgents(): JSX.Element {
  const { t, navigate } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<AgentView>>('/agents?limit=500', movesAgents);
  return (
    <section aria-label={t('Agents')}>
      <div className="af-panel-head">
        <h3>{t('Agents')}</h3>
        <span className="af-spring" />
        <Button look="quiet" title={t('New agent')} aria-label={t('New agent')} onClick={() => navigate('new-agent')}>+</Button>
      </div>
      {state === 'loading' && <Loading />}
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {value?.items.length === 0 && <Empty title={t('No agent yet.')}><Button onClick={() => navigate('new-agent')}>{t('Make your first agent')}</Button></Empty>}
      {value?.items.map(agent => (
        <button key={agent.name} type="button" className="af-row" onClick={() => navigate(`agents/${agent.name}`)}>
          <span className="af-grow">{agent.name}</span>
          {agentBadge(agent, t)}
        </button>
      ))}
    </section>
  );
}

function PanelTasks(): JSX.Element {
  const { t, navigate } = useFarm();
  const { state, value, problem, resource } = useResource<Listed<TaskView>>('/tasks?limit=20', movesTasks);
  return (
    <section aria-label={t('Latest tasks')}>
      <div className="af-panel-head"><h3>{t('Latest tasks')}</h3></div>
      {state === 'loading' && <Loading />}
      <ErrorBox problem={problem} onRetry={resource.refresh} />
      {value?.items.length === 0 && <Empty title={t('Nothing was asked for yet.')} />}
      {value?.items.map(task => (
        <button key={task.task_id} type="button" className="af-row" onClick={() => navigate(task.run_id ? `runs/${task.run_id}` : `tasks/${task.task_id}`)}>
          <span className="af-grow">{oneLine(task.input, 80)}</span>
          <Badge state={task.status} word={statusWord(task.status, task.waiting, t)} />
        </button>
      ))}
    </section>
  );
}

/** How much waits for a person, in the status bar. */
export class InboxFigure extends FarmWidget {
  constructor(farm: Farm) {
    super(farm);
    this.addClass('jp-AgentFarm-figure');
  }

  protected draw(): JSX.Element {
    return <Figure />;
  }
}

function Figure(): JSX.Element {
  const { model, t, navigate } = useFarm();
  const count = useStore(model.waiting);
  const words = count === 1 ? t('1 waits for a person') : t('%1 wait for a person', count);
  return (
    <button type="button" className="af-figure" title={words} onClick={() => navigate('inbox')} data-count={count}>
      <span className="af-icon" aria-hidden="true" dangerouslySetInnerHTML={{ __html: farmIcon }} />
      <span className="af-hidden">{words}</span>
      <span aria-hidden="true">{count}</span>
    </button>
  );
}
