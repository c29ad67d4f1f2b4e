// An answer as it grows: what each chunk of a stream adds to its message.

import { tokenFrom } from "./tokens.js";

/** Begins to measure: `now` in milliseconds. */
export function beginAnswer(node, now) {
  node.cut = true; // until its end has come
  delete node.token_ids; // of a file: they do not spell what comes now
  node.tokens ??= [];
  node.stats = { asked: now, first: null, last: null, seen: 0 };
}

export function takeChunk(node, chunk, now) {
  if (chunk.usage) takeUsage(node, chunk.usage);
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { content, reasoning_content: reasoning } = choice.delta ?? {};
  const entries = choice.logprobs?.content ?? [];
  if (content || reasoning) takeTime(node.stats, now, entries.length || 1);
  if (reasoning) node.reasoning = (node.reasoning ?? "") + reasoning;
  if (content) node.content += content;
  if (!reasoning || content) for (const entry of entries) node.tokens.push(tokenFrom(entry));
  if (choice.finish_reason) takeEnd(node, choice);
}

/** The rate is measured between the first block of tokens and the last one. */
function takeTime(stats, now, count) {
  if (stats.first === null) Object.assign(stats, { first: now, begun: count });
  stats.last = now;
  stats.seen += count;
}

function takeUsage(node, usage) {
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  Object.assign(node.stats, { prompt: usage.prompt_tokens, cached, generated: usage.completion_tokens });
}

function takeEnd(node, { finish_reason: reason }) {
  node.finish = reason;
  if (reason === "stop") delete node.cut;
}

/** Leaves of the clock only what is shown and kept. */
export function endAnswer(node) {
  const { asked, first, seen, prompt, cached, generated = seen } = node.stats;
  node.stats = {
    prompt,
    cached,
    generated,
    wait: first === null ? null : seconds(first - asked),
    rate: rateOf(node.stats),
  };
  if (node.tokens.length === 0) delete node.tokens;
}

/** Tokens per second, or null while there is nothing to measure between. */
export function rateOf({ first, last, seen, begun }) {
  if (first === null || last - first < 1 || seen <= begun) return null;
  return Math.round((10 * 1000 * (seen - begun)) / (last - first)) / 10;
}

const seconds = (milliseconds) => Math.round(milliseconds) / 1000;
