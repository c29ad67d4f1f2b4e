"""Server-Sent Events: one JSON object each, and comments while there is nothing to say."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
COMMENT = b": still here\n\n"
HEADERS = {"Cache-Control": "no-cache", "Connection": "keep-alive", "X-Accel-Buffering": "no"}


def frame(content: Any, event: str | None = None) -> bytes:
    """One event; its data is JSON, which has no line ends."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%sdata: %s\n\n" % (name, msgspec.json.encode(content))


class Events(Response):
    """A response that streams frames."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[tuple[bytes, bool]], finish: Callable[[], None]) -> None:
        """Ready to be sent.

        Args:
          frames: of `frame`, each write with whether more follow; none says so where the client has left.
          finish: called at the end, also where the client left before the first frame.
        """
        self.status_code, self.background = 200, None
        self._frames, self._finish = frames, finish
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it, whatever becomes of that."""
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            async with contextlib.aclosing(self._frames):
                async for data, more in self._frames:
                    await send({"type": "http.response.body", "body": data, "more_body": more})
        finally:
            self._finish()
