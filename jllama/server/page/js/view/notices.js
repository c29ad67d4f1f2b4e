// What went wrong or was done, above the composer, with what can be done about it.

import { arrange, element, iconButton } from "./dom.js";

const BRIEF = 10000; // milliseconds that a remark stays; an error stays until it is dealt with

export class Notices {
  constructor(box) {
    this.box = box;
  }

  clear() {
    this.box.replaceChildren();
  }

  /** `actions` are pairs of a label and what it does. One notice at a time. */
  show(text, { advice = "", actions = [], error = false } = {}) {
    const notice = element("div", {
      class: error ? "notice error" : "notice",
      role: error ? "alert" : "status",
    });
    const close = () => notice.remove();
    const buttons = actions.map(([label, act], place) => {
      const onclick = () => (close(), act());
      return element(
        "button",
        { type: "button", class: place ? "plain-button" : "main-button", onclick },
        label,
      );
    });
    const words = element(
      "div",
      { class: "notice-words" },
      element("p", {}, text),
      advice && element("p", { class: "hint" }, advice),
    );
    arrange(this.box, [notice]); // first the empty region, then its words: screen readers then say them
    notice.append(
      words,
      element("div", { class: "notice-row" }, ...buttons),
      iconButton("close", "Dismiss", close),
    );
    if (!error) setTimeout(close, BRIEF);
  }
}
