// Markdown within a line: code, emphasis, links. The time it takes grows with the text's length alone,
// whatever the text: what opens is remembered, at most `MOST_OPEN` deep.

import { linkAt } from "./links.js";

const MOST_OPEN = 40;
const ESCAPED = /[!-/:-@[-`{-~]/;
const SPECIAL = /[\\`*_~[!<\n]|https?:\/\//g;

/** A tree of `{ type: text | code | strong | em | del | link | break, … }`. */
export function parseInline(text, depth = 0) {
  const scanner = { text, depth, frames: [{ mark: "", nodes: [] }] };
  let at = 0;
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const found = SPECIAL.exec(text);
    const stop = found ? found.index : text.length;
    write(scanner, text.slice(at, stop));
    at = found ? special(scanner, stop) : stop;
  }
  while (scanner.frames.length > 1) giveUp(scanner);
  return scanner.frames[0].nodes;
}

/** Reads what begins with a special letter; returns where it ends. */
function special(scanner, at) {
  const letter = scanner.text[at];
  if (letter === "\\") return escape(scanner, at);
  if (letter === "\n") return lineEnd(scanner, at);
  if (letter === "`") return code(scanner, at);
  if ("*_~".includes(letter)) return emphasis(scanner, at);
  return link(scanner, at);
}

const open = (scanner) => scanner.frames.at(-1).nodes;

/** Texts that touch become one. */
function write(scanner, text) {
  const last = open(scanner).at(-1);
  if (last?.type === "text") last.text += text;
  else if (text) open(scanner).push({ type: "text", text });
  return text.length;
}

function escape(scanner, at) {
  const next = scanner.text[at + 1] ?? "";
  if (next === "\n") {
    open(scanner).push({ type: "break" });
    return at + 2;
  }
  const escaped = ESCAPED.test(next);
  write(scanner, escaped ? next : "\\");
  return at + (escaped ? 2 : 1);
}

/** Two blanks before a line's end break it. */
function lineEnd(scanner, at) {
  const last = open(scanner).at(-1);
  if (last?.type === "text" && last.text.endsWith("  ")) {
    last.text = last.text.trimEnd();
    open(scanner).push({ type: "break" });
  } else write(scanner, "\n");
  return at + 1;
}

function code(scanner, at) {
  const { text } = scanner;
  const marks = runLength(text, at);
  const closing = closingMarks(scanner, at + marks, marks);
  if (closing < 0) return at + write(scanner, "`".repeat(marks));
  const inner = text.slice(at + marks, closing).replace(/\n/g, " ");
  const padded = /^ .* $/.test(inner) && inner.trim() !== "";
  open(scanner).push({ type: "code", text: padded ? inner.slice(1, -1) : inner });
  return closing + marks;
}

/**
 * Where a run of exactly so many backticks comes next. A length that was not found once is not sought
 * again.
 */
function closingMarks(scanner, from, marks) {
  scanner.missing ??= new Set();
  if (scanner.missing.has(marks)) return -1;
  for (let at = scanner.text.indexOf("`", from); at >= 0;) {
    const run = runLength(scanner.text, at);
    if (run === marks) return at;
    at = scanner.text.indexOf("`", at + run);
  }
  scanner.missing.add(marks);
  return -1;
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function emphasis(scanner, at) {
  const { text } = scanner;
  const count = runLength(text, at);
  const letter = text[at];
  const side = sides(text[at - 1] ?? " ", text[at + count] ?? " ", letter);
  let rest = letter === "~" && count !== 2 ? 0 : count;
  if (rest === 0) write(scanner, letter.repeat(count));
  while (rest > 0 && side.closes && close(scanner, letter, rest)) rest -= scanner.used;
  while (rest > 0) rest -= side.opens ? begin(scanner, letter, rest) : write(scanner, letter.repeat(rest));
  return at + count;
}

/**
 * Whether marks between two letters can open or close: they lean on words, and `_` never stands within one.
 */
function sides(before, after, letter) {
  const [blankBefore, blankAfter] = [/\s/.test(before), /\s/.test(after)];
  const [signBefore, signAfter] = [/[\p{P}\p{S}]/u.test(before), /[\p{P}\p{S}]/u.test(after)];
  const left = !blankAfter && (!signAfter || blankBefore || signBefore);
  const right = !blankBefore && (!signBefore || blankAfter || signAfter);
  if (letter !== "_") return { opens: left, closes: right };
  return { opens: left && (!right || signBefore), closes: right && (!left || signAfter) };
}

function begin(scanner, letter, rest) {
  const count = letter === "~" ? 2 : Math.min(rest, rest === 3 ? 1 : 2);
  if (scanner.frames.length > MOST_OPEN) return write(scanner, letter.repeat(count));
  scanner.frames.push({ mark: letter.repeat(count), nodes: [] });
  return count;
}

/** Closes the nearest frame that the letter opened; those above it were no emphasis. */
function close(scanner, letter, rest) {
  const place = scanner.frames.findLastIndex(({ mark }) => mark && mark[0] === letter && mark.length <= rest);
  if (place < 1) return false;
  while (scanner.frames.length > place + 1) giveUp(scanner);
  const { mark, nodes } = scanner.frames.pop();
  const type = letter === "~" ? "del" : mark.length === 2 ? "strong" : "em";
  open(scanner).push({ type, nodes });
  scanner.used = mark.length;
  return true;
}

/** A frame that nothing closed is text again. */
function giveUp(scanner) {
  const { mark, nodes } = scanner.frames.pop();
  write(scanner, mark);
  for (const node of nodes) {
    if (node.type === "text") write(scanner, node.text);
    else open(scanner).push(node);
  }
}

function link(scanner, at) {
  const found = scanner.depth < 3 ? linkAt(scanner.text, at) : null;
  if (!found) return at + write(scanner, scanner.text[at]);
  const nodes = found.plain
    ? [{ type: "text", text: found.label }]
    : parseInline(found.label, scanner.depth + 2);
  open(scanner).push({ type: "link", url: found.url, nodes });
  return found.end;
}
