// Builds both bundles: JupyterLab's prebuilt extension, and the farm pages. `node build.mjs [--watch]`.
//
// The extension is what JupyterLab calls a federated module: a script that puts `{init, get}` at
// `window._JUPYTERLAB[name]`. `init` gets the share scope, in which JupyterLab offers its packages and React; `get` loads
// those that we use and then our code. That is all there is to it, so esbuild does it, in a second.
//
// CodeMirror comes late: a chunk of the pages, and in JupyterLab a file of its own beside the first, with its own needs.
import { createHash } from 'node:crypto';
import { access, mkdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import * as esbuild from 'esbuild';

const HERE = path.dirname(fileURLToPath(import.meta.url));
const PACKAGE = path.join(HERE, '..', 'jupyterhub_agentfarm');
const WATCH = process.argv.includes('--watch');
const SHARED = /^(@jupyterlab|@lumino|@lezer)\/[\w-]+$|^@codemirror\/(commands|language|state|view)$|^react$|^react-dom$/;
const LATE = path.join(HERE, 'src', 'editor', 'editor.ts');
const LOADER = 'agentfarm:editor';

const common = {
  absWorkingDir: HERE, bundle: true, write: false, minify: !WATCH, sourcemap: false, target: 'es2022', jsx: 'transform', metafile: true,
  legalComments: 'none', logLevel: 'warning', define: { 'process.env.NODE_ENV': WATCH ? '"development"' : '"production"' }
};

const lab = {
  ...common, entryPoints: ['src/index.ts'], format: 'cjs', platform: 'browser', outdir: 'out',
  plugins: [shared(), late(), whenDone(writeLab)]
};
const labEditor = { ...common, entryPoints: [LATE], format: 'cjs', platform: 'browser', outdir: 'out', plugins: [shared()] };
const pages = {
  ...common, entryPoints: ['src/pages.tsx'], format: 'esm', platform: 'browser', outdir: 'out', splitting: true, entryNames: 'farm.[hash]',
  chunkNames: 'farm.[hash]', plugins: [whenDone(writePages)]
};
const labStyle = { ...common, entryPoints: ['style/lab.css'], outdir: 'out' };

/** What JupyterLab shares stays outside. */
function shared() {
  return {
    name: 'shared',
    setup(build) {
      build.onResolve({ filter: SHARED }, args => ({ path: args.path, external: true }));
    }
  };
}

/** In JupyterLab the container says how the editor is loaded. */
function late() {
  return {
    name: 'late',
    setup(build) {
      build.onResolve({ filter: /\/editor\/load$/ }, () => ({ path: LOADER, external: true, watchFiles: [LATE] }));
    }
  };
}

function whenDone(write) {
  return { name: 'write', setup: build => build.onEnd(result => (result.errors.length ? undefined : write(result))) };
}

async function writeLab(result) {
  const style = text(await esbuild.build(labStyle), '.css');
  const name = JSON.parse(await readFile(path.join(HERE, 'package.json'), 'utf8')).name;
  const editor = lateModule(await esbuild.build(labEditor));
  const file = `editor.${hash(editor)}.js`;
  const entry = container(name, needs(result), text(result, '.js'), style, file);
  const load = `static/remoteEntry.${hash(entry)}.js`;
  const about = {
    name, version: await version(), description: 'AgentFarm in JupyterLab', dependencies: {},
    jupyterlab: { extension: true, schemaDir: 'schemas', _build: { load, extension: './extension', style: './style' } }
  };
  const schema = await readFile(path.join(HERE, 'schema', 'panel.json'), 'utf8');
  await replace(path.join(PACKAGE, 'labextension'), {
    [load]: entry,
    [`static/${file}`]: editor,
    [`schemas/${name}/panel.json`]: schema,
    [`schemas/${name}/package.json.orig`]: JSON.stringify({ name, version: about.version, jupyterlab: { schemaDir: 'schema' } }),
    'install.json': JSON.stringify({ packageManager: 'python', packageName: 'jupyterhub-agentfarm', uninstallInstructions: 'pip uninstall jupyterhub-agentfarm' }),
    'package.json': JSON.stringify(about, null, 1)
  });
}

/** What a bundle takes from the share scope. */
function needs(result) {
  const found = Object.values(result.metafile.outputs).flatMap(output => output.imports.filter(one => one.external).map(one => one.path));
  return [...new Set(found)].filter(one => one !== LOADER).sort();
}

const lateModule = result => `export const needs = ${JSON.stringify(needs(result))};
export default function (module, exports, require) {
${text(result, '.js')}
}
`;

/** The script of the federated module. A version that is loaded already wins, else the highest: so React is one. */
function container(name, needs, code, style, editor) {
  return `(() => {
"use strict";
let scope, loading, late;
const from = document.currentScript.src;
const shared = { "${LOADER}": { load: () => (late ??= import(new URL("${editor}", from)).then(found => run(found.needs, found.default))) } };
const key = version => version.split(/[.+-]/).map(part => part.padStart(8, "0")).join(".");
async function provide(name) {
  const versions = Object.entries(scope[name] || {});
  if (!versions.length) throw new Error("AgentFarm: this JupyterLab shares no " + name);
  const [, entry] = versions.find(one => one[1].loaded) || versions.sort((a, b) => (key(a[0]) < key(b[0]) ? 1 : -1))[0];
  entry.loaded = 1;
  shared[name] = (await entry.get())();
}
async function run(needs, code) {
  await Promise.all(needs.map(provide));
  const module = { exports: {} };
  code(module, module.exports, name => shared[name]);
  return module.exports;
}
function load() {
  return run(${JSON.stringify(needs)}, function (module, exports, require) {
${code}
  });
}
function style() {
  const element = document.createElement("style");
  element.textContent = ${JSON.stringify(style)};
  document.head.append(element);
  return {};
}
(window._JUPYTERLAB ??= {})[${JSON.stringify(name)}] = {
  init(given) { scope = given; },
  async get(module) {
    if (module === "./style") return style;
    const found = await (loading ??= load());
    return () => found;
  }
};
})();
`;
}

async function writePages(result) {
  const files = Object.fromEntries(result.outputFiles.map(file => [path.basename(file.path), file.text]));
  const [js, { cssBundle: css }] = Object.entries(result.metafile.outputs).find(([, output]) => output.entryPoint === pages.entryPoints[0]);
  const names = { js: path.basename(js), css: path.basename(css) };
  await replace(path.join(PACKAGE, 'pages', 'build'), { ...files, 'manifest.json': JSON.stringify(names) });
}

const text = (result, kind) => result.outputFiles.find(file => file.path.endsWith(kind)).text;
const hash = content => createHash('sha256').update(content).digest('hex').slice(0, 16);
const version = async () => /__version__ = "(.+)"/.exec(await readFile(path.join(PACKAGE, '..', 'agentfarm_sdk', '__init__.py'), 'utf8'))[1];

/** Have exactly these files in the folder: a running farm sees the old ones or the new ones. */
async function replace(folder, files) {
  const made = `${folder}.new`;
  const old = `${folder}.old`;
  await rm(made, { recursive: true, force: true });
  await rm(old, { recursive: true, force: true });
  for (const [name, content] of Object.entries(files)) {
    await mkdir(path.dirname(path.join(made, name)), { recursive: true });
    await writeFile(path.join(made, name), content);
  }
  await rename(folder, old).catch(() => undefined);
  await rename(made, folder);
  await rm(old, { recursive: true, force: true });
}

/** Have the checkout's JupyterLab find the extension where it was built. */
async function link() {
  const share = path.join(HERE, '..', '.venv', 'share', 'jupyter');
  if (await access(share).then(() => true, () => false)) {
    const at = path.join(share, 'labextensions', 'jupyterhub-agentfarm');
    await mkdir(path.dirname(at), { recursive: true });
    await rm(at, { recursive: true, force: true });
    await symlink(path.relative(path.dirname(at), path.join(PACKAGE, 'labextension')), at);
  }
}

await link();
if (WATCH) {
  for (const one of [lab, pages]) {
    await (await esbuild.context(one)).watch();
  }
  console.log('watching; reload the page after a change');
} else {
  await Promise.all([lab, pages].map(one => esbuild.build(one)));
}
