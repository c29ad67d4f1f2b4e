// What an error of the server means for the user, and what can be done about it.

/** `{ text, advice, actions }` for a notice. `remedies` has what the chat offers; `page` the sheets. */
export function explain(error, remedies, page) {
  const { status, code, message } = error;
  const again = ["Try again", remedies.retry];
  if (code === "unreachable")
    return told(message, "Is `jllama serve` still running? Nothing is lost.", [again]);
  if (code === "cut")
    return told(message, "What came is kept; the answer can go on.", [["Try again", remedies.retry]]);
  if (status === 401)
    return told("The server wants an API key.", message, [
      ["Enter the key", () => page.askKey(remedies.retry)],
    ]);
  if (code === "context_length_exceeded") return tooLong(error, remedies);
  if (status === 404)
    return told(message, "The server may have another model now.", [
      ["Look again", () => page.reloadModels(remedies.retry)],
    ]);
  if (status === 413) return told(message, "The message is larger than the server takes: shorten it.", []);
  if (status === 429) return told("The server is busy.", waiting(error), [again]);
  if (status === 400)
    return told(message, "The server refused the request: a setting may be out of its range.", [
      ["Settings", () => page.openSettings()],
      again,
    ]);
  return told(message, "The server's log says more. Nothing is lost.", [again]);
}

function tooLong({ message }, { retry, leaveOut }) {
  if (!leaveOut) return told(message, "Shorten the message or the system prompt.", [["Try again", retry]]);
  return told(message, "The model can't read all of this conversation at once.", [
    ["Leave out the oldest turns", leaveOut],
  ]);
}

const waiting = ({ retryAfter, message }) => (retryAfter ? `Try again in ${retryAfter} s.` : message);

/** Only what can be done is offered. */
function told(text, advice, actions) {
  return { text, advice, actions: actions.filter(([, act]) => act) };
}
