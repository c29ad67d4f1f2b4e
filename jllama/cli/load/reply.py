"""What comes back for a request, as it comes: its text is not kept, the moments at which it came are."""

import asyncio
from typing import Any

import msgspec

from jllama.errors import escaped

LONGEST_KIND = 300  # characters of a message


class RequestError(Exception):
    """A request that was not answered; its words are the same for all that failed so."""


class UnreachableError(RequestError):
    """No connection can be opened."""


class DroppedError(RequestError):
    """The connection was closed before anything came back."""


class Reply:
    """Keeps all bytes."""

    def __init__(self) -> None:
        """Waits in the running event loop."""
        self.restart()

    def restart(self) -> None:
        """As if nothing had been sent."""
        self.status, self.data = 0, bytearray()
        self.ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def body(self, data: bytes, now: float) -> None:
        """Bytes of the body that came at `now` (seconds, of `time.perf_counter`)."""
        self.data += data

    def end(self, now: float) -> None:
        """The body is complete."""
        if not self.ended.done():
            self.ended.set_result(now)

    def fail(self, failure: RequestError) -> None:
        """Nothing more will come."""
        if not self.ended.done():
            self.ended.set_exception(failure)


class Details(msgspec.Struct):
    """Of a prompt's tokens."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """How many tokens a request took, as the server counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Those of the prompt that the server had computed before, where it tells."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None


class Said(msgspec.Struct):
    """A message, or what a chunk adds to it. Servers have three names for its texts."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    """Of a conversation's answer or a text's."""

    delta: Said | None = None
    text: str | None = None

    @property
    def is_said(self) -> bool:
        """Whether there is text in it."""
        said = self.delta
        return bool(self.text or (said and (said.content or said.reasoning_content or said.reasoning)))


class Chunk(msgspec.Struct):
    """An event of a stream, or an answer that is none."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


_CHUNKS = msgspec.json.Decoder(Chunk)


class Answer(Reply):
    """Keeps when each chunk with text came, and the usage; of errors and unstreamed answers the bytes."""

    def __init__(self, streamed: bool) -> None:
        """Args: `streamed`: it comes as Server-Sent Events."""
        super().__init__()
        self._streamed, self._rest = streamed, b""
        self.arrivals: list[float] = []
        self._usage: Usage | None = None
        self._error, self._done = "", False

    def body(self, data: bytes, now: float) -> None:
        """A part of it, which may end within an event."""
        if self.status != 200 or not self._streamed:
            self.data += data
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def usage(self) -> Usage:
        """Of the answer, when it has ended.

        Raises:
          RequestError: it is an error, it broke off, or its usage is not told.
        """
        if self.status != 200:
            raise RequestError(f"HTTP {self.status}: {message_of(bytes(self.data))}")
        if not self._streamed:
            self._chunk(bytes(self.data))
        if self._error:
            raise RequestError(self._error)
        if self._streamed and not self._done:
            raise RequestError("the stream ended without [DONE]")
        if self._usage is None:
            raise RequestError("the answer tells no usage, without which its tokens can't be counted")
        return self._usage

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._done = True
        elif any(choice.is_said for choice in self._chunk(data)):
            self.arrivals.append(now)

    def _chunk(self, data: bytes) -> list[Choice]:
        try:
            chunk = _CHUNKS.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._error = self._error or f"the answer is none of OpenAI's API: {error}"
            return []
        if chunk.error is not None and not self._error:
            self._error = f"an error instead of the rest of the answer: {message_of(data)}"
        self._usage = chunk.usage or self._usage
        return chunk.choices


def message_of(body: bytes) -> str:
    """What an error says, in whatever form servers say it."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = body.decode("utf-8", "replace").strip()
    for name in ("error", "message", "detail"):
        found = found.get(name, found) if isinstance(found, dict) else found
    words = found if isinstance(found, str) else msgspec.json.encode(found).decode()
    return escaped(words or "(no message)")[:LONGEST_KIND]
