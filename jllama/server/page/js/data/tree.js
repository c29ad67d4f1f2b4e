// A conversation is a tree of messages. Each message remembers which of its answers was looked at last, so
// that the path from the root along `chosen` is what the page shows.

export const ROOT = "root";

export function newConversation(settings = {}, system = "") {
  const root = { id: ROOT, parent: null, role: "root", content: "", children: [], chosen: null };
  return {
    id: randomId(),
    title: "",
    model: "",
    updated: Date.now(),
    system,
    settings,
    count: 0,
    nodes: { root },
  };
}

// `crypto.randomUUID` exists on secure pages alone, and a page in the local network is none.
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The messages from the first one down to `id`, both included. */
export function ancestry(conversation, id) {
  const found = [];
  for (let node = conversation.nodes[id]; node && node.id !== ROOT; node = conversation.nodes[node.parent]) {
    found.push(node);
  }
  return found.reverse();
}

/** The messages that are shown now. */
export function path(conversation) {
  const found = [];
  let node = conversation.nodes[ROOT];
  while (node.chosen !== null) {
    node = conversation.nodes[node.chosen];
    found.push(node);
  }
  return found;
}

export function lastOf(conversation) {
  return path(conversation).at(-1) ?? conversation.nodes[ROOT];
}

/** Adds a message as the newest child of `parent`, and goes there. */
export function add(conversation, parent, message) {
  const system = parent === ROOT ? { system: systemOf(conversation) } : {};
  conversation.count += 1;
  const node = { id: `n${conversation.count}`, parent, children: [], chosen: null, ...system, ...message };
  conversation.nodes[node.id] = node;
  conversation.nodes[parent].children.push(node.id);
  select(conversation, node.id);
  return node;
}

/** Shows the branch that a message is on, and below it what was looked at last. */
export function select(conversation, id) {
  for (let node = conversation.nodes[id]; node.parent !== null; node = conversation.nodes[node.parent]) {
    conversation.nodes[node.parent].chosen = node.id;
  }
}

/** Takes a message out, with all that follows it. The message beside it is shown instead. */
export function remove(conversation, id) {
  const node = conversation.nodes[id];
  const parent = conversation.nodes[node.parent];
  const place = parent.children.indexOf(id);
  parent.children.splice(place, 1);
  if (parent.chosen === id) parent.chosen = parent.children[Math.max(0, place - 1)] ?? null;
  const doomed = [id];
  while (doomed.length > 0) {
    const next = doomed.pop();
    doomed.push(...conversation.nodes[next].children);
    delete conversation.nodes[next];
  }
}

/** The ids of the messages that stand at the same place, `id` among them. */
export function siblings(conversation, id) {
  return conversation.nodes[conversation.nodes[id].parent].children;
}

/** The last messages of all branches, in the order in which a reader of the tree meets them. */
export function leaves(conversation) {
  const found = [];
  const waiting = [ROOT];
  while (waiting.length > 0) {
    const node = conversation.nodes[waiting.pop()];
    if (node.children.length === 0 && node.id !== ROOT) found.push(node);
    waiting.push(...[...node.children].reverse());
  }
  return found;
}

/** The system prompt of the branch that is shown: the first question of each branch carries it. */
export function systemOf(conversation, nodes = path(conversation)) {
  return nodes[0]?.system ?? conversation.system;
}

export function setSystem(conversation, text) {
  conversation.system = text;
  const first = path(conversation)[0];
  if (first) first.system = text;
}

/** What a list calls the conversation: its name, or how it begins. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const words = (path(conversation)[0]?.content ?? "").replace(/\s+/g, " ").trim();
  return shortened(words, 60) || "New conversation";
}

export function shortened(text, most) {
  const letters = Array.from(text);
  return letters.length <= most
    ? text
    : `${letters
        .slice(0, most - 1)
        .join("")
        .trimEnd()}…`;
}
