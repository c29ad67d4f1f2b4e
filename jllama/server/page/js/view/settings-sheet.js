// The system prompt and the settings of a conversation, and how the page looks. Changes count at once.

import { FIELDS, parsed } from "../data/settings.js";
import { preference, setPreference } from "../data/store.js";
import { lastOf, ROOT, setSystem, systemOf } from "../data/tree.js";
import { element } from "./dom.js";
import { openSheet } from "./sheet.js";

export function openSettings(page) {
  const { chat } = page;
  const keep = () => {
    setPreference("settings", known(chat.conversation.settings));
    setPreference("system", chat.conversation.system);
    if (lastOf(chat.conversation).id !== ROOT) chat.save();
    page.refresh();
  };
  const fields = FIELDS.map((field) => drawField(field, chat.conversation.settings, keep));
  const fill = () => [
    systemPrompt(chat, keep),
    element("div", { class: "fields" }, ...fields),
    reset(page, keep),
    look(),
  ];
  openSheet("Settings", fill);
}

/** What new conversations begin with: the fields, not what a file brought along. */
function known(settings) {
  return Object.fromEntries(
    FIELDS.filter(({ name }) => settings[name] !== undefined).map(({ name }) => [name, settings[name]]),
  );
}

function systemPrompt(chat, keep) {
  const area = element("textarea", {
    id: "system-prompt",
    rows: "4",
    dir: "auto",
    placeholder: "How the model should answer. Empty: as the model likes.",
  });
  area.value = systemOf(chat.conversation);
  area.addEventListener("change", () => {
    setSystem(chat.conversation, area.value.trim());
    keep();
  });
  return element(
    "div",
    { class: "field wide" },
    element("label", { for: "system-prompt" }, "System prompt"),
    area,
  );
}

function drawField(field, settings, keep) {
  const id = `setting-${field.name}`;
  const input = element("input", {
    id,
    type: "text",
    inputmode: "decimal",
    autocomplete: "off",
    placeholder: "default",
    "aria-describedby": `${id}-hint`,
  });
  const hint = element("p", { class: "hint", id: `${id}-hint` }, field.hint);
  input.value = settings[field.name] ?? "";
  input.addEventListener("change", () => {
    const { value, wrong } = parsed(field, input.value);
    input.setAttribute("aria-invalid", String(Boolean(wrong)));
    hint.textContent = wrong ?? field.hint;
    if (wrong) return;
    settings[field.name] = value;
    keep();
  });
  return element("div", { class: "field" }, element("label", { for: id }, field.label), input, hint);
}

function reset(page, keep) {
  const onclick = (event) => {
    for (const key of Object.keys(page.chat.conversation.settings))
      delete page.chat.conversation.settings[key];
    for (const input of event.target.closest("dialog").querySelectorAll(".fields input")) input.value = "";
    keep();
  };
  return element(
    "button",
    { type: "button", class: "plain-button", onclick },
    "All settings to their defaults",
  );
}

const LOOKS = { auto: "As the system", light: "Light", dark: "Dark" };

/** Light or dark, as the system or as chosen here. */
function look() {
  const chosen = preference("theme", "auto");
  const options = Object.entries(LOOKS).map(([value, text]) =>
    element("option", { value, selected: value === chosen }, text),
  );
  const select = element("select", { id: "theme", onchange: () => setTheme(select.value) }, ...options);
  return element("div", { class: "field" }, element("label", { for: "theme" }, "Colours"), select);
}

function setTheme(value) {
  setPreference("theme", value);
  applyTheme();
}

export function applyTheme() {
  document.documentElement.dataset.theme = preference("theme", "auto");
}
