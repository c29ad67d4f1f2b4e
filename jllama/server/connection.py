"""A client's connection: uvicorn's, which does not wait for ever for a request.

h11 reads it even where httptools is installed, which uvicorn would prefer: that takes 0.1 ms less a request
and bounds no headers.
"""

import asyncio
from typing import Any

import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from jllama.server.protocol.errors import ApiError

SECONDS = 20.0  # for the first line and the headers


class Connection(H11Protocol):
    """Ends if a request does not arrive in time; tells in JSON what is no HTTP."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has come: its time begins."""
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """The bytes were no HTTP."""
        body = msgspec.json.encode(ApiError(400, msg).body)
        lines = (
            "HTTP/1.1 400 Bad Request",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        )
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()

    def _begin(self) -> None:
        self._timer = self.loop.call_later(SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
