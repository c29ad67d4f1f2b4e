// Links: `[text](url)`, `![text](url)`, `<url>` and bare ones. Only http and https lead anywhere; whatever
// else looks like a link stays the text that it is. Images are links too: the page loads nothing from
// outside.

const LONGEST = 2000;
const BARE = /https?:\/\/[^\s<>"'`]+/y;
const ANGLED = /<(https?:\/\/[^\s<>]+)>/y;
const TARGET = /\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;

/** The link that begins at `at`: `{ url, label, plain, end }`, or null. */
export function linkAt(text, at) {
  const letter = text[at];
  if (letter === "<") return angled(text, at);
  if (letter === "h") return bare(text, at);
  if (letter === "!" && text[at + 1] !== "[") return null;
  return named(text, letter === "!" ? at + 1 : at);
}

/** An address as the browser will see it, or null if it is none of the web's. */
export function webAddress(target) {
  if (!/^https?:\/\//i.test(target)) return null;
  try {
    const url = new URL(target);
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : null;
  } catch {
    return null;
  }
}

function angled(text, at) {
  ANGLED.lastIndex = at;
  const found = ANGLED.exec(text);
  const url = found && webAddress(found[1]);
  return url ? { url, label: found[1], plain: true, end: at + found[0].length } : null;
}

/** A sign at the end of a bare address belongs to the sentence. */
function bare(text, at) {
  BARE.lastIndex = at;
  const found = BARE.exec(text);
  if (!found) return null;
  let label = found[0].replace(/[.,:;!?*_~\]]+$/, "");
  if (label.endsWith(")") && !label.includes("(")) label = label.slice(0, -1);
  const url = webAddress(label);
  return url ? { url, label, plain: true, end: at + label.length } : null;
}

function named(text, at) {
  const closing = closingBracket(text, at);
  if (closing < 0) return null;
  TARGET.lastIndex = closing + 1;
  const found = TARGET.exec(text.slice(0, closing + LONGEST));
  const url = found && webAddress(found[1]);
  const label = text.slice(at + 1, closing);
  return url ? { url, label: label || url, plain: !label, end: closing + 1 + found[0].length } : null;
}

function closingBracket(text, at) {
  let open = 0;
  const last = Math.min(text.length, at + LONGEST / 4);
  for (let place = at; place < last; place += 1) {
    if (text[place] === "\\") place += 1;
    else if (text[place] === "[") open += 1;
    else if (text[place] === "]" && (open -= 1) === 0) return place;
  }
  return -1;
}
