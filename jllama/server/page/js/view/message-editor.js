// The editor that stands in a message's place while it is changed.

import { element } from "./dom.js";

/** `done` gets the new text, or null if nothing is to change. */
export function editor(text, role, done) {
  const area = element("textarea", {
    class: "editor-text",
    rows: "3",
    dir: "auto",
    "aria-label": "Text of the message",
  });
  area.value = text;
  const save = () => area.value.trim() && done(area.value.trim());
  const name = role === "user" ? "Ask again" : "Keep";
  const hint = role === "user" ? "The old version stays as a branch." : "The old answer stays as a branch.";
  const buttons = element(
    "div",
    { class: "editor-row" },
    element("span", { class: "editor-hint" }, hint),
    element("button", { type: "button", class: "plain-button", onclick: () => done(null) }, "Cancel"),
    element("button", { type: "submit", class: "main-button" }, name),
  );
  const form = element("form", { class: "editor" }, area, buttons);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
  form.addEventListener("keydown", (event) => onKey(event, save, done));
  return { element: form, focus: () => (area.focus(), area.setSelectionRange(text.length, text.length)) };
}

function onKey(event, save, done) {
  if (event.key === "Escape") done(null);
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  else return;
  event.preventDefault();
  event.stopPropagation();
}
