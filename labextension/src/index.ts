/** JupyterLab plugins: registration only. */
import { ILayoutRestorer, type JupyterFrontEnd, type JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette, MainAreaWidget, WidgetTracker } from '@jupyterlab/apputils';
import { PageConfig } from '@jupyterlab/coreutils';
import { ILauncher } from '@jupyterlab/launcher';
import { ServerConnection } from '@jupyterlab/services';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { Api, labTransport } from './api';
import type { Farm } from './context';
import { FarmModel } from './model';
import { icon, InboxFigure, PanelWidget, RouteWidget } from './panel';
import { views } from './views';

const ID = 'jupyterhub-agentfarm:panel';
const OPEN = 'agentfarm:open';

const plugin: JupyterFrontEndPlugin<void> = {
  id: ID,
  description: 'The panel of AgentFarm: agents, tasks, runs, the inbox.',
  autoStart: true,
  optional: [ILayoutRestorer, ICommandPalette, ILauncher, IStatusBar, ISettingRegistry, ITranslator],
  activate
};

function activate(
  app: JupyterFrontEnd, restorer: ILayoutRestorer | null, palette: ICommandPalette | null, launcher: ILauncher | null,
  statusBar: IStatusBar | null, settings: ISettingRegistry | null, translator: ITranslator | null
): void {
  const person = PageConfig.getOption('agentfarmPerson');
  if (!person) {
    return; // this server has no door to a farm: outside of one, or an agent's own
  }
  const trans = (translator ?? nullTranslator).load('jupyterhub_agentfarm');
  const farm = theFarm(app, person, (text, ...args) => trans.__(text, ...args));
  const tracker = new WidgetTracker<MainAreaWidget<RouteWidget>>({ namespace: 'agentfarm' });

  app.commands.addCommand(OPEN, {
    label: args => (args.title as string | undefined) ?? 'AgentFarm',
    caption: trans.__('Open a part of AgentFarm'),
    icon: args => (args.isPalette ? undefined : icon),
    execute: args => {
      const route = String(args.route ?? 'agents');
      const key = String(args.key ?? route); // named where a tab is restored
      let widget = tracker.find(one => one.content.key === key || (args.key === undefined && one.content.route === route));
      if (!widget) {
        const opened = new MainAreaWidget({ content: new RouteWidget(farm, route, key) });
        opened.content.readdressed.connect(() => void tracker.save(opened));
        widget = opened;
        widget.id = `main-${widget.content.id}`;
        widget.toolbar.hide();
        void tracker.add(widget);
      }
      if (!widget.isAttached) {
        app.shell.add(widget, 'main');
      }
      app.shell.activateById(widget.id);
    }
  });

  const panel = new PanelWidget(farm);
  app.shell.add(panel, 'left', { rank: 250 });
  restorer?.add(panel, 'agentfarm-panel');
  void restorer?.restore(tracker, {
    command: OPEN, args: widget => ({ route: widget.content.route, key: widget.content.key }), name: widget => widget.content.key
  });

  for (const view of views.filter(one => one.nav !== undefined && one.where !== 'page')) {
    const title = `AgentFarm: ${view.title(farm.t)}`;
    palette?.addItem({ command: OPEN, category: 'AgentFarm', args: { route: view.route, title, isPalette: true } });
  }
  launcher?.add({ command: OPEN, category: trans.__('Other'), args: { route: 'agents' } });
  if (statusBar && settings) {
    void figure(statusBar, settings, farm);
  }
}

function theFarm(app: JupyterFrontEnd, person: string, t: Farm['t']): Farm {
  const own = app.serviceManager.serverSettings;
  // with `no-store`, JupyterLab's default, it adds the time to the query, which the farm refuses
  const settings = ServerConnection.makeSettings({ ...own, init: { ...own.init, cache: 'no-cache' } });
  const api = new Api(labTransport(ServerConnection.makeRequest, settings));
  const pages = PageConfig.getOption('agentfarmPages');
  const model = new FarmModel(api);
  window.addEventListener('online', model.wake);
  document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && model.wake());
  return {
    api, model, t, page: false, person, approver: false, operator: false,
    signIn: () => location.reload(),
    href: route => (pages ? pages + route : ''),
    navigate: route => void app.commands.execute(OPEN, { route }),
    readdress: () => undefined // each tab has its own
  };
}

/** The status bar's figure, where the settings want it. */
async function figure(statusBar: IStatusBar, registry: ISettingRegistry, farm: Farm): Promise<void> {
  const settings = await registry.load(ID);
  let shown: { dispose(): void } | null = null;
  const apply = (): void => {
    const wanted = settings.get('inboxInStatusBar').composite !== false;
    if (wanted && !shown) {
      shown = statusBar.registerStatusItem('agentfarm:inbox', { item: new InboxFigure(farm), align: 'right', rank: 50 });
    } else if (!wanted) {
      shown?.dispose();
      shown = null;
    }
  };
  settings.changed.connect(apply);
  apply();
}

export default plugin;
