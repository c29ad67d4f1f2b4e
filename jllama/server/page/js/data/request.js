// What is asked of the server: a conversation up to a message, as the body of a request.

import { requestSettings } from "./settings.js";
import { idsOf } from "./tokens.js";
import { ancestry, systemOf } from "./tree.js";

export const ALTERNATIVES = 5;

/**
 * The body that asks for an answer to `question`, or for the rest of an answer that has `begun`. `stamp`
 * names the model that runs: of what it wrote itself it gets the very tokens back. `again` counts the answers
 * that there are.
 */
export function requestBody(conversation, question, { begun = null, again = 0, stamp = "" } = {}) {
  const messages = messagesUpTo(conversation, question, stamp);
  const onward = begun ? { continue_final_message: true, add_generation_prompt: false } : {};
  if (begun) messages.push({ ...message(begun, stamp), content: beginning(begun) });
  return {
    model: conversation.model,
    messages,
    ...onward,
    stream: true,
    stream_options: { include_usage: true },
    logprobs: true,
    top_logprobs: ALTERNATIVES,
    return_token_ids: true,
    ...requestSettings(conversation.settings, again),
  };
}

/** Thoughts stand before an answer, between the tags that models with thoughts write. */
function beginning({ content, reasoning }) {
  if (!reasoning) return content;
  return content ? `<think>\n${reasoning.trim()}\n</think>\n\n${content}` : `<think>\n${reasoning}`;
}

/** The messages that the model sees: the system prompt, and what was not left out because it did not fit. */
function messagesUpTo(conversation, question, stamp) {
  const nodes = ancestry(conversation, question);
  const system = systemOf(conversation, nodes);
  const seen = nodes.slice(2 * leftOut(nodes)).map((node) => message(node, stamp));
  return system ? [{ role: "system", content: system }, ...seen] : seen;
}

function message(node, stamp) {
  const ids = node.stamp === stamp ? idsOf(node) : null;
  return { role: node.role, content: node.content, ...(ids ? { token_ids: ids } : {}) };
}

/** How many of a path's oldest turns the model no longer sees. */
export function leftOut(nodes) {
  return Math.max(0, ...nodes.map((node) => node.dropped ?? 0));
}
