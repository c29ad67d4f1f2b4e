// An answer as its tokens, each tinted by how probable it was. One of them is in the order of the Tab key;
// arrows go from one to the next, Enter opens what else could have stood there.

import { aligned, newDecoder, percent, pieces, probability, tintOf, visible } from "../data/tokens.js";
import { element } from "./dom.js";

/** Draws an answer's tokens; a growing answer appends. Returns false if it has none that spell it. */
export function drawTokens(container, node, card) {
  const view = container.tokenView;
  if (view?.node === node && container.firstChild === view.box && grow(view)) return true;
  const tokens = aligned(node.tokens ?? [], node.content);
  if (tokens === null) return false;
  append(begin(container, node, card), tokens);
  return true;
}

/** Appends what came since, if all tokens so far spell the answer: nothing is looked at twice then. */
function grow(view) {
  const { tokens, node } = view;
  const all = node.tokens ?? [];
  if (all.length < tokens.length || all[tokens.length - 1] !== tokens.at(-1)) return false;
  append(view, all.slice(tokens.length));
  return view.text === node.content;
}

function append(view, tokens) {
  const parts = pieces(tokens, view.decoder);
  const first = view.tokens.length;
  view.box.append(...tokens.map((token, at) => drawToken(token, parts[at], first + at)));
  view.tokens.push(...tokens);
  view.text += parts.join("");
  if (first === 0) view.box.firstElementChild?.setAttribute("tabindex", "0");
}

function begin(container, node, card) {
  const label = "Tokens: arrows move, Enter shows alternatives";
  const box = element("div", { class: "tokens", dir: "auto", role: "group", "aria-label": label });
  const view = { node, box, tokens: [], text: "", decoder: newDecoder() };
  container.replaceChildren(box);
  container.tokenView = view;
  listen(view, card);
  return view;
}

function listen({ node, box, tokens }, card) {
  const reached = (event) => event.target.closest(".token");
  const show = (target) => {
    const place = Number(target?.dataset.place);
    if (target) card.show(target, tokens[place], node, place);
  };
  box.addEventListener("pointerover", (event) => event.pointerType === "mouse" && show(reached(event)));
  box.addEventListener("pointerout", (event) => event.pointerType === "mouse" && card.leave());
  box.addEventListener("focusin", (event) => focused(box, reached(event), show));
  box.addEventListener("focusout", (event) => !card.contains(event.relatedTarget) && card.leave());
  box.addEventListener("click", (event) => show(reached(event)));
  box.addEventListener("keydown", (event) => onKey(event, reached(event), card));
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
