/** CodeMirror for system prompts: variables marked and completed, undo, the keys of a plain text field (Tab goes on to the next one). */
import { autocompletion, completionKeymap, type Completion, type CompletionContext, type CompletionResult } from '@codemirror/autocomplete';
import { history, historyKeymap, isolateHistory, standardKeymap } from '@codemirror/commands';
import { Annotation, Compartment, EditorState, Facet, Transaction, type Extension } from '@codemirror/state';
import {
  Decoration, EditorView, keymap, MatchDecorator, placeholder, ViewPlugin, type DecorationSet, type ViewUpdate
} from '@codemirror/view';

export interface Given {
  text: string;
  readOnly: boolean;
  /** What the variables are where a task says nothing, by their names; '' where only a task can say it. */
  variables: { [name: string]: string };
  onChange: (text: string) => void;
}

/** What stays as it is: names for people who see and for those who hear, the control's ids. */
export interface Named {
  id: string;
  label: string;
  describedBy?: string | undefined;
  placeholder: string;
  /** What is shown of a variable without a default. */
  asked: string;
}

export interface Editor {
  update: (given: Given) => void;
  focus: () => void;
  destroy: () => void;
}

const told = Annotation.define<boolean>(); // a change that came from outside, not from a key
const variables = Facet.define<Given['variables'], Given['variables']>({ combine: all => all[0] ?? {} });
const lines = (text: string): string => text.replace(/\r\n?/g, '\n');

/** Draw an editor in `parent`. `selection`: where somebody was writing already; then the editor has the focus. */
export function mount(parent: HTMLElement, named: Named, first: Given, selection: { anchor: number; head: number } | null): Editor {
  let given = first;
  const locked = new Compartment();
  const known = new Compartment();
  const nonce = document.querySelector<HTMLMetaElement>('meta[property=csp-nonce]')?.nonce;
  const text = lines(first.text);
  const view = new EditorView({
    parent,
    state: EditorState.create({
      doc: text,
      ...(selection ? { selection: { anchor: Math.min(selection.anchor, text.length), head: Math.min(selection.head, text.length) } } : {}),
      extensions: [
        ...(nonce ? [EditorView.cspNonce.of(nonce)] : []),
        look, history(), EditorView.lineWrapping, marks(named.asked),
        autocompletion({ override: [complete], icons: false }),
        keymap.of([...completionKeymap, ...historyKeymap, ...standardKeymap]),
        placeholder(named.placeholder),
        EditorView.contentAttributes.of({
          id: named.id, 'aria-label': named.label, spellcheck: 'true', ...(named.describedBy ? { 'aria-describedby': named.describedBy } : {})
        }),
        known.of(variables.of(first.variables)), locked.of(lock(first.readOnly)),
        EditorView.updateListener.of(update => {
          if (update.docChanged && !update.transactions.every(one => one.annotation(told))) {
            given.onChange(update.state.doc.toString());
          }
        })
      ]
    })
  });
  if (selection) {
    view.focus();
  }
  return {
    update: next => {
      const before = given;
      given = next;
      const changes = difference(view.state.doc.toString(), lines(next.text));
      const effects = [
        ...(next.readOnly === before.readOnly ? [] : [locked.reconfigure(lock(next.readOnly))]),
        ...(next.variables === before.variables ? [] : [known.reconfigure(variables.of(next.variables))])
      ];
      if (changes || effects.length) {
        view.dispatch({ ...(changes ? { changes } : {}), effects, annotations: [told.of(true), Transaction.addToHistory.of(false)] });
      }
    },
    focus: () => view.focus(),
    destroy: () => view.destroy()
  };
}

const lock = (readOnly: boolean): Extension =>
  readOnly ? [EditorState.readOnly.of(true), EditorView.contentAttributes.of({ 'aria-readonly': 'true' })] : [];

/** The one stretch in which two texts differ: the cursor stays where it is beside it. */
export function difference(now: string, next: string): { from: number; to: number; insert: string } | null {
  if (now === next) {
    return null;
  }
  const most = Math.min(now.length, next.length);
  let from = 0;
  while (from < most && now[from] === next[from]) {
    from++;
  }
  let same = 0;
  while (same < most - from && now[now.length - 1 - same] === next[next.length - 1 - same]) {
    same++;
  }
  return { from, to: now.length - same, insert: next.slice(from, next.length - same) };
}

