// Conversations as `jllama chat --load` reads them and `/save` writes them (jllama/chat/archive/document.py).

import { ancestry, leaves, newConversation, add, path, ROOT, select, setSystem, systemOf } from "./tree.js";
import { readSettings } from "./settings.js";
import { idsOf } from "./tokens.js";

export const FORMAT = "jllama conversation 1";
const MOST_BRANCHES = 100;
const MOST_BYTES = 2 ** 25;
// `jllama chat` is greedy where a file gives no temperature; these are its own values without a file.
const DRAWN = { temperature: 0.7, top_p: 0.95 };

export class ArchiveError extends Error {}

/** The document, and how many branches did not fit in it. */
export function toArchive(conversation) {
  const { kept, left } = nameBranches(conversation);
  const [numbers, messages] = numbered(kept.map((branch) => branch.nodes));
  const branches = {};
  for (const { name, nodes } of kept) branches[name] = savedBranch(conversation, nodes, numbers);
  const { transcript = null, on_overflow = "drop_oldest" } = conversation.archive ?? {};
  const document = {
    format: FORMAT,
    title: conversation.title,
    model: conversation.model,
    settings: { ...DRAWN, ...conversation.settings },
    transcript,
    on_overflow,
    current: kept.find((branch) => branch.current)?.name ?? kept[0].name,
    branches,
    messages,
    cache_sha256: null,
  };
  return { document, left };
}

function savedBranch(conversation, nodes, numbers) {
  return {
    system: systemOf(conversation, nodes) || null,
    dropped: Math.min(nodes.length / 2, Math.max(0, ...nodes.map((node) => node.dropped ?? 0))),
    messages: nodes.map((node) => numbers.get(node.id)),
  };
}

/** Messages that branches share stand in the file once. */
function numbered(paths) {
  const numbers = new Map();
  const messages = [];
  for (const node of paths.flat()) {
    if (numbers.has(node.id)) continue;
    numbers.set(node.id, messages.length);
    messages.push(savedMessage(node));
  }
  return [numbers, messages];
}

/** With the answer's own tokens, if they are known: the chat goes on from these. */
function savedMessage(node) {
  const ids = node.token_ids ?? idsOf(node);
  const known = ids && node.content === node.content.trimStart() ? { token_ids: ids } : {};
  return { role: node.role, content: node.content, ...known, ...(node.cut ? { cut: true } : {}) };
}

/**
 * Each leaf is a branch, and so is each message where a branch of the file ended that was read in. A question
 * without an answer is left out: the format has none.
 */
function nameBranches(conversation) {
  const shown = answered(path(conversation));
  const free = new Map(
    Object.values(conversation.nodes)
      .filter((node) => node.branch)
      .map((node) => [node.branch, node.id]),
  );
  const ends = new Map();
  for (const leaf of leaves(conversation)) {
    const nodes = answered(ancestry(conversation, leaf.id));
    const end = nodes.at(-1)?.id ?? ROOT;
    if (!ends.has(end)) ends.set(end, { nodes, name: takeName(nodes, free) });
  }
  for (const [name, id] of free)
    if (!ends.has(id)) ends.set(id, { nodes: answered(ancestry(conversation, id)), name });
  let found = withoutStumps([...ends.values()], shown);
  if (found.length === 0) found = [{ nodes: [], name: "main" }];
  const current = shown.at(-1)?.id;
  for (const branch of found) branch.current = branch.nodes.at(-1)?.id === current;
  found.sort((one, other) => Number(other.current) - Number(one.current));
  const kept = found.slice(0, MOST_BRANCHES);
  inventNames(kept);
  return { kept, left: found.length - kept.length };
}

/**
 * An unanswered question leaves a path that another branch goes on with: no branch of its own, unless it is
 * shown.
 */
function withoutStumps(branches, shown) {
  const inner = new Set(branches.flatMap(({ nodes }) => nodes.slice(0, -1).map((node) => node.id)));
  return branches.filter(({ nodes, name }) => {
    const last = nodes.at(-1)?.id;
    return name !== undefined || last === shown.at(-1)?.id || (last !== undefined && !inner.has(last));
  });
}

