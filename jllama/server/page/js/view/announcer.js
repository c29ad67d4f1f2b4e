// What a screen reader says while an answer grows: whole blocks as they are complete, not every word anew.

import { element } from "./dom.js";

export class Announcer {
  constructor(live) {
    this.live = live;
    this.node = null;
    this.said = 0;
  }

  begin() {
    this.live.replaceChildren();
    this.#say("The answer begins.");
  }

  grow(view) {
    if (this.node !== view.node) Object.assign(this, { node: view.node, said: 0 });
    this.#sayBlocks(view, Math.max(0, (view.blocks?.length ?? 0) - 1));
  }

  end(view) {
    if (!view) return;
    this.grow(view);
    this.#sayBlocks(view, view.blocks?.length ?? 0);
    this.#say(view.node.cut ? "The answer stopped." : "The answer is complete.");
  }

  #sayBlocks(view, until) {
    for (; this.said < until; this.said += 1) this.#say(view.text.children[this.said]?.textContent ?? "");
  }

  #say(text) {
    if (text) this.live.append(element("p", {}, text));
  }
}