/** `{{name}}` in a colour of its own, its default as its title; `\{{name}}` is text. */
function marks(asked: string): Extension {
  const found = new MatchDecorator({
    regexp: /\\?\{\{\s*(\w+)\s*\}\}/g,
    decoration: (match, view) => {
      const known = view.state.facet(variables)[match[1]!];
      return match[0].startsWith('\\') ? null : Decoration.mark({ class: 'af-variable', attributes: { title: known || asked, 'data-default': known ? 'yes' : 'no' } });
    }
  });
  return ViewPlugin.fromClass(class {
    marks: DecorationSet;

    constructor(view: EditorView) {
      this.marks = found.createDeco(view);
    }

    update(update: ViewUpdate): void {
      const anew = update.startState.facet(variables) !== update.state.facet(variables);
      this.marks = anew ? found.createDeco(update.view) : found.updateDeco(update, this.marks);
    }
  }, { decorations: plugin => plugin.marks });
}

/** After `{{`: the variables that the agent has a default for, and those that the prompt names elsewhere. */
export function complete(context: CompletionContext): CompletionResult | null {
  const open = context.matchBefore(/\\?\{\{\s*\w*/);
  if (!open || open.text.startsWith('\\')) {
    return null;
  }
  const rest = context.state.sliceDoc(context.pos);
  const elsewhere = `${context.state.sliceDoc(0, open.from)} ${rest.replace(/^\w*\s*\}\}/, '')}`;
  const known = context.state.facet(variables);
  const named = [...elsewhere.matchAll(/(\\?)\{\{\s*(\w+)\s*\}\}/g)].filter(one => !one[1]).map(one => one[2]!);
  const names = [...new Set([...Object.keys(known), ...named])];
  const options = names.map((label): Completion => ({ label, ...(known[label] ? { detail: known[label].slice(0, 60) } : {}), apply: insert }));
  return options.length ? { from: open.from + /\{\{\s*/.exec(open.text)![0].length, options, validFor: /^\w*$/ } : null;
}

function insert(view: EditorView, chosen: Completion, from: number, to: number): void {
  const closed = /^\s*\}\}/.exec(view.state.sliceDoc(to, to + 20));
  const text = closed ? chosen.label : `${chosen.label}}}`;
  const cursor = from + chosen.label.length + (closed ? closed[0].length : 2);
  view.dispatch({ changes: { from, to, insert: text }, selection: { anchor: cursor }, userEvent: 'input.complete', annotations: isolateHistory.of('full') });
}

/** The theme's colours, whichever it is. */
const look = EditorView.theme({
  '&': { height: '100%', color: 'var(--jp-ui-font-color1)', fontSize: 'var(--jp-code-font-size)' },
  '&.cm-focused': { outline: 'none' }, // the frame around it shows the focus
  '.cm-scroller': { fontFamily: 'var(--jp-code-font-family)', lineHeight: '1.5', overflow: 'auto' },
  '.cm-content': { padding: '0.5rem 0', caretColor: 'var(--jp-ui-font-color0)' },
  '.cm-line': { padding: '0 0.6rem' },
  '.cm-placeholder': { color: 'var(--jp-ui-font-color2)', whiteSpace: 'normal' },
  '.cm-tooltip.cm-tooltip': {
    background: 'var(--jp-layout-color1)', color: 'var(--jp-ui-font-color1)', border: '1px solid var(--jp-border-color1)', borderRadius: 'var(--jp-border-radius)', overflow: 'hidden'
  },
  '.cm-tooltip.cm-tooltip-autocomplete > ul': { fontFamily: 'var(--jp-code-font-family)', fontSize: 'var(--jp-code-font-size)' },
  '.cm-tooltip.cm-tooltip-autocomplete > ul > li': { padding: '0.15rem 0.6rem' },
  '.cm-tooltip.cm-tooltip-autocomplete > ul > li[aria-selected]': { background: 'var(--jp-brand-color1)', color: 'var(--jp-ui-inverse-font-color1)' },
  '.cm-completionDetail': { fontStyle: 'normal', fontFamily: 'var(--jp-ui-font-family)' }
});
