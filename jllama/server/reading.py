"""Answers of an engine on an event loop: pieces of text as they come, from the engine's thread."""

import asyncio
import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
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
            answers.take(stream, event)


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
        self._items: collections.deque[tuple[Stream | None, Event]] = collections.deque()
        self._waiting: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0  # when something was taken last, by the loop's clock
        self.streams: list[Stream] = []
        self._places: dict[Stream, int] = {}
        self._cancelled = False
        self.is_quiet = False  # the last moment had nothing
        self.left = 1  # that have not ended; until `start` knows better

    @property
    def at_hand(self) -> bool:
        """Whether there is more to say at once."""
        return bool(self._items)

    def start(self, engine: Engine, requests: Sequence[Mapping[str, Any]]) -> None:
        """Submits the requests, all or none; blocks for as long as the engine's lock is held.

        Raises:
          JllamaError: the engine does not take them.
        """
        self.streams = engine.submit_all(requests, self._hear)
        self._untold, self.left = set(self.streams), len(self.streams)
        self._places = {stream: place for place, stream in enumerate(self.streams)}
        if self._cancelled:  # while they were submitted
            self.cancel()

    def cancel(self) -> None:
        """Ends whatever runs: nobody reads on. On the event loop."""
        self._cancelled = True
        for stream in self.streams:
            stream.cancel()

    def fail(self, error: BaseException) -> None:
        """The reader gets an error; what runs ends. On the event loop."""
        self.take(None, error)
        self.cancel()

    def take(self, stream: Stream | None, event: Event) -> None:
        """What the engine handed out, for the reader. On the event loop."""
        self._items.append((stream, event))
        self._wake()

    def be_patient(self, seconds: float) -> None:
        """From now on `moment` gives nothing when nothing has come for so long, until `settle`."""
        loop = self._mailbox.loop
        quiet = loop.time() - self._heard
        if quiet >= seconds:
            quiet = 0.0
            self._wake()
        self._timer = loop.call_later(seconds - quiet, self.be_patient, seconds)

    async def moment(self) -> Iterator[tuple[int, Piece | None]]:
        """Waits; then of all that is there which choice it is of, and what came: None is its end.

        Raises:
          ApiError: while the events are taken: what went wrong, in one of them.
        """
        if not self._items:
            self._waiting = self._mailbox.loop.create_future()
            await self._waiting
        self.is_quiet = not self._items
        self._heard = self._mailbox.loop.time()
        return self._events()

    def _events(self) -> Iterator[tuple[int, Piece | None]]:
        while self._items:
            stream, event = self._items.popleft()
            if isinstance(event, BaseException):
                self._tell([stream] if stream else [], "error")
                raise failed(event)
            assert stream is not None
            if event is None:
                self.left -= 1
                self._tell([stream], stream.answer.result.finish_reason)
            yield self._places[stream], event

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def settle(self) -> None:
        """Tells of what was not read to its end. On the event loop."""
        if self._timer is not None:
            self._timer.cancel()
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
