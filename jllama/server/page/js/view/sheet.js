// Sheets and small dialogs over the page: the browser's own `dialog`, which keeps the focus and closes with
// Escape.

import { element, iconButton } from "./dom.js";

/** Opens a sheet; `fill(close)` gives its content. It is gone from the page once it is closed. */
export function openSheet(title, fill, { kind = "sheet" } = {}) {
  const dialog = element("dialog", { class: kind, "aria-label": title });
  const close = () => dialog.close();
  const head = element("header", {}, element("h2", {}, title), iconButton("close", "Close", close));
  dialog.append(head, element("div", { class: "sheet-body" }, ...fill(close)));
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    placeCaret();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * A dialog gives the focus back while the page behind it is still inert, and Chromium then sets no caret:
 * nothing could be typed.
 */
function placeCaret() {
  const focused = document.activeElement;
  if (focused === document.body) return;
  focused.blur();
  focused.focus();
}

/** Asks for one line. `answer` gets it, and what the boxes below it say. */
export function askLine(
  title,
  { label, value = "", type = "text", hint = "", box = null, button = "OK" },
  answer,
) {
  openSheet(
    title,
    (close) => {
      const input = element("input", {
        type,
        value,
        autofocus: true,
        autocomplete: "off",
        "aria-label": label,
        dir: "auto",
      });
      const tick = box && element("input", { type: "checkbox" });
      const form = element(
        "form",
        {},
        input,
        hint && element("p", { class: "hint" }, hint),
        box && element("label", { class: "tick" }, tick, box),
        element("button", { type: "submit", class: "main-button" }, button),
      );
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        close();
        answer(input.value.trim(), tick?.checked ?? false);
      });
      return [form];
    },
    { kind: "dialog" },
  );
}
