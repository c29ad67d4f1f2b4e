// Server-Sent Events out of the body of an answer: `fetch` can send a question along, `EventSource` can't.

/** The data of each event, as it comes. Comments, which only keep a connection open, are passed over. */
export async function* eventData(stream) {
  let lines = [];
  for await (const line of textLines(stream)) {
    if (line !== "") {
      lines.push(line);
      continue;
    }
    const data = dataOf(lines);
    lines = [];
    if (data !== null) yield data;
  }
}

function dataOf(lines) {
  const data = lines
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).replace(/^ /, ""));
  return data.length > 0 ? data.join("\n") : null;
}

async function* textLines(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split(/\r?\n/);
      rest = lines.pop();
      yield* lines;
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading also closes the connection
  }
}
