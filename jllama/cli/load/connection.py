"""One connection of HTTP/1.1: a request at a time, and what comes back with the moment at which it came."""

import asyncio
import time

import h11

from jllama.cli.load.reply import DroppedError, Reply, RequestError


class Connection(asyncio.Protocol):
    """Hands on each part of a body as it is read from the socket, without a task in between."""

    def __init__(self) -> None:
        """Not connected yet."""
        self._http = h11.Connection(h11.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: h11.Request, body: bytes, reply: Reply) -> None:
        """Sends a request; only when the last one's reply has ended."""
        assert self._transport is not None
        assert self._reply is None
        self._reply = reply
        parts = [request, h11.Data(data=body), h11.EndOfMessage()]
        self._transport.write(b"".join(self._http.send(part) or b"" for part in parts))

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._read(data, time.perf_counter())

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side has closed it, which ends a body of unknown length."""
        self.is_lost = True
        self._read(b"", time.perf_counter())
        if self._reply is not None:
            dropped = DroppedError("the server closed the connection before it answered")
            broken = RequestError("the connection broke in the middle of an answer")
            self._reply.fail(broken if self._reply.status else dropped)

    def close(self) -> None:
        """Gives up what has not come."""
        self._reply = None
        if self._transport is not None:
            self._transport.abort()
        self.is_lost = True

    def _read(self, data: bytes, now: float) -> None:
        if self._reply is None:  # the server ends a connection that waits
            return self.close()
        try:
            self._http.receive_data(data)
            self._events(self._reply, now)
        except h11.RemoteProtocolError as error:
            if data:
                self._reply.fail(RequestError(f"what came is no HTTP: {error}"))
                self.close()

    def _events(self, reply: Reply, now: float) -> None:
        while True:
            event = self._http.next_event()
            kind = type(event)
            if kind is h11.Data:
                reply.body(event.data, now)  # type: ignore[union-attr]
            elif kind is h11.Response:
                reply.status = event.status_code  # type: ignore[union-attr]
            elif kind is h11.EndOfMessage:
                return self._end(reply, now)
            elif kind is not h11.InformationalResponse:
                return

    def _end(self, reply: Reply, now: float) -> None:
        self._reply = None
        if self._http.our_state is self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()
        reply.end(now)
