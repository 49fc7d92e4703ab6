/** Tools from a Python file: what the farm reads in it, before anything is saved. The file itself is kept with the version. */
import React from 'react';

import { Badge, Button, Dialog, effectWord, Empty, ErrorBox, Json, Loading, Text } from '../../components';
import { useAction, useFarm } from '../../context';
import type { Definition, FoundTool, ReadTools, ToolSpec } from '../../protocol';
import { approvalWord } from './Approval';

/** What is added: tools whose source names the file, and its text. */
export type AddTools = (tools: ToolSpec[], files: { [name: string]: string }) => void;

const MOST_BYTES = 256 * 1024; // as the farm reads

export function ToolFile({ draft, onAdd }: { draft: Definition; onAdd: AddTools }): JSX.Element {
  const { t, api } = useFarm();
  const [file, setFile] = React.useState<{ name: string; text: string } | null>(null);
  const [found, setFound] = React.useState<FoundTool[] | null>(null);
  const [wrong, setWrong] = React.useState('');
  const read = useAction(async (chosen: File) => {
    setFound(null);
    setWrong('');
    if (chosen.size > MOST_BYTES) {
      setWrong(t('%1 is larger than 256 kB.', chosen.name));
      return;
    }
    const text = await chosen.text();
    setFile({ name: chosen.name, text });
    setFound((await api.post<ReadTools>('/tools/read', { files: { [chosen.name]: text } })).items);
  });
  const close = (): void => {
    setFile(null);
    setFound(null);
  };
  return (
    <>
      <label className="af-button af-file">
        {t('Tools from a Python file …')}
        <input
          type="file" name="tool-file" className="af-hidden" accept=".py,text/x-python" disabled={read.busy}
          onChange={event => {
            const chosen = event.target.files?.[0];
            event.target.value = ''; // the same file, mended, can be chosen again
            if (chosen) {
              void read.run(chosen);
            }
          }}
        />
      </label>
      {wrong && <p className="af-bad" role="alert">{wrong}</p>}
      {read.busy && <Loading />}
      {!file && <ErrorBox problem={read.problem} />}
      {file && (found || read.problem) && (
        <Found
          key={file.name} name={file.name} found={found ?? []} draft={draft} problem={read.problem} onClose={close}
          onAdd={tools => {
            onAdd(tools, { [file.name]: file.text });
            close();
          }}
        />
      )}
    </>
  );
}

function Found({ name, found, draft, problem, onAdd, onClose }: {
  name: string;
  found: FoundTool[];
  draft: Definition;
  problem: React.ComponentProps<typeof ErrorBox>['problem'];
  onAdd: (tools: ToolSpec[]) => void;
  onClose: () => void;
}): JSX.Element {
  const { t } = useFarm();
  const usable = found.filter(one => one.tool);
  const [left, setLeft] = React.useState<ReadonlySet<string>>(new Set());
  const chosen = usable.filter(one => !left.has(one.name));
  const has = new Set((draft.tools ?? []).map(tool => tool.name));
  const toggle = (one: string): void => setLeft(now => {
    const next = new Set(now);
    if (!next.delete(one)) {
      next.add(one);
    }
    return next;
  });
  const add = (
    <Button look="primary" disabled={chosen.length === 0} onClick={() => onAdd(chosen.map(one => one.tool as unknown as ToolSpec))}>
      {chosen.length === 1 ? t('Add %1', chosen[0]!.name) : t('Add %1 tools', chosen.length)}
    </Button>
  );
  return (
    <Dialog title={t('Tools in %1', name)} onClose={onClose} acts={usable.length > 0 ? add : undefined}>
      <p className="af-quiet">{t('Read from its text; nothing of it was executed. It is kept with each version, and runs in the agent’s worker alone.')}</p>
      <ErrorBox problem={problem} />
      {found.length === 0 && !problem && <Empty title={t('No tool.')} />}
      {found.map((one, at) => (
        <div key={at} className="af-tool" role="group" aria-label={one.name || name}>
          {one.tool ? <Usable one={one} tool={one.tool as unknown as ToolSpec} chosen={!left.has(one.name)} replaces={has.has(one.name)} onToggle={() => toggle(one.name)} /> : <Refused one={one} />}
        </div>
      ))}
    </Dialog>
  );
}

function Usable({ one, tool, chosen, replaces, onToggle }: { one: FoundTool; tool: ToolSpec; chosen: boolean; replaces: boolean; onToggle: () => void }): JSX.Element {
  const { t } = useFarm();
  const effect = tool.effect ?? 'once';
  const many = Object.keys((tool.schema?.properties as object | undefined) ?? {}).length;
  return (
    <>
      <div className="af-tool-head">
        <label className="af-check"><input type="checkbox" checked={chosen} onChange={onToggle} /> <b>{one.name}</b></label>
        <Badge state={`effect-${effect}`} look={effect === 'once' ? 'wait' : 'quiet'} word={effectWord(effect, t)} />
        <span className="af-quiet af-facts">{approvalWord(tool.approval ?? 'never', t)}</span>
        <span className="af-spring" />
        <span className="af-quiet">{t('line %1', one.line)}</span>
      </div>
      <div className="af-tool-body">
        {replaces && <Badge state="replaces" look="wait" word={t('in place of the tool of this name that the draft has')} />}
        {tool.description ? <Text>{tool.description}</Text> : <p className="af-quiet">{t('It has no docstring: the model is told nothing of what it does.')}</p>}
        <details>
          <summary>{t('Arguments: %1', many)}</summary>
          <Json value={tool.schema ?? {}} open={3} />
        </details>
        {(tool.secrets ?? []).length > 0 && <p className="af-quiet">{t('Secrets: %1', tool.secrets!.join(', '))}</p>}
      </div>
    </>
  );
}

function Refused({ one }: { one: FoundTool }): JSX.Element {
  const { t } = useFarm();
  return (
    <div className="af-tool-body" role="alert">
      <p><Badge state="refused" word={one.name ? t('%1 cannot be used', one.name) : t('The file cannot be used')} /> <span className="af-quiet">{t('line %1', one.line)}</span></p>
      <Text>{one.problem ?? ''}</Text>
      {one.hint && <p className="af-quiet">{one.hint}</p>}
    </div>
  );
}

/** The pinned source of a tool, as it is kept. */
export function Source({ name, source }: { name: string; source: string }): JSX.Element | null {
  const { t, api } = useFarm();
  const [text, setText] = React.useState<string | null>(null);
  const read = useAction(async () => setText(await (await api.raw('GET', `/tools/files/${source.slice('file@'.length)}`)).text()));
  return source.startsWith('file@') ? (
    <>
      <div><Button look="quiet" busy={read.busy} onClick={() => void read.run()}>{t('Show its source')}</Button></div>
      <ErrorBox problem={read.problem} />
      {text !== null && <Dialog title={t('Source of %1', name)} onClose={() => setText(null)}><Text mono>{text}</Text></Dialog>}
    </>
  ) : null;
}
