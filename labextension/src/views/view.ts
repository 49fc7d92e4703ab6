/** What a view is. One file in this folder each; index.ts lists them. */
import type React from 'react';

import type { Translate } from '../context';

export interface View {
  id: string;
  title: (t: Translate) => string;
  /** SVG text, 16 by 16, drawn in `currentColor`. */
  icon: string;
  /** `agents`, or with parameters `runs/:id`. */
  route: string;
  /** Its place in the navigation, small first; undefined: reached from other views alone. */
  nav?: number;
  /** The route of the view that it belongs to in the navigation, where it has no place of its own. */
  under?: string;
  /** Shown on farm pages alone (deciding, audit, people), or in JupyterLab alone. */
  where?: 'page' | 'lab';
  /** Shown in the navigation of operators alone: to others it says less than their own pages. */
  who?: 'operator';
  Component: React.ComponentType<{ params: Params }>;
}

export type Params = Record<string, string>;
