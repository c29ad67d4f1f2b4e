// Starts the page, and leads clicks and keys to what they do.

import { Chat } from "./chat.js";
import { Store } from "./data/store.js";
import { Page } from "./page.js";
import { drawIcons } from "./view/dom.js";
import { applyTheme } from "./view/settings-sheet.js";

applyTheme();
drawIcons(document);
const page = new Page(new Chat(new Store()));
const file = document.getElementById("import-file");
const menu = document.getElementById("menu");

const ACTIONS = {
  new: () => page.newConversation(),
  rename: () => page.rename(),
  delete: () => page.deleteConversation(),
  export: () => page.export(),
  import: () => file.click(),
  key: () => page.askKey(),
  tree: () => page.openTree(),
  settings: () => page.openSettings(),
  stop: () => page.chat.stop(),
  "toggle-tokens": () => page.toggleTokens(),
  "to-end": () => page.thread.goToEnd(),
  "toggle-sidebar": (button) => page.showSidebar(button.getAttribute("aria-expanded") !== "true"),
  "close-sidebar": () => page.showSidebar(false, { narrowOnly: true }),
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (!button) return;
  if (menu.contains(button)) menu.hidePopover();
  ACTIONS[button.dataset.action](button);
});

file.addEventListener("change", async () => {
  await page.import([...file.files]);
  file.value = "";
});

/** Escape stops an answer; a slash outside of any field goes to the message. */
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (event.key === "Escape" && !event.target.closest("dialog") && page.chat.job()) page.chat.stop();
  else if (event.key === "Escape" && document.body.classList.contains("sidebar-open"))
    page.showSidebar(false);
  else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) page.composer.area.focus();
  else return;
  event.preventDefault();
});

const narrow = matchMedia("(max-width: 800px)");
const settle = () => {
  document.body.classList.remove("sidebar-open");
  document.getElementById("sidebar").inert = narrow.matches;
  page.showSidebar(!narrow.matches);
};
narrow.addEventListener("change", settle);
settle();
page.start();