const answered = (nodes) => nodes.slice(0, nodes.length - (nodes.length % 2));

/** The name of the branch that a path goes on with, once. */
function takeName(nodes, free) {
  const named = nodes.findLast((node) => node.branch && free.has(node.branch));
  if (named) free.delete(named.branch);
  return named?.branch;
}

function inventNames(branches) {
  const taken = new Set(branches.map((branch) => branch.name));
  let number = 1;
  for (const branch of branches) {
    while (branch.name === undefined) {
      const name = number === 1 ? "main" : `branch-${number}`;
      number += 1;
      if (!taken.has(name)) branch.name = name;
    }
  }
}

/** A conversation out of a file's text. */
export function fromArchive(text) {
  if (text.length > MOST_BYTES) throw new ArchiveError("it is larger than any conversation");
  const saved = parse(text);
  const conversation = newConversation(readSettings(saved.settings));
  conversation.model = textOr(saved.model, "");
  conversation.title = textOr(saved.title, "").slice(0, 200);
  conversation.archive = {
    transcript: saved.transcript ?? null,
    on_overflow: textOr(saved.on_overflow, "drop_oldest"),
  };
  const known = new Map();
  let current = null;
  for (const [name, branch] of Object.entries(saved.branches)) {
    const end = readBranch(conversation, saved, branch, known);
    if (end && end.branch === undefined) end.branch = name;
    if (name === saved.current) current = end;
    if (name === saved.current && !end) setSystem(conversation, branch.system ?? "");
  }
  if (current) show(conversation, current);
  return conversation;
}

/** The branch that the file calls current, even if others go on where it ends. */
function show(conversation, end) {
  select(conversation, end.id);
  conversation.nodes[end.id].chosen = null;
  conversation.system = systemOf(conversation);
}

function parse(text) {
  let saved;
  try {
    saved = JSON.parse(text);
  } catch {
    throw new ArchiveError("it is no JSON");
  }
  need(
    isObject(saved) && saved.format === FORMAT,
    `it is no conversation of jllama (format ${JSON.stringify(FORMAT)})`,
  );
  need(
    isObject(saved.settings) && isObject(saved.branches) && Array.isArray(saved.messages),
    "parts of it are missing",
  );
  need(Object.keys(saved.branches).length > 0, "it has no branch");
  saved.messages.forEach(checkMessage);
  return saved;
}

function checkMessage(message) {
  need(isObject(message) && typeof message.content === "string", "a message has no text");
  need(
    message.role === "user" || message.role === "assistant",
    "a message is neither a question nor an answer",
  );
}

/** Adds what a branch has and others before it had not. Returns its last message. */
function readBranch(conversation, saved, branch, known) {
  need(isObject(branch) && Array.isArray(branch.messages), "a branch has no messages");
  const system = branch.system ?? "";
  need(typeof system === "string", "a system prompt is no text");
  let place = ROOT;
  let key = JSON.stringify(system);
  branch.messages.forEach((number, at) => {
    const message = saved.messages[number];
    need(message?.role === (at % 2 ? "assistant" : "user"), "questions and answers do not alternate");
    key += ` ${number}`;
    if (!known.has(key))
      known.set(key, add(conversation, place, { ...messageNode(message), ...(at ? {} : { system }) }).id);
    place = known.get(key);
  });
  if (place !== ROOT && branch.dropped > 0) conversation.nodes[place].dropped = branch.dropped;
  return place === ROOT ? null : conversation.nodes[place];
}

function messageNode({ role, content, token_ids, cut }) {
  const ids = Array.isArray(token_ids) ? { token_ids } : {};
  return { role, content, ...ids, ...(cut === true ? { cut: true } : {}) };
}

function need(sound, otherwise) {
  if (!sound) throw new ArchiveError(otherwise);
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const textOr = (value, otherwise) => (typeof value === "string" ? value : otherwise);
