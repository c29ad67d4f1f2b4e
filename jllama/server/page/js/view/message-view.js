// One message of the thread: its text, its tokens or its editor, and below them what can be done with it.

import { siblings } from "../data/tree.js";
import { arrange, copyButton, element, icon, iconButton } from "./dom.js";
import { drawMarkdown } from "./markdown.js";
import { editor } from "./message-editor.js";
import { statistics } from "./statistics.js";
import { drawTokens } from "./token-view.js";

export class MessageView {
  /** `page` has the chat, the token card, and whether tokens are shown. */
  constructor(page, node) {
    Object.assign(this, { page, node, editing: false });
    const question = node.role === "user";
    this.text = element("div", {
      class: question ? "text plain" : "text markdown",
      dir: question ? "auto" : null,
    });
    this.reasoning = question ? null : new ReasoningView();
    this.foot = element("footer", { class: "foot" });
    const label = question ? "You" : "Answer";
    this.element = element("article", {
      class: `message ${node.role}`,
      "aria-label": label,
      tabindex: "-1",
      "data-id": node.id,
    });
    this.refresh();
  }

  get busy() {
    return this.page.chat.job()?.node === this.node;
  }

  /** Draws what changed. `lightly`: only what grows. */
  refresh(lightly = false) {
    this.element.classList.toggle("busy", this.busy);
    this.reasoning?.refresh(this.node, this.busy);
    if (!this.editing) this.#drawText();
    if (!lightly) arrange(this.foot, this.#actions());
    this.#drawStatistics();
    const middle = this.editing ? this.editing.element : this.text;
    arrange(this.element, [this.reasoning?.element, middle, this.editing ? null : this.foot].filter(Boolean));
  }

  /** Only what differs from what stands there: a long conversation is drawn once. */
  #drawText() {
    const { node, text } = this;
    const wanted = [node.content, this.page.showTokens, this.busy];
    if (this.drawn?.every((value, at) => value === wanted[at])) return;
    this.drawn = wanted;
    if (node.role === "user") {
      text.textContent = node.content;
      return;
    }
    const asTokens = this.page.showTokens && drawTokens(text, node, this.page.card);
    text.classList.toggle("markdown", !asTokens);
    if (!asTokens) this.#drawMarkdown();
  }

  #drawMarkdown() {
    const { node, text } = this;
    if (text.tokenView) {
      text.replaceChildren();
      text.tokenView = text.drawnBlocks = null;
    }
    const words = node.content || (this.busy || node.reasoning ? "" : "*(an empty answer)*");
    this.blocks = drawMarkdown(text, words);
  }

  #drawStatistics() {
    if (this.node.role === "user") return;
    this.stats ??= element("span", { class: "stats" });
    if (this.stats.parentNode !== this.foot) this.foot.append(this.stats);
    this.stats.replaceChildren(...statistics(this.node, this.busy));
  }

  #actions() {
    if (this.busy) return [this.stats ?? ""].filter(Boolean);
    const { chat } = this.page;
    const own = this.node.role === "user" ? this.#questionActions(chat) : this.#answerActions(chat);
    return [this.#switcher(), ...own, this.stats].filter(Boolean);
  }

  #questionActions(chat) {
    const { node } = this;
    const unanswered = node.children.length === 0 && !chat.job();
    const ask = unanswered && wordButton("again", "Get an answer", () => chat.regenerate(node));
    return [
      copyButton("Copy the question", () => node.content),
      iconButton("edit", "Edit and ask again", () => this.edit()),
      ask,
    ];
  }

  #answerActions(chat) {
    const { node } = this;
    const question = chat.conversation.nodes[node.parent];
    const idle = !chat.job();
    return [
      copyButton("Copy the answer", () => node.content),
      iconButton("edit", "Edit the answer", () => this.edit()),
      idle && iconButton("again", "Another answer", () => chat.regenerate(question)),
      idle &&
        node.cut &&
        (node.content || node.reasoning) &&
        wordButton("onward", "Continue", () => chat.resume(node)),
    ];
  }

  /** ‹ 2 / 3 › between the versions of a message. */
  #switcher() {
    const { chat } = this.page;
    const all = siblings(chat.conversation, this.node.id);
    if (all.length < 2) return null;
    const place = all.indexOf(this.node.id);
    const step = (by, name, label) =>
      iconButton(name, label, () => this.page.goTo(all[place + by], name), {
        disabled: !all[place + by],
        "data-step": name,
      });
    const count = element("span", {}, `${place + 1} / ${all.length}`);
    const label = `Version ${place + 1} of ${all.length}`;
    return element(
      "span",
      { class: "switcher", role: "group", "aria-label": label },
      step(-1, "left", "Version before"),
      count,
      step(1, "right", "Version after"),
    );
  }

  edit(text = this.node.content) {
    const done = (changed) => {
      this.editing = false;
      this.refresh();
      if (changed !== null && changed !== this.node.content) this.page.chat.edit(this.node, changed);
      this.page.focusMessage(changed === null ? this.node.id : null);
    };
    this.editing = editor(text, this.node.role, done);
    this.refresh();
    this.editing.focus();
    this.editing.element.scrollIntoView({ block: "nearest" });
  }
}

function wordButton(name, label, onclick) {
  return element("button", { type: "button", class: "word-button", onclick }, icon(name), label);
}

/** A reasoning model's thoughts: open while they come, closed once the answer begins. */
class ReasoningView {
  constructor() {
    this.text = element("div", { class: "reasoning-text markdown" });
    this.summary = element("summary", {}, "Thoughts");
    this.element = null;
  }

  refresh(node, busy) {
    if (!node.reasoning) return;
    const thinking = busy && !node.content;
    if (!this.element) {
      this.element = element("details", { class: "reasoning", open: thinking }, this.summary, this.text);
      this.summary.addEventListener("click", () => (this.touched = true));
    }
    if (!this.touched) this.element.open = thinking;
    this.summary.textContent = thinking ? "Thinking…" : "Thoughts";
    drawMarkdown(this.text, node.reasoning);
  }
}
