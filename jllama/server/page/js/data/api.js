// The server's OpenAI-compatible API: which models there are, and an answer as a stream of chunks.

import { eventData } from "./sse.js";
import { lasting, ofThisTab } from "./storage.js";

const KEY = "jllama.key";

/** What a server refused, or why there was no answer: `kind` says what can be done about it (errors.js). */
export class ApiError extends Error {
  constructor(message, details = {}) {
    super(message);
    Object.assign(this, { status: 0, code: null, param: null, retryAfter: null, ...details });
  }
}

export const getKey = () => ofThisTab.getItem(KEY) ?? lasting.getItem(KEY) ?? "";

/** Keeps the key for this tab, or in this browser until another one is entered. */
export function setKey(key, keep) {
  ofThisTab.removeItem(KEY);
  lasting.removeItem(KEY);
  if (key) (keep ? lasting : ofThisTab).setItem(KEY, key);
}

export async function listModels() {
  const response = await call("v1/models", {});
  const { data } = await response.json();
  return data;
}

/** The chunks of an answer. Raises an ApiError if the server reports one, or if the stream ends too early. */
export async function* streamAnswer(body, signal) {
  const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  let ended = false;
  for await (const data of guarded(eventData(response.body), signal)) {
    if (data === "[DONE]") return;
    const chunk = parsedChunk(data);
    ended ||= chunk.choices?.some((choice) => choice.finish_reason) ?? false;
    yield chunk;
  }
  if (!ended) throw new ApiError("The connection ended before the answer did.", { code: "cut" });
}

function parsedChunk(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ApiError("The server sent what is no JSON.", { code: "cut" });
  }
  if (chunk.error) throw fromBody(chunk, { status: Number(chunk.error.code) || 500 });
  return chunk;
}

/** A broken connection, as an error of ours; a stop by the user stays what it is. */
async function* guarded(events, signal) {
  try {
    yield* events;
  } catch (error) {
    if (signal?.aborted || error instanceof ApiError) throw error;
    throw new ApiError("The connection broke.", { code: "cut" });
  }
}

async function call(path, options) {
  const response = await reached(new URL(path, document.baseURI), { ...options, headers: headers(options) });
  if (response.ok) return response;
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const body = await response.json().catch(() => ({}));
  throw fromBody(body, { status: response.status, retryAfter });
}

async function reached(url, options) {
  try {
    return await fetch(url, { ...options, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("The server can't be reached.", { code: "unreachable" });
  }
}

function headers({ body }) {
  const key = getKey();
  return {
    ...(body ? { "Content-Type": "application/json" } : {}),
    ...(key ? { Authorization: `Bearer ${key}` } : {}),
  };
}

function fromBody(body, details) {
  const { message, code = null, param = null } = body?.error ?? {};
  return new ApiError(message || `The server answered with status ${details.status}.`, {
    ...details,
    code,
    param,
  });
}
