// The list of conversations, newest first.

import { titleOf } from "../data/tree.js";
import { arrange, element, iconButton } from "./dom.js";

export class Sidebar {
  #rows = new Map();

  constructor(page, list) {
    Object.assign(this, { page, list });
  }

  refresh() {
    const conversations = this.page.chat.store.all();
    for (const id of this.#rows.keys()) if (!this.page.chat.store.get(id)) this.#rows.delete(id);
    const rows = conversations.map((conversation) => this.#row(conversation));
    arrange(this.list, rows.length > 0 ? rows : [this.#nothing()]);
  }

  #nothing() {
    this.empty ??= element("li", { class: "nothing" }, "Conversations are kept in this browser alone.");
    return this.empty;
  }

  #row(conversation) {
    const { id } = conversation;
    if (!this.#rows.has(id)) this.#rows.set(id, this.#newRow(id));
    const row = this.#rows.get(id);
    const open = this.page.chat.conversation.id === id;
    const button = row.firstElementChild;
    const title = titleOf(conversation);
    if (button.textContent !== title) button.textContent = title;
    if (open) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    row.classList.toggle("busy", Boolean(this.page.chat.job(conversation)));
    return row;
  }

  #newRow(id) {
    const { page } = this;
    const get = () => page.chat.store.get(id);
    const open = element("button", {
      type: "button",
      class: "conversation",
      dir: "auto",
      onclick: () => page.openConversation(id),
    });
    const rename = iconButton("edit", "Rename", () => page.rename(get()));
    const remove = iconButton("trash", "Delete", () => page.deleteConversation(get()));
    return element("li", { class: "row" }, open, rename, remove);
  }
}
