// The page: its parts, and how they hear of each other.

import { getKey, setKey } from "./data/api.js";
import { isBlocked } from "./data/storage.js";
import { preference, setPreference } from "./data/store.js";
import { path, select, titleOf } from "./data/tree.js";
import { explain } from "./errors.js";
import { exportConversation, importFiles } from "./files.js";
import { Announcer } from "./view/announcer.js";
import { Composer } from "./view/composer.js";
import { ModelView } from "./view/model-view.js";
import { Notices } from "./view/notices.js";
import { openSettings } from "./view/settings-sheet.js";
import { askLine } from "./view/sheet.js";
import { Sidebar } from "./view/sidebar.js";
import { ThreadView } from "./view/thread-view.js";
import { TokenCard } from "./view/token-card.js";
import { drawLegend } from "./view/token-view.js";
import { openTree } from "./view/tree-sheet.js";

const get = (id) => document.getElementById(id);

export class Page {
  constructor(chat) {
    this.chat = chat;
    this.showTokens = preference("tokens", false);
    this.announcer = new Announcer(get("live"));
    this.notices = new Notices(get("notices"));
    this.card = new TokenCard(get("token-card"), get("scroll"), (node, place, other) =>
      this.fork(node, place, other),
    );
    this.composer = new Composer(this, get("composer"), get("composer-text"), get("send"), get("stop"));
    this.thread = new ThreadView(this, get("thread"), get("scroll"), get("to-end"));
    this.sidebar = new Sidebar(this, get("conversations"));
    this.model = new ModelView(this, get("model"), get("context"));
    drawLegend(get("legend"));
    this.#listen();
  }

  #listen() {
    const { chat } = this;
    chat.addEventListener("open", () => this.#opened());
    chat.addEventListener("change", () => this.refresh());
    chat.addEventListener("models", () => this.model.refresh());
    chat.addEventListener("begin", () => this.#began());
    chat.addEventListener("grow", ({ detail }) => this.thread.grow(detail));
    chat.addEventListener("end", ({ detail }) => this.#ended(detail));
    chat.addEventListener("trouble", ({ detail }) => this.#trouble(detail));
    chat.store.addEventListener("change", () => this.sidebar.refresh());
    chat.store.addEventListener("full", ({ detail }) => this.#full(detail));
    window.addEventListener("storage", ({ key }) => this.#changedElsewhere(key));
  }

  start() {
    this.#opened();
    this.composer.area.focus();
    if (isBlocked)
      this.notices.show("This browser keeps nothing for this page: export what you want to keep.");
    return this.chat.loadModels();
  }

  #opened() {
    this.card.hide();
    this.composer.open();
    this.refresh();
    this.thread.goToEnd();
  }

  refresh() {
    const title = titleOf(this.chat.conversation);
    get("title").textContent = title;
    document.title = path(this.chat.conversation).length ? `${title} · jllama` : "jllama";
    get("tokens-toggle").setAttribute("aria-pressed", String(this.showTokens));
    get("legend").hidden = !this.showTokens;
    this.thread.refresh();
    this.sidebar.refresh();
    this.composer.refresh();
    this.model.refresh();
  }

  #began() {
    this.card.hide();
    this.announcer.begin();
    this.thread.goToEnd();
  }

  #ended(node) {
    this.refresh();
    this.announcer.end(this.thread.view(node.id));
  }

  #trouble({ error, restored, conversation, ...remedies }) {
    if (restored !== undefined) this.#restore(restored, conversation, remedies);
    const { text, ...more } = explain(error, remedies, this);
    this.notices.show(text, { ...more, error: true });
    if (error.status === 401) this.askKey(remedies.retry);
  }

  /** A question without an answer is a draft again; to try again is to send it. */
  #restore(text, conversation, remedies) {
    if (conversation !== this.chat.conversation) return this.chat.store.saveDraft(conversation.id, text);
    this.composer.restore(text);
    for (const name of ["retry", "leaveOut"]) {
      const act = remedies[name];
      if (act) remedies[name] = () => (this.composer.area.value === text && this.composer.set(""), act());
    }
    return undefined;
  }

