// Conversations to and from files.

import { ArchiveError, fromArchive, toArchive } from "./data/archive.js";
import { titleOf } from "./data/tree.js";
import { element } from "./view/dom.js";

/** Offers a conversation as a download. Returns how many branches did not fit in it. */
export function exportConversation(conversation) {
  const { document: saved, left } = toArchive(conversation);
  const url = URL.createObjectURL(new Blob([JSON.stringify(saved, null, 1)], { type: "application/json" }));
  const link = element("a", { href: url, download: `${fileName(titleOf(conversation))}.json`, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  return left;
}

/** Letters and digits alone, which every file system takes. */
function fileName(title) {
  const plain = title
    .normalize("NFC")
    .replace(/[^\p{L}\p{M}\p{N}]+/gu, "-")
    .replace(/^-+|-+$/g, "");
  return Array.from(plain).slice(0, 48).join("") || "conversation";
}

/** The conversations in the files, and a sentence for each file that has none. */
export async function importFiles(files) {
  const found = { conversations: [], wrong: [] };
  for (const file of files) {
    try {
      const conversation = fromArchive(await file.text());
      conversation.title ||= file.name.replace(/\.json$/i, "").slice(0, 200);
      found.conversations.push(conversation);
    } catch (error) {
      found.wrong.push(
        `${file.name} can't be imported: ${error instanceof ArchiveError ? error.message : "it is damaged"}.`,
      );
    }
  }
  return found;
}
