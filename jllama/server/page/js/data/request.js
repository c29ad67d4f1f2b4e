// What is asked of the server: a conversation up to a message, as the body of a request.

import { requestSettings } from "./settings.js";
import { ancestry, systemOf } from "./tree.js";

export const ALTERNATIVES = 5;

/** The body that asks for an answer to `question`, or for the rest of an answer that begins with `prefix`. */
export function requestBody(conversation, question, { prefix = "", thoughts = "", again = 0 } = {}) {
  const messages = messagesUpTo(conversation, question);
  const begun = beginning(prefix, thoughts);
  const onward = begun ? { continue_final_message: true, add_generation_prompt: false } : {};
  if (begun) messages.push({ role: "assistant", content: begun });
  return {
    model: conversation.model,
    messages,
    ...onward,
    stream: true,
    stream_options: { include_usage: true },
    logprobs: true,
    top_logprobs: ALTERNATIVES,
    ...requestSettings(conversation.settings, again),
  };
}

/** What an answer has so far. Thoughts stand before it, between the tags that models with thoughts write. */
function beginning(prefix, thoughts) {
  if (!thoughts) return prefix;
  return prefix ? `<think>\n${thoughts.trim()}\n</think>\n\n${prefix}` : `<think>\n${thoughts}`;
}

/** The messages that the model sees: the system prompt, and what was not left out because it did not fit. */
function messagesUpTo(conversation, question) {
  const nodes = ancestry(conversation, question);
  const system = systemOf(conversation, nodes);
  const seen = nodes.slice(2 * leftOut(nodes));
  const spoken = seen.map(({ role, content }) => ({ role, content }));
  return system ? [{ role: "system", content: system }, ...spoken] : spoken;
}

/** How many of a path's oldest turns the model no longer sees. */
export function leftOut(nodes) {
  return Math.max(0, ...nodes.map((node) => node.dropped ?? 0));
}
