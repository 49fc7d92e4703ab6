// Finds text for people that does not go through t(): words between tags, and in the attributes that people read or hear.
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

import ts from 'typescript';

const SAID = new Set(['label', 'title', 'hint', 'error', 'word', 'words', 'placeholder', 'aria-label', 'alt', 'what']);
const NAMES = new Set(['AgentFarm', 'Hub']);
const says = text => /\p{L}{2}/u.test(text) && !NAMES.has(text.trim());

const found = [];
for (const name of readdirSync('src', { recursive: true }).map(String).filter(one => one.endsWith('.tsx'))) {
  const file = path.join('src', name);
  const source = ts.createSourceFile(file, readFileSync(file, 'utf8'), ts.ScriptTarget.Latest, true, ts.ScriptKind.TSX);
  const tell = (node, text) => found.push(`${file}:${source.getLineAndCharacterOfPosition(node.getStart()).line + 1}: ${text.trim()}`);
  const walk = node => {
    if (ts.isJsxText(node) && says(node.text)) {
      tell(node, node.text);
    } else if (ts.isJsxAttribute(node) && SAID.has(node.name.getText()) && node.initializer) {
      const value = ts.isJsxExpression(node.initializer) ? node.initializer.expression : node.initializer;
      if (value && (ts.isStringLiteral(value) || ts.isNoSubstitutionTemplateLiteral(value)) && says(value.text)) {
        tell(node, value.text);
      }
    } else if (ts.isJsxExpression(node) && node.expression && ts.isStringLiteral(node.expression) && !ts.isJsxAttribute(node.parent) && says(node.expression.text)) {
      tell(node, node.expression.text);
    }
    ts.forEachChild(node, walk);
  };
  walk(source);
}
console.log(found.join('\n'));
process.exitCode = found.length ? 1 : 0;
