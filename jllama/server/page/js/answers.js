// The answers that are being written: each reads its stream to the end, is kept meanwhile, and tells the
// chat what became of it.

import { beginAnswer, endAnswer, takeChunk } from "./data/answer.js";
import { streamAnswer } from "./data/api.js";
import { leftOut } from "./data/request.js";
import { ancestry, remove } from "./data/tree.js";

const SAVE_EVERY = 1000; // milliseconds, while an answer grows

export class Answers {
  #jobs = new Map();

  constructor(chat) {
    this.chat = chat;
  }

  /** The answer that a conversation waits for: `{ conversation, node, abort, … }`. */
  of(conversation) {
    return this.#jobs.get(conversation.id);
  }

  /**
   * Reads an answer into its message. `fresh`: the message is new, and goes if no word comes; `undo`
   * takes back its question too; `retry` asks again.
   */
  run(task) {
    const { conversation, node } = task;
    const job = { conversation, node, abort: new AbortController(), begun: node.content, saving: null };
    this.#begin(job);
    job.ended = this.#write(job, task);
  }

  async #write(job, { conversation, node, body, fresh = false, undo = null, retry = null }) {
    const error = await this.#read(job, body);
    if (!this.#end(job)) return;
    const empty = fresh && !node.finish && node.content === job.begun && !node.reasoning;
    const remedies = error && remediesFor(job, empty ? retry : () => this.chat.resume(node));
    if (empty) remove(conversation, node.id);
    const restored = empty && error && undo ? undo() : {};
    this.chat.save(conversation);
    this.chat.tell("end", node);
    if (error) this.chat.tell("trouble", { error, ...remedies, ...restored });
  }

  /** Stops the answer that a conversation waits for, if there is one, and waits for its end. */
  async settle(conversation) {
    const job = this.of(conversation);
    job?.abort.abort();
    await job?.ended;
  }

  #begin(job) {
    const { conversation, node } = job;
    this.#jobs.set(conversation.id, job);
    delete node.finish;
    beginAnswer(node, performance.now());
    conversation.updated = Date.now();
    this.chat.save(conversation);
    if (conversation === this.chat.conversation) this.chat.tell("begin");
  }

  /** Reads the stream to its end. Returns what went wrong, or null. */
  async #read(job, body) {
    try {
      for await (const chunk of streamAnswer(body, job.abort.signal)) {
        takeChunk(job.node, chunk, performance.now());
        this.#grown(job);
      }
    } catch (error) {
      if (!job.abort.signal.aborted) return error;
    }
    return null;
  }

  /** What grows is kept once in a while, so that little is lost if the page goes. */
  #grown(job) {
    job.saving ??= setTimeout(() => this.#keep(job), SAVE_EVERY);
    if (job.conversation === this.chat.conversation) this.chat.tell("grow", job.node);
  }

  #keep(job) {
    job.saving = null;
    if (this.of(job.conversation) === job) this.chat.store.save(job.conversation);
  }

  /** Whether the conversation is still there: it may have been deleted meanwhile. */
  #end(job) {
    clearTimeout(job.saving);
    this.#jobs.delete(job.conversation.id);
    endAnswer(job.node);
    return this.chat.store.get(job.conversation.id) !== undefined;
  }
}

/**
 * What can be offered after an error: to try again, and to do so without the oldest turns if there are
 * some.
 */
function remediesFor({ conversation, node }, retry) {
  const before = ancestry(conversation, conversation.nodes[node.parent].parent);
  const [turns, gone] = [before.length / 2, leftOut(before)];
  if (gone >= turns) return { retry };
  const leaveOut = () => {
    before.at(-1).dropped = gone + Math.max(1, Math.ceil((turns - gone) / 4));
    retry();
  };
  return { retry, leaveOut };
}
