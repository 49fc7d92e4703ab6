/** The editor of prompts comes when it is needed: no view waits for CodeMirror. In JupyterLab build.mjs puts its own `load` here. */
import type * as editor from './editor';

let loading: Promise<typeof editor> | undefined;

export const load = (): Promise<typeof editor> => (loading ??= import('./editor'));
