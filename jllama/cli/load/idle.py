"""Connections that ask for nothing: a server has to bear them beside those that it answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from jllama.cli.load.target import Target

SECONDS = 1.0  # between two bytes of a slow one, and before a connection is tried again
BEGINNING = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: "  # never ends


class Crowd:
    """Every other one says nothing; the others send a request byte by byte. Closed ones come again."""

    def __init__(self, target: Target, count: int) -> None:
        """Connects to nothing yet."""
        self._target, self.count = target, count
        self.open = self.closed = 0  # now; by the server, in all
        self._tried = 0
        self._all_tried = asyncio.Event()

    @contextlib.asynccontextmanager
    async def around(self) -> AsyncIterator[None]:
        """While they stay; begins when each was opened or refused once."""
        tasks = [asyncio.create_task(self._stay(place % 2 == 1)) for place in range(self.count)]
        try:
            if tasks:
                await self._all_tried.wait()
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stay(self, is_slow: bool) -> None:
        is_first = True
        while True:
            try:
                await self._once(is_slow, is_first)
                self.closed += 1
            except OSError:
                self._count(is_first)
                await asyncio.sleep(SECONDS)
            is_first = False

    async def _once(self, is_slow: bool, is_first: bool) -> None:
        """Until the server closes it."""
        tls = True if self._target.is_tls else None
        reader, writer = await asyncio.open_connection(self._target.host, self._target.port, ssl=tls)
        self.open += 1
        self._count(is_first)
        sending = asyncio.create_task(_send_slowly(writer)) if is_slow else None
        try:
            with contextlib.suppress(ConnectionError):  # it may be reset, with bytes on their way
                await reader.read()
        finally:
            self.open -= 1
            if sending is not None:
                sending.cancel()
            writer.transport.abort()

    def _count(self, is_first: bool) -> None:
        self._tried += is_first
        if self._tried == self.count:
            self._all_tried.set()


async def _send_slowly(writer: asyncio.StreamWriter) -> None:
    place = 0
    while True:
        writer.write(BEGINNING[place : place + 1] or b"a")
        place += 1
        await asyncio.sleep(SECONDS)
