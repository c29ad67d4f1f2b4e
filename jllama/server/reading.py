"""Answers of an engine on an event loop: pieces of text as they come, from the engine's thread."""

import asyncio
import collections
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from jllama.batching.engine import Engine
from jllama.batching.stream import Item, Stream
from jllama.server.protocol.errors import failed


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of text, and how far its answer was then."""

    text: str
    tokens: int  # generated so far
    scored: int  # of them: whose log-probabilities are known


Event = Piece | BaseException | None  # None: the answer has ended


class Mailbox:
    """Takes what the engine's thread hands out to an event loop: one wake-up for all that lies there."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self._woken = loop, False
        self._items: collections.deque[tuple[Answers, Stream, Event]] = collections.deque()

    def put(self, answers: "Answers", stream: Stream, event: Event) -> None:
        """From any thread. Whoever appends before the loop looks need not wake it again."""
        self._items.append((answers, stream, event))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self.loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._woken = False
        while self._items:
            answers, stream, event = self._items.popleft()
            answers.inbox.put_nowait((stream, event))


class Answers:
    """The answers to one HTTP request, all choices of it, as one sequence of events."""

    def __init__(self, mailbox: Mailbox, told: Callable[[Stream, str], None]) -> None:
        """On the event loop; `start` follows in another thread.

        Args:
          mailbox: of the loop.
          told: called for each answer, once, with why it ended.
        """
        self._mailbox, self._told = mailbox, told
        self._untold: set[Stream] = set()
        self.inbox: asyncio.Queue[tuple[Stream | None, Event]] = asyncio.Queue()
        self.streams: list[Stream] = []
        self._cancelled = False
        self._left = 1  # until `events` knows better

    @property
    def at_hand(self) -> bool:
        """Whether there is more to say at once: other events, or that nothing more comes."""
        return not self.inbox.empty() or not self._left

    def start(self, engine: Engine, requests: Sequence[Mapping[str, Any]]) -> None:
        """Submits the requests, all or none; blocks for as long as the engine's lock is held.

        Raises:
          JllamaError: the engine does not take them.
        """
        self.streams = engine.submit_all(requests, self._hear)
        self._untold = set(self.streams)
        if self._cancelled:  # while they were submitted
            self.cancel()

    def cancel(self) -> None:
        """Ends whatever runs: nobody reads on. On the event loop."""
        self._cancelled = True
        for stream in self.streams:
            stream.cancel()

    def fail(self, error: BaseException) -> None:
        """The reader gets an error; what runs ends. On the event loop."""
        self.inbox.put_nowait((None, error))
        self.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Piece | None]]:
        """Which choice, and what came of it, until all have ended. Who leaves the loop must `cancel`.

        Raises:
          ApiError: what went wrong, in one of them.
        """
        places = {stream: place for place, stream in enumerate(self.streams)}
        self._left = len(places)
        while self._left:
            stream, event = await self.inbox.get()
            if isinstance(event, BaseException):
                self._tell([stream] if stream else [], "error")
                raise failed(event)
            assert stream is not None
            if event is None:
                self._left -= 1
                self._tell([stream], stream.answer.result.finish_reason)
            yield places[stream], event

    def settle(self) -> None:
        """Tells of what was not read to its end. On the event loop."""
        self._tell(list(self._untold), "abort")

    def _tell(self, streams: Sequence[Stream], reason: str) -> None:
        for stream in streams:
            if stream in self._untold:
                self._untold.remove(stream)
                self._told(stream, reason)

    def _hear(self, stream: Stream, item: Item) -> None:
        """In the engine's thread."""
        result = stream.answer.result
        event: Event = (
            Piece(item, len(result.token_ids), len(result.logprobs or ())) if isinstance(item, str) else item
        )
        self._mailbox.put(self, stream, event)
