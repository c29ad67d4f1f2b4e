// What a conversation shows before its first message.

import { element } from "./dom.js";

const STARTERS = [
  "What is gravity? Answer in two sentences.",
  "Tell me a story about a lighthouse.",
  "Write a Python function that reverses a list.",
];

export function welcome(page) {
  const starters = STARTERS.map((text) =>
    element("button", { type: "button", class: "starter", onclick: () => page.composer.suggest(text) }, text),
  );
  const hint = element(
    "p",
    {},
    "Every answer is kept as a branch. ",
    element("b", {}, "Tokens"),
    " shows how sure the model was of each word, and goes on from any other that it could have chosen.",
  );
  return element(
    "div",
    { class: "welcome" },
    element("h2", {}, "What would you like to know?"),
    hint,
    element("div", { class: "starters" }, ...starters),
  );
}
