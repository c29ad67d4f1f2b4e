// Which model answers, and how full its context is.

import { path } from "../data/tree.js";
import { element } from "./dom.js";

const number = new Intl.NumberFormat("en");

export class ModelView {
  constructor(page, select, context) {
    Object.assign(this, { page, select, context });
    select.addEventListener("change", () => page.chat.setModel(select.value));
  }

  refresh() {
    const { models, conversation } = this.page.chat;
    const chosen = this.page.chat.modelOf(conversation);
    const ids = models.length > 0 ? models.map((model) => model.id) : [chosen || "no model"];
    if (String([...this.select.options].map((option) => option.value)) !== String(ids)) {
      this.select.replaceChildren(...ids.map((id) => element("option", { value: id }, shortName(id))));
    }
    this.select.value = chosen || ids[0];
    this.select.disabled = ids.length < 2;
    this.select.title = this.select.value;
    this.#drawContext(models.find((model) => model.id === chosen));
  }

  /** As of the last answer: all that the next message will stand behind. */
  #drawContext(model) {
    const last = path(this.page.chat.conversation).findLast((node) => node.stats?.prompt !== undefined);
    const room = model?.max_model_len;
    const used = last && last.stats.prompt + (last.stats.generated ?? 0);
    this.context.textContent = used && room ? `${number.format(used)} of ${number.format(room)} tokens` : "";
    this.context.classList.toggle("nearly-full", Boolean(used && room && used > 0.85 * room));
  }
}

/** The last part of a path or a reference, which is what tells models apart. */
function shortName(id) {
  return id.replace(/^.*\//, "").replace(/^pypi:/, "");
}
