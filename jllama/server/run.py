"""A server in this process: its socket, its signals, its end."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from jllama.errors import JllamaError
from jllama.server.connection import Connection
from jllama.server.service import Service

LOG = logging.getLogger("jllama.server")
FLUSHING = 5.0  # seconds to send what is left, once all answers have ended
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet.

    Raises:
      JllamaError: the address is in use, not this machine's, or not ours to take.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise JllamaError(f"--host={host}: {error.strerror}") from None
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with contextlib.ExitStack() as closing, _explained(host, port):
        closing.enter_context(made)
        made.bind(address)
        closing.pop_all()
    return made


def listen(bound: socket.socket) -> str:
    """From now on connections wait to be served; returns the server's URL."""
    host, port = bound.getsockname()[:2]
    with _explained(host, port):
        bound.listen(2048)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def _explained(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            words = f"port {port} is in use: choose another one with --port, or end what listens there"
            raise JllamaError(words) from None
        raise JllamaError(f"cannot listen on {host}:{port}: {error.strerror}") from None


class Server(uvicorn.Server):
    """uvicorn's, which gives running answers time before it ends them."""

    def __init__(self, app: Starlette, grace: float) -> None:
        """Args: `grace`: seconds that running answers have after a signal."""
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # warnings are about what strangers send, and one may send a lot
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=None,
            )
        )
        self._service: Service = app.state.service
        self._grace = grace
        self.signal: int | None = None  # what ended it

    def serve_on(self, bound: socket.socket) -> None:
        """Serves until a signal comes."""
        with asyncio.Runner() as runner:
            runner.run(self.serve(sockets=[bound]))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server, the second one the process."""
        if self.should_exit:
            os._exit(128 + sig)
        self.signal, self.should_exit = sig, True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While it serves; what ended it is told by `signal`, not raised again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Nothing new is taken; what runs has its time, then an error."""
        self._service.stopping = True
        if running := self._service.running:
            words = (
                "running requests: %d; they have %g seconds, and a second signal or Ctrl-C ends them at once"
            )
            LOG.warning(words, running, self._grace)
        self.config.timeout_graceful_shutdown = self._grace + FLUSHING  # type: ignore[assignment]
        timer = asyncio.get_running_loop().call_later(self._grace, self._service.end_all)
        await super().shutdown(sockets)
        timer.cancel()
