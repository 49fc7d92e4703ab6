/** Words for people: `%1`, `%2` … are replaced by the arguments. In JupyterLab the translator's `__`. */
export type Translate = (text: string, ...args: (string | number)[]) => string;

/** Where nobody translates: the farm pages, and tests. */
export const plain: Translate = (text, ...args) => text.replace(/%(\d)/g, (all, at: string) => String(args[Number(at) - 1] ?? all));
