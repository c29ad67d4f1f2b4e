// The card beside a token: how probable it was, what else could have stood there, and a way to go on from
// that.

import { isSpecial, percent, probability, visible } from "../data/tokens.js";
import { element } from "./dom.js";

const ENDS = /end|eo[st]|stop|<\/s>/i; // among special tokens
const narrow = matchMedia("(max-width: 800px)");
const LINGER = 250; // milliseconds in which the pointer may travel from the token to the card

export class TokenCard {
  #timer = null;
  #target = null;

  /** `fork(node, place, alternative)` goes on from an alternative. */
  constructor(card, scroll, fork) {
    Object.assign(this, { card, scroll, fork });
    card.addEventListener("pointerenter", () => clearTimeout(this.#timer));
    card.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.leave());
    card.addEventListener("keydown", (event) => this.#onKey(event));
    card.addEventListener("focusout", (event) => !this.contains(event.relatedTarget) && this.leave());
    document.addEventListener("pointerdown", (event) => this.#outside(event) && this.hide());
    scroll.addEventListener("scroll", () => this.open && this.#place());
  }

  get open() {
    return !this.card.hidden;
  }

  contains(other) {
    return other !== null && this.card.contains(other);
  }

  #outside(event) {
    return this.open && !this.card.contains(event.target) && !event.target.closest?.(".token");
  }

  show(target, token, node, place) {
    clearTimeout(this.#timer);
    if (this.#target === target && this.open) return;
    this.#target?.classList.remove("looked-at");
    this.#target = target;
    target.classList.add("looked-at");
    this.card.replaceChildren(...drawCard(token, (alternative) => this.#choose(node, place, alternative)));
    this.card.setAttribute("aria-label", `Alternatives to ${visible(token)}`);
    this.card.hidden = false;
    this.#uncover();
    this.#place();
  }

  /** In a narrow window the card lies over the end of the thread: the token comes up from below it. */
  #uncover() {
    const hidden = this.#target.getBoundingClientRect().bottom + 12 - (innerHeight - this.card.offsetHeight);
    if (narrow.matches && hidden > 0) this.scroll.scrollTop += hidden;
  }

  /**
   * Below the token, or above it where there is no room; a narrow window has it at its lower edge
   * (tokens.css).
   */
  #place() {
    const token = this.#target.getClientRects()[0];
    if (!token) return this.hide();
    const { offsetWidth: width, offsetHeight: height } = this.card;
    const left = Math.max(8, Math.min(token.left - 8, innerWidth - width - 8));
    const below = token.bottom + 6;
    const top = below + height < innerHeight - 8 ? below : Math.max(8, token.top - height - 6);
    this.card.style.left = `${left}px`;
    this.card.style.top = `${top}px`;
    return undefined;
  }

  /** The keyboard goes into the card. */
  enter(target) {
    if (this.#target !== target || !this.open) target.click();
    this.card.querySelector("button:not([disabled])")?.focus();
  }

  leave() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.contains(document.activeElement) || this.hide(), LINGER);
  }

  hide() {
    clearTimeout(this.#timer);
    this.#target?.classList.remove("looked-at");
    this.card.hidden = true;
  }

  #choose(node, place, alternative) {
    const said = this.fork(node, place, alternative);
    if (said) this.card.querySelector(".card-note").textContent = said;
    else this.hide();
  }

  #onKey(event) {
    const buttons = [...this.card.querySelectorAll("button:not([disabled])")];
    const at = buttons.indexOf(document.activeElement);
    if (event.key === "ArrowDown") buttons[Math.min(at + 1, buttons.length - 1)]?.focus();
    else if (event.key === "ArrowUp") buttons[Math.max(at - 1, 0)]?.focus();
    else if (event.key === "Escape" || event.key === "ArrowLeft") this.#back();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #back() {
    const target = this.#target;
    this.hide();
    target.focus();
    this.hide();
  }
}

function drawCard(token, choose) {
  const others = token.a ?? [];
  const listed = others.some((other) => same(other, token)) ? others : [token, ...others];
  const rows = listed.map((other) => drawRow(other, same(other, token), choose));
  const rest = 1 - listed.reduce((sum, other) => sum + probability(other), 0);
  const note =
    others.length > 0
      ? `All others: ${percent(Math.max(0, rest))}. Choose one to go on from it.`
      : "The server sent no alternatives.";
  return [
    element("ul", { class: "alternatives" }, ...rows),
    element("p", { class: "card-note", "aria-live": "polite" }, note),
  ];
}

const same = (one, other) => one.t === other.t && String(one.b) === String(other.b);

function drawRow(other, stands, choose) {
  const share = probability(other);
  const bar = element("span", { class: "share-bar", "aria-hidden": "true" });
  bar.style.width = `${Math.max(1, share * 100)}%`;
  const what = ENDS.test(other.t) && isSpecial(other) ? "end of the answer" : visible(other);
  const label = stands ? `${what}, ${percent(share)}, stands here` : `Go on with ${what}, ${percent(share)}`;
  const attributes = { type: "button", "aria-label": label, disabled: stands, onclick: () => choose(other) };
  const text = element("span", { class: isSpecial(other) ? "share-text special" : "share-text" }, what);
  return element(
    "li",
    {},
    element("button", attributes, bar, text, element("span", { class: "share-number" }, percent(share))),
  );
}
