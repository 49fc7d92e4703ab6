/** Hints are the farm's own words, said to whoever asks: what they say of a command is done in a browser on the page that this tells. Pure. */
import type { Translate } from './translate';

const PLACES: { [noun: string]: string } = {
  agent: 'agents', task: 'tasks', run: 'tasks', batch: 'tasks', audit: 'tasks', inbox: 'inbox', microserver: 'microservers', placement: 'microservers',
  budget: 'budgets', usage: 'budgets', pool: 'pools'
};
const WORDS = (t: Translate): { [place: string]: string } => ({
  agents: t('Agents'), tasks: t('Tasks'), inbox: t('Inbox'), microservers: t('Microservers'), budgets: t('Budgets'), pools: t('Pools')
});
const COMMAND = /(?: by)?(:?) ?\bagentfarm (\w+)(?: [a-z][a-z-]*)?(?: ([a-z][a-z0-9-]*))?[^;,)]*/g;

/** A part of a hint: words, or the way to a page (`to`). */
export interface Part {
  words: string;
  to?: string;
}

/** The hint in parts. Commands that no page stands for (`agentfarm doctor`) stay as they are. */
export function partsOf(hint: string, t: Translate): Part[] {
  const parts: Part[] = [];
  let from = 0;
  for (const found of hint.matchAll(COMMAND)) {
    const [whole, colon = '', noun = '', name] = found;
    const place = PLACES[noun];
    if (place) {
      parts.push({ words: hint.slice(from, found.index) + (colon || found.index > 0 ? `${colon} ` : '') });
      parts.push(noun === 'agent' && name ? { words: name, to: `agents/${name}` } : { words: WORDS(t)[place]!, to: place });
      from = found.index + whole.length;
    }
  }
  parts.push({ words: hint.slice(from) });
  return parts.filter(part => part.words);
}
