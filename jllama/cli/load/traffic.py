"""Requests on their way: so many at once, or so many a second."""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Iterator

from jllama.cli.load.prompts import Prompts, refused
from jllama.cli.load.reply import Answer, RequestError, UnreachableError
from jllama.cli.load.target import Target
from jllama.cli.load.workload import Workload


@dataclasses.dataclass(kw_only=True)
class Record:
    """What became of a request. Moments are seconds of one clock."""

    sent: float
    ended: float
    arrivals: list[float] = dataclasses.field(default_factory=list)  # of chunks with text
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    failure: str = ""  # empty: it was answered


class Traffic:
    """The requests of a run."""

    def __init__(self, target: Target, work: Workload, prompts: Prompts) -> None:
        """Draws them all: in the run itself that would take time from what is measured."""
        self.target, self.work, self._prompts = target, work, prompts
        self._drawn = list(itertools.islice(self._bodies("run"), work.requests))
        self.records: list[Record] = []  # grows as they end, so that a run that is cut off is not lost
        self.sent = 0
        self.is_gone = False  # the server takes no connections any more: there is no use in going on

    async def warm_up(self, count: int) -> None:
        """Answers that are not counted.

        Raises:
          JllamaError: one of them failed.
        """
        bodies = self._bodies("warm-up")
        records = await asyncio.gather(*(self._answered(next(bodies)) for _ in range(count)))
        for record in records:
            if record.failure:
                raise refused(RequestError(record.failure))
        self.is_gone = False

    async def run(self) -> None:
        """Sends all requests and waits for their ends."""
        if self.work.request_rate is None:
            await self._at_once(self.work.concurrency or 1)
        else:
            await self._over_time()

    async def _at_once(self, count: int) -> None:
        bodies = iter(self._drawn)
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._in_turn(bodies))

    async def _in_turn(self, bodies: Iterator[bytes]) -> None:
        for body in bodies:
            await self._record(body)
            if self.is_gone:
                return

    async def _over_time(self) -> None:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for body, moment in zip(self._drawn, self.work.moments(), strict=True):
                await asyncio.sleep(began + moment - time.perf_counter())
                if self.is_gone:
                    return
                group.create_task(self._record(body))

    async def _record(self, body: bytes) -> None:
        self.sent += 1
        self.records.append(await self._answered(body))

    async def _answered(self, body: bytes) -> Record:
        answer, sent = Answer(self.work.streamed), time.perf_counter()
        try:
            ended = await self.target.exchange("POST", self.work.path, body, answer)
            usage = answer.usage()
        except RequestError as failure:
            self.is_gone = self.is_gone or isinstance(failure, UnreachableError)
            return Record(sent=sent, ended=time.perf_counter(), failure=str(failure))
        return Record(
            sent=sent,
            ended=ended,
            arrivals=answer.arrivals,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
        )

    def _bodies(self, kind: str) -> Iterator[bytes]:
        for source, prompt_tokens, answer_tokens in self.work.lengths(kind):
            yield self.work.body(self._prompts.text(source, prompt_tokens), answer_tokens)
