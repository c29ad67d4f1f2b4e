// Markdown's blocks: paragraphs, headings, code, lists, quotes, tables, rules. HTML is text like any other.
// Each block knows its source, so that a growing answer draws only what changed.

import { parseTable } from "./table.js";

const DEEPEST = 12; // quotes and lists within each other; what lies deeper is a paragraph
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: (.*))?$/;
const RULE = /^ {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?: +|$)/;
const BLANK = /^\s*$/;

/** The blocks of a text, each with its `source`. */
export function parseBlocks(text, depth = 0) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (BLANK.test(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = parseBlock(lines, at, depth);
    blocks.push({ ...block, source: lines.slice(at, next).join("\n") });
    at = next;
  }
  return blocks;
}

function parseBlock(lines, at, depth) {
  const rules = depth < DEEPEST ? [fence, heading, rule, quote, list, parseTable] : [fence, heading, rule];
  for (const parse of rules) {
    const found = parse(lines, at, depth);
    if (found) return found;
  }
  return paragraph(lines, at);
}

function fence(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (!open) return null;
  const [, marks, info] = open;
  const indent = lines[at].indexOf(marks);
  const closing = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const text = lines
    .slice(at + 1, end)
    .map((line) => withoutIndent(line, indent))
    .join("\n");
  return [{ type: "code", language: info.trim().split(/\s/)[0], text }, Math.min(end + 1, lines.length)];
}

function withoutIndent(line, most) {
  let blanks = 0;
  while (blanks < most && line[blanks] === " ") blanks += 1;
  return line.slice(blanks);
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  return found && [{ type: "heading", level: found[1].length, text: withoutMarks(found[2] ?? "") }, at + 1];
}

/** `## Title ##` is a title alone. */
function withoutMarks(text) {
  const trimmed = text.trim();
  let end = trimmed.length;
  while (trimmed[end - 1] === "#") end -= 1;
  return end === 0 || trimmed[end - 1] === " " ? trimmed.slice(0, end).trimEnd() : trimmed;
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? [{ type: "rule" }, at + 1] : null;
}

function quote(lines, at, depth) {
  if (!QUOTE.test(lines[at])) return null;
  let end = at;
  while (end < lines.length && (QUOTE.test(lines[end]) || (end > at && continues(lines[end])))) end += 1;
  const inner = lines
    .slice(at, end)
    .map((line) => line.replace(QUOTE, ""))
    .join("\n");
  return [{ type: "quote", blocks: parseBlocks(inner, depth + 1) }, end];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const ordered = first[2].length > 1;
  const items = [];
  let next = at;
  while (next < lines.length && sameList(lines[next], first[2])) {
    const [item, end] = listItem(lines, next, depth);
    items.push(item);
    next = end;
  }
  return [{ type: "list", ordered, start: ordered ? parseInt(first[2], 10) : 1, items }, next];
}

function sameList(line, mark) {
  const found = !RULE.test(line) && ITEM.exec(line);
  return Boolean(found) && found[2].at(-1) === mark.at(-1);
}

/**
 * One item: its line, and what is indented below it. Blank lines after it belong to it only if it goes on.
 */
function listItem(lines, at, depth) {
  const mark = ITEM.exec(lines[at])[0];
  const width = mark.trim().length + mark.indexOf(mark.trim()) + 1;
  const inner = [lines[at].slice(mark.length)];
  let next = at + 1;
  let end = next;
  while (next < lines.length) {
    const line = lines[next];
    const indented = line.slice(0, width).trim() === "" && !BLANK.test(line);
    const lazy = next === end && continues(line) && !BLANK.test(inner.at(-1));
    if (!indented && !lazy && !BLANK.test(line)) break;
    inner.push(withoutIndent(line, width));
    next += 1;
    if (!BLANK.test(line)) end = next;
  }
  const text = inner.slice(0, end - at).join("\n");
  return [taskItem(text, depth), skipBlanks(lines, end)];
}

function taskItem(text, depth) {
  const task = /^\[([ xX])\]\s+/.exec(text);
  const blocks = parseBlocks(task ? text.slice(task[0].length) : text, depth + 1);
  return { blocks, checked: task ? task[1] !== " " : null };
}

/** Past blank lines, if a list goes on behind them. */
function skipBlanks(lines, at) {
  let next = at;
  while (next < lines.length && BLANK.test(lines[next])) next += 1;
  return next < lines.length && ITEM.test(lines[next]) ? next : at;
}

const starts = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));
const continues = (line) => !BLANK.test(line) && !starts(line);

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && continues(lines[end])) end += 1;
  return [
    {
      type: "paragraph",
      text: lines
        .slice(at, end)
        .map((line) => line.trimStart())
        .join("\n"),
    },
    end,
  ];
}
