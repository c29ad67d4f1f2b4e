// An answer as its tokens, each tinted by how probable it was. One of them is in the order of the Tab key;
// arrows go from one to the next, Enter opens what else could have stood there.

import { aligned, percent, pieces, probability, tintOf, visible } from "../data/tokens.js";
import { element } from "./dom.js";

/**
 * Draws an answer's tokens into `container`; a growing answer appends. Returns false if there are none that
 * fit.
 */
export function drawTokens(container, node, card) {
  const tokens = aligned(node.tokens ?? [], node.content);
  if (tokens === null) return false;
  let view = container.tokenView;
  if (
    !view ||
    view.node !== node ||
    tokens.length < view.tokens.length ||
    container.firstChild !== view.box
  ) {
    view = begin(container, node, card);
  }
  const parts = pieces(tokens);
  for (let place = view.tokens.length; place < tokens.length; place += 1) {
    view.box.append(drawToken(tokens[place], parts[place], place));
  }
  view.tokens = tokens;
  if (!view.box.querySelector('[tabindex="0"]')) view.box.firstElementChild?.setAttribute("tabindex", "0");
  return true;
}

function begin(container, node, card) {
  const box = element("div", {
    class: "tokens",
    dir: "auto",
    role: "group",
    "aria-label": "Tokens: arrows move, Enter shows alternatives",
  });
  const view = { node, box, tokens: [] };
  container.replaceChildren(box);
  container.tokenView = view;
  const reached = (event) => event.target.closest(".token");
  const show = (target) =>
    target && card.show(target, view.tokens[target.dataset.place], node, Number(target.dataset.place));
  box.addEventListener("pointerover", (event) => event.pointerType === "mouse" && show(reached(event)));
  box.addEventListener("pointerout", (event) => event.pointerType === "mouse" && card.leave());
  box.addEventListener("focusin", (event) => focused(box, reached(event), show));
  box.addEventListener("focusout", (event) => !card.contains(event.relatedTarget) && card.leave());
  box.addEventListener("click", (event) => show(reached(event)));
  box.addEventListener("keydown", (event) => onKey(event, reached(event), card));
  return view;
}

function drawToken(token, part, place) {
  const drawn = part === "" ? " partial" : /^\s*\n\s*$/.test(part) ? " line-end" : "";
  const attributes = {
    class: `token tint-${tintOf(token)}${token.f ? " forked" : ""}${drawn}`,
    role: "button",
    tabindex: "-1",
    "data-place": place,
    "aria-haspopup": "dialog",
    "aria-label": `${visible(token)}, ${percent(probability(token))}`,
  };
  return element("span", attributes, part);
}

function focused(box, target, show) {
  if (!target) return;
  box.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
  target.setAttribute("tabindex", "0");
  if (target.matches(":focus-visible")) show(target);
}

const MOVES = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" };

function onKey(event, target, card) {
  if (!target || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in MOVES) target[MOVES[event.key]]?.focus();
  else if (event.key === "Home") target.parentElement.firstElementChild.focus();
  else if (event.key === "End") target.parentElement.lastElementChild.focus();
  else if (["Enter", " ", "ArrowDown"].includes(event.key)) card.enter(target);
  else if (event.key === "Escape" && card.open) card.hide();
  else return;
  event.preventDefault();
  event.stopPropagation();
}

/** What the tints mean, in a line. */
export function drawLegend(container) {
  const steps = ["≥ 90 %", "70", "50", "30", "10", "3", "less"];
  const marks = steps.map((text, step) => element("span", { class: `token tint-${step}` }, text));
  container.replaceChildren(element("span", {}, "How probable the model found each token:"), " ", ...marks);
}
