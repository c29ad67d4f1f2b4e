"""Server-Sent Events: one JSON object each, and comments while there is nothing to say."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
# The server ends its streams itself, when it has given them time.
AppStatus.disable_automatic_graceful_drain()


def frame(content: Any, event: str | None = None) -> bytes:
    """One event; its data is JSON, which has no line ends."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%sdata: %s\n\n" % (name, msgspec.json.encode(content))


class Events(EventSourceResponse):
    """A response that streams frames."""

    def __init__(self, frames: AsyncIterator[bytes], heartbeat: float, finish: Callable[[], None]) -> None:
        """Ready to be sent.

        Args:
          frames: of `frame`.
          heartbeat: seconds between comments.
          finish: called at the end, also where the client left before the first frame.
        """
        super().__init__(
            frames,
            headers={"Cache-Control": "no-cache"},
            ping=heartbeat,
            ping_message_factory=lambda: ServerSentEvent(comment="still here", sep="\n"),
            sep="\n",
        )
        self._finish = finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it, whatever becomes of that."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._finish()
