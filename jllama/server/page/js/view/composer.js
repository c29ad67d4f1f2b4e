// Where messages are typed. Enter sends, Shift-Enter begins a new line; what was typed is kept as a draft.

export class Composer {
  constructor(page, form, area, send, stop) {
    Object.assign(this, { page, form, area, send, stop });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    area.addEventListener("keydown", (event) => this.#onKey(event));
    area.addEventListener("input", () => this.#changed());
  }

  #onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.submit();
  }

  submit() {
    const text = this.area.value.trim();
    if (!text || this.page.chat.job()) return;
    this.set("");
    this.page.notices.clear();
    this.page.thread.follow = true;
    this.page.chat.ask(text);
  }

  set(text) {
    this.area.value = text;
    this.#changed();
  }

  /** Puts a text there to be sent or changed; what stood there stays before it. */
  suggest(text) {
    const typed = this.area.value.trim();
    this.set(typed ? `${typed}\n${text}` : text);
    this.area.focus();
  }

  /** A question that found no answer comes back, unless something else was typed meanwhile. */
  restore(text) {
    if (this.area.value.trim()) this.suggest(text);
    else this.set(text);
  }

  #changed() {
    this.page.chat.store.saveDraft(this.page.chat.conversation.id, this.area.value);
    this.fit();
    this.refresh();
  }

  /** As high as its text, up to a part of the window (layout.css). */
  fit() {
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight}px`;
  }

  open() {
    this.area.value = this.page.chat.store.draft(this.page.chat.conversation.id);
    this.fit();
    this.refresh();
  }

  refresh() {
    const busy = Boolean(this.page.chat.job());
    const focused = document.activeElement;
    this.stop.hidden = !busy;
    this.send.hidden = busy;
    this.send.disabled = this.area.value.trim() === "";
    if (focused === this.stop && !busy) this.area.focus();
  }
}