  #full(title) {
    const advice =
      "Export what you want to keep, or delete old conversations. Until then it lives in this tab alone.";
    const actions = [["Export", () => this.export()]];
    this.notices.show(`The browser's storage is full: “${title}” can't be kept.`, {
      advice,
      actions,
      error: true,
    });
  }

  #changedElsewhere(key) {
    const id = this.chat.store.takeForeign(key, (other) => this.chat.job(other));
    if (id === this.chat.conversation.id) this.chat.open(id);
  }

  fork(node, place, alternative) {
    if (this.chat.job()) return "Wait for the end of the answer, or stop it.";
    if (!this.chat.fork(node, place, alternative))
      return "It is a part of a character: no text can go on from here.";
    this.composer.area.focus();
    return null;
  }

  goTo(id, button) {
    select(this.chat.conversation, id);
    this.thread.follow = false;
    this.chat.save();
    const foot = this.thread.view(id).element;
    (
      foot.querySelector(`[data-step=${button}]:not([disabled])`) ??
      foot.querySelector("[data-step]:not([disabled])")
    )?.focus();
  }

  /** The keyboard's place: a message, or where the next one is typed. */
  focusMessage(id) {
    const view = id && this.thread.view(id);
    if (!view) return this.composer.area.focus();
    view.element.focus();
    return view.element.scrollIntoView({ block: "nearest" });
  }

  openConversation(id) {
    this.notices.clear();
    this.chat.open(id);
    this.showSidebar(false, { narrowOnly: true });
  }

  newConversation() {
    this.notices.clear();
    this.chat.create();
    this.showSidebar(false, { narrowOnly: true });
    this.composer.area.focus();
  }

  showSidebar(shown, { narrowOnly = false } = {}) {
    const narrow = matchMedia("(max-width: 800px)").matches;
    if (narrowOnly && !narrow) return;
    document.body.classList.toggle(narrow ? "sidebar-open" : "sidebar-closed", narrow ? shown : !shown);
    const toggle = document.querySelector("[data-action=toggle-sidebar]");
    toggle.setAttribute("aria-expanded", String(shown));
    if (narrow) get("sidebar").inert = !shown;
    if (narrow && !shown && get("sidebar").contains(document.activeElement)) toggle.focus();
  }

  toggleTokens() {
    this.showTokens = !this.showTokens;
    setPreference("tokens", this.showTokens);
    this.card.hide();
    this.refresh();
  }

  openSettings() {
    openSettings(this);
  }

  openTree() {
    openTree(this);
  }

  rename(conversation = this.chat.conversation) {
    const value = titleOf(conversation);
    askLine("Rename", { label: "Name of the conversation", value, button: "Rename" }, (title) => {
      conversation.title = title.slice(0, 200);
      if (path(conversation).length > 0) this.chat.save(conversation);
      this.refresh();
    });
  }

  deleteConversation(conversation = this.chat.conversation) {
    this.chat.delete(conversation);
    if (path(conversation).length === 0) return;
    this.notices.show(`“${titleOf(conversation)}” is deleted.`, {
      actions: [["Undo", () => this.chat.adopt(conversation)]],
    });
  }

  export() {
    const left = exportConversation(this.chat.conversation);
    if (left > 0) this.notices.show(`${left} branches are not in the file: it takes 100.`);
  }

  async import(files) {
    const { conversations, wrong } = await importFiles(files);
    for (const conversation of conversations) this.chat.adopt(conversation);
    const count = conversations.length;
    if (wrong.length > 0) this.notices.show(wrong.join(" "), { error: true });
    else if (count > 0)
      this.notices.show(
        count === 1 ? `“${titleOf(conversations[0])}” is imported.` : `${count} conversations are imported.`,
      );
  }

  askKey(then = null) {
    const hint = "As given to the server by --api_key. Empty: none.";
    const details = {
      label: "API key",
      value: getKey(),
      type: "password",
      hint,
      box: "Remember it in this browser",
      button: "Use it",
    };
    askLine("API key", details, (key, keep) => {
      setKey(key, keep);
      this.notices.clear();
      if (then) then();
      else if (this.chat.models.length === 0) this.chat.loadModels();
    });
  }

  async reloadModels(then) {
    await this.chat.loadModels();
    then?.();
  }
}
