// Elements, built node by node: text is only ever text, so that no model's output becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * `element("button", { class: "x", onclick }, "text", child)`. A value of false or null leaves an attribute
 * out.
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) setAttribute(made, key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

function setAttribute(made, key, value) {
  if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
  else if (key.startsWith("aria-")) made.setAttribute(key, String(value));
  else if (value === true) made.setAttribute(key, "");
  else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
}

/** A button with a drawn sign, and a name that is read out and shown as a tip. */
export function iconButton(name, label, onclick, attributes = {}) {
  return element(
    "button",
    { type: "button", class: "small-button", "aria-label": label, title: label, onclick, ...attributes },
    icon(name),
  );
}

// Drawn on a square of 24, in lines.
const SHAPES = {
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "M6 6l12 12M18 6L6 18",
  plus: "M12 5v14M5 12h14",
  import: "M12 4v11m0 0l-4-4m4 4l4-4M5 19h14",
  export: "M12 15V4m0 0L8 8m4-4l4 4M5 19h14",
  tokens: "M4 8h5M11 8h9M4 12h9M15 12h5M4 16h3M9 16h8",
  branch: "M6 4v16M6 10c0 4 12 1 12 6M18 16v4",
  settings: "M4 8h9M17 8h3M4 16h3M11 16h9M13 8a2 2 0 104 0 2 2 0 10-4 0M7 16a2 2 0 104 0 2 2 0 10-4 0",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  edit: "M5 19l1-4L16 5l3 3L9 18z",
  key: "M14 10a4 4 0 10-1 2.6L16 15.5V18h2.5v2H21v-3l-6.5-5.5",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  down: "M12 5v14m0 0l-6-6m6 6l6-6",
  send: "M12 19V5m0 0l-6 6m6-6l6 6",
  stop: "M8 8h8v8H8z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 12l5 5 9-10",
  again: "M19 12a7 7 0 11-2-5l2 2m0-4v4h-4",
  onward: "M5 6l7 6-7 6zM14 6l6 6-6 6z",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
};

export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  const attributes = {
    viewBox: "0 0 24 24",
    class: `icon icon-${name}`,
    "aria-hidden": "true",
    focusable: "false",
  };
  for (const [key, value] of Object.entries(attributes)) drawing.setAttribute(key, value);
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", SHAPES[name]);
  drawing.append(line);
  return drawing;
}

/** Draws the signs of the buttons that stand in the page's own HTML. */
export function drawIcons(root) {
  for (const button of root.querySelectorAll("[data-icon]")) button.prepend(icon(button.dataset.icon));
}

/**
 * Shows exactly these children, in this order. Those that stand there already are not touched: focus stays.
 */
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  children.forEach((child, place) => {
    if (parent.childNodes[place] !== child) parent.insertBefore(child, parent.childNodes[place] ?? null);
  });
}

/** Copies a text; where the page is not secure, browsers offer the old way alone. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const focused = document.activeElement;
  const area = element("textarea", { class: "hidden", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!done) throw new Error("the browser does not let this page copy");
}

/** A button that copies, and says that it did. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const done = await copyText(text()).then(
      () => true,
      () => false,
    );
    button.replaceChildren(icon(done ? "check" : "close"));
    button.setAttribute("aria-label", done ? "Copied" : "Not copied: select the text and copy it");
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.setAttribute("aria-label", label);
    }, 1600);
  });
  return button;
}
