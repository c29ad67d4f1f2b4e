"""A request's body, if it is JSON, not too large and not too slow."""

import asyncio

from starlette.datastructures import Headers
from starlette.requests import Request

from jllama.server.protocol.errors import ApiError

SECONDS = 60.0  # for a whole body
CLOSE = {"Connection": "close"}  # the rest of the body is not read


async def body_of(request: Request, most: int) -> bytes:
    """All of it.

    Args:
      request: its body is not read yet.
      most: bytes.

    Raises:
      ApiError: 415, 413 or 408.
      ClientDisconnect: the client went away.
    """
    _check_kind(request.headers)
    if _announced(request.headers) > most:
        raise _too_large(most)
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {SECONDS:g} seconds", headers=CLOSE) from None
    return bytes(body)


def _check_kind(headers: Headers) -> None:
    """A browser may send other kinds to any server without asking it first."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" or headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "send JSON as it is, with the header Content-Type: application/json")


def _announced(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most >> 10} KiB: send less", headers=CLOSE)
