"""The server that is asked: its address, its connections."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import h11
import msgspec

from jllama.cli.load.connection import Connection
from jllama.cli.load.reply import DroppedError, Reply, RequestError, UnreachableError
from jllama.errors import JllamaError
from jllama.machine.open_files import raise_limit


class Target:
    """Keeps connections for the requests to come; no more are opened than there are requests at once."""

    def __init__(self, url: str, key: str, timeout: float) -> None:
        """Connects to nothing yet.

        Args:
          url: of the server, with or without `/v1`.
          key: for the `Authorization` header; empty: none.
          timeout: seconds for a whole answer.

        Raises:
          JllamaError: it is no URL.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        self.host, self.port, self.is_tls = _address(self.url)
        self._path, self._timeout = urlsplit(self.url).path, timeout
        self._headers = [
            ("Host", urlsplit(self.url).netloc),
            ("User-Agent", "jllama-bench"),
            ("Accept", "*/*"),
        ]
        self._headers += [("Authorization", f"Bearer {key}")] if key else []
        self._waiting: list[Connection] = []

    async def exchange(self, method: str, path: str, body: bytes, reply: Reply) -> float:
        """Sends a request and waits for its end; returns the moment of it.

        Raises:
          RequestError: there was none.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange(self._request(method, path, body), body, reply)
        except TimeoutError:
            raise RequestError(f"no end of the answer within {self._timeout:g} s") from None

    async def ask(self, method: str, path: str, content: Any = None) -> tuple[int, bytes]:
        """Status and body of a request that is not measured; its content becomes JSON.

        Raises:
          RequestError: it was not answered.
        """
        reply = Reply()
        await self.exchange(method, path, b"" if content is None else msgspec.json.encode(content), reply)
        return reply.status, bytes(reply.data)

    async def close(self) -> None:
        """Closes what waits."""
        for connection in self._waiting:
            connection.close()
        await asyncio.sleep(0)  # the loop takes its leave of them

    async def _exchange(self, request: h11.Request, body: bytes, reply: Reply) -> float:
        while True:
            kept = self._kept()
            connection = kept or await self._open()
            try:
                connection.send(request, body, reply)
                ended = await reply.ended
            except BaseException as error:
                connection.close()
                if not (kept and isinstance(error, DroppedError)):
                    raise
                reply.restart()  # the server had closed what waited too long
                continue
            self._waiting.append(connection)
            return ended

    def _kept(self) -> Connection | None:
        while self._waiting:
            connection = self._waiting.pop()
            if not connection.is_lost:
                return connection
        return None

    async def _open(self) -> Connection:
        loop, tls = asyncio.get_running_loop(), True if self.is_tls else None
        try:
            return (await loop.create_connection(Connection, self.host, self.port, ssl=tls))[1]
        except OSError as error:
            raise UnreachableError(f"cannot connect to {self.url}: {_reason(error)}") from None

    def _request(self, method: str, path: str, body: bytes) -> h11.Request:
        told = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))] if body else []
        return h11.Request(method=method, target=f"{self._path}{path}", headers=[*self._headers, *told])


@contextlib.asynccontextmanager
async def opened(url: str, key: str, timeout: float) -> AsyncIterator[Target]:
    """A `Target` while it is needed."""
    target = Target(url, key, timeout)
    try:
        yield target
    finally:
        await target.close()


def allow_files(count: int) -> None:
    """Lets this process have so many connections.

    Raises:
      JllamaError: the system does not.
    """
    most = raise_limit()
    if count > most:
        words = (
            f"{count} connections are more than the {most:.0f} that this system's limit of open files leaves"
        )
        raise JllamaError(f"{words}: raise `ulimit -Hn`")


def _reason(error: OSError) -> str:
    """The system's words; asyncio has others that differ from address to address."""
    known = error.errno is not None and error.errno > 0
    return os.strerror(error.errno or 0) if known else error.strerror or str(error)


def _address(url: str) -> tuple[str, int, bool]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https") or not url.isascii():
        raise JllamaError(f"--url={url}: give an address such as http://127.0.0.1:8000")
    return host, port or (443 if parts.scheme == "https" else 80), parts.scheme == "https"
