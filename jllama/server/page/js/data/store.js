// Conversations in the browser's storage: one entry each, and a draft beside it. A full storage loses no
// words: what does not fit stays in memory, and the page says so.

import { lasting } from "./storage.js";
import { titleOf } from "./tree.js";

const PREFIX = "jllama.conversation.";
const DRAFT = "jllama.draft.";

export class Store extends EventTarget {
  #conversations = new Map();
  #unsaved = new Set();

  constructor(storage = lasting) {
    super();
    this.storage = storage;
    for (const key of this.#keys()) this.#read(key);
  }

  #keys() {
    return Object.keys(this.storage).filter((key) => key.startsWith(PREFIX));
  }

  /**
   * An entry that is damaged is left alone: another version of the page may know it. The clock of an answer
   * that was broken off says nothing.
   */
  #read(key) {
    try {
      const conversation = JSON.parse(this.storage.getItem(key));
      if (!conversation?.nodes?.root || `${PREFIX}${conversation.id}` !== key) return;
      for (const node of Object.values(conversation.nodes)) if (isGrowing(node)) delete node.stats;
      this.#conversations.set(conversation.id, conversation);
    } catch {
      return;
    }
  }

  /** Newest first. */
  all() {
    return [...this.#conversations.values()].sort((one, other) => other.updated - one.updated);
  }

  get(id) {
    return this.#conversations.get(id);
  }

  /** Keeps a conversation. Of old ones the details of tokens go first when there is no more room. */
  save(conversation) {
    this.#conversations.set(conversation.id, conversation);
    if (this.#write(conversation) || this.#makeRoom(conversation)) this.#unsaved.delete(conversation.id);
    else this.#tellFull(conversation);
    this.dispatchEvent(new Event("change"));
  }

  #write(conversation) {
    try {
      this.storage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
      return true;
    } catch {
      return false;
    }
  }

  #makeRoom(conversation) {
    const oldest = this.all()
      .reverse()
      .filter((other) => other.id !== conversation.id);
    for (const other of [...oldest, conversation]) {
      if (dropTokens(other) && (other === conversation || this.#write(other)) && this.#write(conversation))
        return true;
    }
    return false;
  }

  /** Once for each conversation, not at every word of an answer. */
  #tellFull(conversation) {
    if (this.#unsaved.has(conversation.id)) return;
    this.#unsaved.add(conversation.id);
    this.dispatchEvent(new CustomEvent("full", { detail: titleOf(conversation) }));
  }

  /** Forgets a conversation; `save` brings it back. */
  delete(id) {
    this.#conversations.delete(id);
    this.storage.removeItem(PREFIX + id);
    this.storage.removeItem(DRAFT + id);
    this.dispatchEvent(new Event("change"));
  }

  /**
   * What another tab wrote or deleted. A conversation that is `busy` here stays as it is. Returns the id
   * of the one that changed, or null.
   */
  takeForeign(key, busy) {
    const id = key?.startsWith(PREFIX) ? key.slice(PREFIX.length) : null;
    if (id === null || busy({ id })) return null;
    if (this.storage.getItem(key) === null) this.#conversations.delete(id);
    else this.#read(key);
    this.dispatchEvent(new Event("change"));
    return id;
  }

  draft(id) {
    return this.storage.getItem(this.#draftKey(id)) ?? "";
  }

  /** All conversations that have no message yet share one draft: after a reload, theirs is another number. */
  #draftKey(id) {
    return DRAFT + (this.#conversations.has(id) ? id : "new");
  }

  saveDraft(id, text) {
    try {
      if (text) this.storage.setItem(this.#draftKey(id), text);
      else this.storage.removeItem(this.#draftKey(id));
    } catch {
      return; // it stays in its field
    }
  }
}

const isGrowing = (node) => node.stats !== undefined && "asked" in node.stats;

/** The most of what a conversation weighs, and nothing that anyone wrote. */
function dropTokens(conversation) {
  const heavy = Object.values(conversation.nodes).filter((node) => node.tokens && !isGrowing(node));
  for (const node of heavy) delete node.tokens;
  return heavy.length > 0;
}

/** A small setting of the page: read, or written if there is room. */
export function preference(name, otherwise) {
  try {
    return JSON.parse(lasting.getItem(`jllama.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function setPreference(name, value) {
  try {
    lasting.setItem(`jllama.${name}`, JSON.stringify(value));
  } catch {
    return;
  }
}
