// The messages that are shown: those of the current branch, each drawn once and kept.

import { path, systemOf } from "../data/tree.js";
import { arrange, element } from "./dom.js";
import { MessageView } from "./message-view.js";
import { welcome } from "./welcome.js";

const NEAR = 80; // so many pixels from the end still count as being there

export class ThreadView {
  #views = new Map();
  #shown = null;
  #waiting = false;

  constructor(page, thread, scroll, toEnd) {
    Object.assign(this, { page, thread, scroll, toEnd, follow: true });
    scroll.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.keepEnd()).observe(thread);
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroll;
    this.follow = scrollHeight - scrollTop - clientHeight < NEAR;
    this.toEnd.hidden = this.follow;
  }

  keepEnd() {
    if (this.follow) this.scroll.scrollTop = this.scroll.scrollHeight;
    else this.#scrolled();
  }

  goToEnd() {
    this.follow = true;
    this.keepEnd();
  }

  /** All messages; of another conversation, from its end. */
  refresh() {
    const { conversation } = this.page.chat;
    if (this.#shown !== conversation) {
      this.#views.clear();
      this.follow = true;
    }
    this.#shown = conversation;
    const nodes = path(conversation);
    const views = nodes.map((node) => this.#viewOf(node));
    const empty = nodes.length === 0;
    arrange(
      this.thread,
      empty ? [this.#welcome()] : [...this.#system(nodes), ...views.map((view) => view.element)],
    );
    for (const view of views) view.refresh();
    this.keepEnd();
  }

  #viewOf(node) {
    const known = this.#views.get(node.id);
    if (known?.node === node) return known;
    const made = new MessageView(this.page, node);
    this.#views.set(node.id, made);
    return made;
  }

  view(id) {
    return this.#views.get(id);
  }

  #welcome() {
    this.start ??= welcome(this.page);
    return this.start;
  }

  #system(nodes) {
    const text = systemOf(this.page.chat.conversation, nodes);
    if (!text) return [];
    this.system ??= element("button", {
      type: "button",
      class: "system",
      "aria-label": "System prompt: change it",
      onclick: () => this.page.openSettings(),
    });
    this.system.textContent = text;
    return [this.system];
  }

  /** One message grew: drawn with the next picture, however many blocks came meanwhile. */
  grow(node) {
    this.growing = node;
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      const view = this.#views.get(this.growing.id);
      if (view?.node !== this.growing || !view.element.isConnected) return;
      view.refresh(true);
      this.page.announcer.grow(view);
      this.keepEnd();
    });
  }
}
