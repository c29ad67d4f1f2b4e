// What can be done with a conversation: ask, answer again, edit, fork at a token, go on, stop. The page
// listens.

import { Answers } from "./answers.js";
import { listModels } from "./data/api.js";
import { requestBody } from "./data/request.js";
import { preference, setPreference } from "./data/store.js";
import { aligned, isSpecial, spelled, withoutIds } from "./data/tokens.js";
import { add, lastOf, newConversation, remove, ROOT, select } from "./data/tree.js";

/**
 * Events: `open`, `change`, `begin`, `grow` (detail: message), `end` (message), `trouble` ({ error, retry,
 * … }), `models`.
 */
export class Chat extends EventTarget {
  models = [];
  #answers = new Answers(this);

  constructor(store) {
    super();
    this.store = store;
    this.conversation = store.get(preference("open")) ?? store.all()[0] ?? this.#fresh();
  }

  #fresh() {
    return newConversation({ ...preference("settings", {}) }, preference("system", ""));
  }

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  open(id) {
    this.conversation = this.store.get(id) ?? this.store.all()[0] ?? this.#fresh();
    setPreference("open", this.conversation.id);
    this.tell("open");
  }

  create() {
    this.conversation = this.#fresh();
    setPreference("open", this.conversation.id);
    this.tell("open");
  }

  /** Takes in a conversation from a file, or one that was deleted a moment ago. */
  adopt(conversation) {
    this.store.save(conversation);
    this.open(conversation.id);
  }

  delete(conversation) {
    this.job(conversation)?.abort.abort();
    this.store.delete(conversation.id);
    if (conversation === this.conversation) this.open(null);
  }

  save(conversation = this.conversation) {
    this.store.save(conversation);
    this.tell("change");
  }

  job(conversation = this.conversation) {
    return this.#answers.of(conversation);
  }

  async loadModels() {
    try {
      this.models = withoutAliases(await listModels());
    } catch (error) {
      this.tell("trouble", { error, retry: () => this.loadModels() });
    }
    this.tell("models");
  }

  /** The model that answers: the conversation's own if the server has it. */
  modelOf(conversation) {
    const known = this.models.map((model) => model.id);
    const wanted = [conversation.model, preference("model", "")].find((id) => known.includes(id));
    return wanted ?? known[0] ?? conversation.model;
  }

  /** The model that runs now: its name, and since when. The same name may be another model's tomorrow. */
  #stamp(conversation) {
    const model = this.models.find(({ id }) => id === this.modelOf(conversation));
    return model ? `${model.id} ${model.created}` : "";
  }

  setModel(id) {
    this.conversation.model = id;
    setPreference("model", id);
    if (lastOf(this.conversation).id !== ROOT) this.store.save(this.conversation);
  }

  /** A new question below what is shown. If no answer comes, the question goes back to where it was typed. */
  ask(text) {
    const { conversation } = this;
    setPreference("open", conversation.id);
    const question = add(conversation, lastOf(conversation).id, { role: "user", content: text });
    this.#answer(conversation, question, { undo: () => this.#takeBack(conversation, question) });
  }

  #takeBack(conversation, question) {
    remove(conversation, question.id);
    return { restored: question.content, conversation };
  }

  /** Another answer to the same question, or the first one if there is none. */
  async regenerate(question) {
    const { conversation } = this;
    await this.#answers.settle(conversation);
    this.#answer(conversation, question, {});
  }

  /** Another version of a message, beside it. A question is asked; an answer stands as it was written. */
  async edit(node, text) {
    const { conversation } = this;
    await this.#answers.settle(conversation);
    const asked = node.role === "user";
    const version = { role: node.role, content: text, ...(asked ? {} : { cut: true, edited: true }) };
    const made = add(conversation, node.parent, version);
    if (asked && node.children.length === 0) remove(conversation, node.id);
    if (asked) this.#answer(conversation, made, {});
    else this.save(conversation);
  }

  select(node) {
    select(this.conversation, node.id);
    this.save();
  }

  /** Goes on with an answer that was cut. */
  async resume(node) {
    const { conversation } = this;
    await this.#answers.settle(conversation);
    this.#own(conversation, node);
    const body = this.#request(conversation, node.parent, { begun: node });
    this.#answers.run({ conversation, node, body });
  }

  /** From now on the message is of the model that runs. Ids of another one's tokens mean nothing to it. */
  #own(conversation, node) {
    const stamp = this.#stamp(conversation);
    if (node.stamp !== stamp) Object.assign(node, { stamp, tokens: withoutIds(node.tokens) });
  }

  /**
   * Another answer that has the same tokens up to `place`, then `alternative`, and goes on from there.
   * Returns whether it can: what ends within a character is no text that could be sent.
   */
  fork(node, place, alternative) {
    const { conversation } = this;
    const tokens = aligned(node.tokens, node.content);
    const begin = [...tokens.slice(0, place), { ...alternative, a: tokens[place].a, f: 1 }];
    const prefix = spelled(begin);
    if (prefix === null) return false;
    const question = conversation.nodes[node.parent];
    const thoughts = node.reasoning ? { reasoning: node.reasoning } : {};
    if (isSpecial(alternative)) this.#endAt(question, begin.slice(0, -1), thoughts);
    else
      this.#answer(conversation, question, {
        content: prefix,
        tokens: begin,
        stamp: node.stamp,
        ...thoughts,
      });
    return true;
  }

  /** An answer that ends after these tokens, as the model might have ended it. */
  #endAt(question, tokens, thoughts) {
    const answer = { role: "assistant", content: spelled(tokens), tokens, ...thoughts };
    add(this.conversation, question.id, answer);
    this.save();
  }

  stop() {
    this.job()?.abort.abort();
  }

  #request(conversation, question, details) {
    conversation.model = this.modelOf(conversation);
    return requestBody(conversation, question, { ...details, stamp: this.#stamp(conversation) });
  }

  /** Asks for an answer, which may have a beginning: `content`, its `tokens`, `reasoning` before it. */
  #answer(conversation, question, { undo = null, ...start }) {
    const again = question.children.length;
    const node = add(conversation, question.id, { role: "assistant", content: "", ...start });
    node.tokens = [...(start.tokens ?? [])]; // a second try begins with the same ones
    this.#own(conversation, node);
    const body = this.#request(conversation, question.id, { begun: node.content ? node : null, again });
    const retry = () => this.#again(conversation, question, start);
    this.#answers.run({ conversation, node, body, fresh: true, undo, retry });
  }

  async #again(conversation, question, start) {
    if (this.conversation !== conversation) this.open(conversation.id);
    await this.#answers.settle(conversation);
    if (conversation.nodes[question.id]) this.#answer(conversation, question, start);
    else this.ask(question.content);
  }
}

/** A model of several names is listed under each of them: the first is enough to choose from. */
function withoutAliases(models) {
  const rootOf = (model) => model.root ?? model.id;
  return models.filter((model, at) => models.findIndex((other) => rootOf(other) === rootOf(model)) === at);
}
