// All branches of a conversation as a tree. A line of talk goes straight down; where versions part, each
// begins a column of its own.

import { path, ROOT, select, shortened } from "../data/tree.js";
import { element } from "./dom.js";
import { openSheet } from "./sheet.js";

export function openTree(page) {
  openSheet("Branches", (close) => {
    const go = (node) => {
      close();
      select(page.chat.conversation, node.id);
      page.chat.save();
      page.focusMessage(node.id);
    };
    return [drawTree(page.chat.conversation, go)];
  });
}

function drawTree(conversation, go) {
  const root = conversation.nodes[ROOT];
  if (root.children.length === 0) return element("p", { class: "hint" }, "There is no message yet.");
  const shown = new Set(path(conversation).map((node) => node.id));
  const tree = element(
    "ul",
    { role: "tree", class: "tree", "aria-label": "Branches" },
    ...drawChildren(conversation, root, shown, go, 1),
  );
  tree.addEventListener("keydown", onKey);
  const here = [...tree.querySelectorAll(".on-path")].at(-1) ?? tree.querySelector("button");
  here.tabIndex = 0;
  here.autofocus = true;
  here.setAttribute("autofocus", "");
  return tree;
}

/** The line from a message on, until it parts; then a list for each part. */
function drawChildren(conversation, parent, shown, go, level) {
  const rows = [];
  let node = parent;
  while (node.children.length === 1) {
    node = conversation.nodes[node.children[0]];
    rows.push(element("li", { role: "none" }, drawLine(node, shown, go, level)));
  }
  const parts = node.children.map((id) =>
    drawPart(conversation, conversation.nodes[id], shown, go, level + 1),
  );
  if (parts.length > 0)
    rows.push(element("li", { role: "none" }, element("ul", { role: "group" }, ...parts)));
  return rows;
}

function drawPart(conversation, node, shown, go, level) {
  const below = drawChildren(conversation, node, shown, go, level);
  return element(
    "li",
    { role: "none", class: "part" },
    drawLine(node, shown, go, level),
    element("ul", { role: "group", class: "line" }, ...below),
  );
}

function drawLine(node, shown, go, level) {
  const words =
    shortened(
      node.content
        .replace(/[*`#>]+/g, "")
        .replace(/\s+/g, " ")
        .trim(),
      90,
    ) || "(empty)";
  const on = shown.has(node.id);
  const attributes = {
    type: "button",
    role: "treeitem",
    "aria-level": level,
    "aria-selected": on,
    tabindex: "-1",
    dir: "auto",
    class: `branch-line ${node.role}${on ? " on-path" : ""}`,
    onclick: () => go(node),
  };
  return element("button", attributes, words);
}

function onKey(event) {
  const lines = [...event.currentTarget.querySelectorAll("[role=treeitem]")];
  const at = lines.indexOf(document.activeElement);
  const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: lines.length - 1 }[event.key];
  if (next === undefined || !lines[next]) return;
  lines[at].tabIndex = -1;
  lines[next].tabIndex = 0;
  lines[next].focus();
  event.preventDefault();
}
