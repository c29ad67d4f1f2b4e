// Draws Markdown as elements. A growing answer keeps the blocks that stand already and draws the last ones
// anew.

import { parseBlocks } from "../text/blocks.js";
import { parseInline } from "../text/inline.js";
import { copyButton, element } from "./dom.js";

// Letters that turn the direction of text, or that nobody sees: code that hides some would read as what it
// is not.
const HIDDEN = /[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/;

/** Makes `container` show the text. What was drawn of the same source is kept. */
export function drawMarkdown(container, text) {
  const blocks = parseBlocks(text);
  const drawn = container.drawnBlocks ?? [];
  let same = 0;
  while (same < blocks.length && same < drawn.length && drawn[same].source === blocks[same].source) same += 1;
  if (drawn[same] && blocks[same] && growCode(container.children[same], drawn[same], blocks[same])) same += 1;
  while (container.children.length > same) container.lastElementChild.remove();
  container.append(...blocks.slice(same).map(drawBlock));
  container.drawnBlocks = blocks;
  return blocks;
}

/** Code grows in place: the button beside it keeps the focus, and a selection stays. */
function growCode(drawnElement, before, now) {
  const longer = before.type === "code" && now.type === "code" && before.language === now.language;
  if (!longer || !now.text.startsWith(before.text)) return false;
  drawnElement.querySelector("code").append(...visibleText(now.text.slice(before.text.length)));
  return true;
}

const DRAW = {
  paragraph: ({ text }) => element("p", { dir: "auto" }, ...inline(text)),
  heading: ({ level, text }) => element(`h${Math.min(6, level + 2)}`, { dir: "auto" }, ...inline(text)),
  rule: () => element("hr"),
  quote: ({ blocks }) => element("blockquote", { dir: "auto" }, ...blocks.map(drawBlock)),
  code: drawCode,
  list: drawList,
  table: drawTable,
};

function drawBlock(block) {
  return DRAW[block.type](block);
}

function drawCode({ language, text }) {
  const code = element("code", { dir: "ltr" }, ...visibleText(text));
  const head = element("div", { class: "code-head" }, element("span", {}, language || "text"));
  const figure = element(
    "div",
    { class: "code", role: "group", "aria-label": language ? `Code, ${language}` : "Code" },
    head,
  );
  head.append(copyButton("Copy code", () => sourceOf(code)));
  figure.append(element("pre", { tabindex: "0" }, code));
  return figure;
}

/** Hidden letters by their numbers; the original is what a copy takes. */
function visibleText(text) {
  if (!HIDDEN.test(text)) return [text];
  return text
    .split(/([\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff])/)
    .filter(Boolean)
    .map((part) => {
      if (!HIDDEN.test(part)) return part;
      const number = part.codePointAt(0).toString(16).toUpperCase();
      return element("span", { class: "hidden-letter", "data-letter": part }, `U+${number}`);
    });
}

function sourceOf(code) {
  return Array.from(code.childNodes, (node) => node.dataset?.letter ?? node.textContent).join("");
}

function drawList({ ordered, start, items }) {
  const attributes = ordered && start !== 1 ? { start } : {};
  return element(ordered ? "ol" : "ul", { dir: "auto", ...attributes }, ...items.map(drawItem));
}

/** An item of one paragraph stands without one. */
function drawItem({ blocks, checked }) {
  const [first, ...others] = blocks;
  const plain = first?.type === "paragraph";
  const box =
    checked === null
      ? null
      : element("input", {
          type: "checkbox",
          checked,
          disabled: true,
          "aria-label": checked ? "done" : "to do",
        });
  const begin = plain ? inline(first.text) : first ? [drawBlock(first)] : [];
  return element("li", { class: box && "task" }, box, ...begin, ...others.map(drawBlock));
}

function drawTable({ header, align, rows }) {
  const row = (cells, kind) =>
    element(
      "tr",
      {},
      ...cells.map((cell, column) => element(kind, { class: align[column], dir: "auto" }, ...inline(cell))),
    );
  const head = element("thead", {}, row(header, "th"));
  const body = element("tbody", {}, ...rows.map((cells) => row(cells, "td")));
  return element("div", { class: "table", tabindex: "0" }, element("table", {}, head, body));
}

const inline = (text) => parseInline(text).map(drawInline);

function drawInline(node) {
  const { type, text, nodes, url } = node;
  if (type === "text") return document.createTextNode(text);
  if (type === "break") return element("br");
  if (type === "code") return element("code", { dir: "ltr" }, ...visibleText(text));
  const inner = nodes.map(drawInline);
  if (type !== "link") return element(type, {}, ...inner);
  return element(
    "a",
    { href: url, title: url, target: "_blank", rel: "noopener noreferrer nofollow" },
    ...inner,
  );
}
