// Runs the tests of the pure code: esbuild makes JavaScript of them, Node runs it. `npm test`.
import { spawnSync } from 'node:child_process';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import * as esbuild from 'esbuild';

const here = path.dirname(fileURLToPath(import.meta.url));
const out = await mkdtemp(path.join(tmpdir(), 'agentfarm-panel-'));
try {
  const tests = (await readdir(here)).filter(name => name.endsWith('.test.ts'));
  await esbuild.build({
    entryPoints: tests.map(name => path.join(here, name)), bundle: true, platform: 'node', format: 'esm', outdir: out, outExtension: { '.js': '.mjs' },
    logLevel: 'warning'
  });
  const files = tests.map(name => path.join(out, name.replace(/\.ts$/, '.mjs')));
  process.exitCode = spawnSync(process.execPath, ['--test', ...files], { stdio: 'inherit' }).status ?? 1;
} finally {
  await rm(out, { recursive: true, force: true });
}
