// The tokens of an answer, as the server reports them: what each spells, how probable it was, and what else
// could have stood there. They are kept short, because the browser's storage is small:
//   { t: text, b: bytes if the text alone does not say them, s: 1 if it is special and spells nothing,
//     i: its id, p: log probability, a: [the likeliest, in the same form], f: 1 where a user chose it }

const encoder = new TextEncoder();
const REPLACEMENT = "\ufffd";

/** From an entry of `logprobs.content`. */
export function tokenFrom(entry) {
  const alternatives = (entry.top_logprobs ?? []).map(short);
  return { ...short(entry), a: alternatives };
}

function short(entry) {
  const token = { t: String(entry.token), p: Math.round(Math.max(entry.logprob, -99) * 1000) / 1000 };
  if (Number.isInteger(entry.token_id)) token.i = entry.token_id;
  if (isMark(entry)) token.s = 1;
  else if (entry.bytes && token.t.includes(REPLACEMENT)) token.b = entry.bytes;
  return token;
}

/** A special token is spelled out for readers, and is no part of the text: it has no bytes. */
const isMark = ({ bytes }) => bytes === null || bytes?.length === 0;

export const probability = (token) => Math.exp(token.p);

/** Whether choosing the token ends the answer: it spells nothing. */
export const isSpecial = (token) => token.s === 1;

export function bytesOf(token) {
  if (token.s) return new Uint8Array();
  return token.b ? Uint8Array.from(token.b) : encoder.encode(token.t);
}

/** What tokens spell together, or null if they end within a character. */
export function spelled(tokens) {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  try {
    return (
      tokens.map((token) => decoder.decode(bytesOf(token), { stream: true })).join("") + decoder.decode()
    );
  } catch {
    return null;
  }
}

/**
 * The ids of which an answer is made, or null if not all are known to spell exactly its text: thoughts have
 * tokens of their own, and an edit has none.
 */
export function idsOf({ tokens = [], content, reasoning }) {
  if (reasoning || tokens.some((token) => token.i === undefined)) return null;
  return content && shown(tokens) === content ? tokens.map((token) => token.i) : null;
}

/** What tokens spell, with a mark for each part of a character that stays one, as the server shows it. */
function shown(tokens) {
  const decoder = newDecoder();
  return pieces(tokens, decoder).join("") + decoder.decode();
}

/** Tokens of another model: their ids mean something else here. */
export function withoutIds(tokens = []) {
  return tokens.map(({ i, ...token }) => token);
}

export const newDecoder = () => new TextDecoder("utf-8", { ignoreBOM: true });

/**
 * The text that each token adds. A character of several tokens shows at the last of them. A `decoder` goes on
 * behind the tokens that it had before.
 */
export function pieces(tokens, decoder = newDecoder()) {
  return tokens.map((token) => decoder.decode(bytesOf(token), { stream: true }));
}

/**
 * The tokens that spell an answer's text: without those of thoughts and marks before it, and those of a stop
 * string behind it. Null if they spell something else, as after an edit.
 */
export function aligned(tokens, content) {
  const parts = pieces(tokens);
  const whole = parts.join("");
  const start = whole.lastIndexOf(content);
  if (start < 0 || content === "") return null;
  const kept = [];
  let at = 0;
  parts.forEach((part, place) => {
    const [from, to] = [at, at + part.length];
    at = to;
    const within =
      part === ""
        ? from >= start && from < start + content.length
        : to > start && from < start + content.length;
    if (within)
      kept.push(
        trimmed(tokens[place], part.slice(Math.max(0, start - from), start + content.length - from), part),
      );
  });
  return kept;
}

function trimmed(token, shown, part) {
  return shown === part ? token : { ...token, t: shown, b: undefined, i: undefined };
}

// Seven steps from sure to surprised. A style sheet gives each its tint.
const STEPS = [0.9, 0.7, 0.5, 0.3, 0.1, 0.03];

export function tintOf(token) {
  const likely = probability(token);
  const step = STEPS.findIndex((least) => likely >= least);
  return step < 0 ? STEPS.length : step;
}

export function percent(share) {
  if (share >= 0.9995) return "100 %";
  if (share < 0.0005) return "< 0.1 %";
  return `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
}

/** A token as a reader can tell it from others: blanks and line ends are drawn. */
export function visible(token) {
  if (token.b) return `⟨${token.b.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")}⟩`;
  const drawn = token.t.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\r/g, "␍");
  return drawn.replace(/[\u0000-\u001f\u007f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, named) || "∅";
}

const named = (letter) => `⟨U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
