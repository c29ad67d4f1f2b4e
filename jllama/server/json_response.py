"""JSON answers, errors among them."""

from typing import Any

import msgspec
from starlette.responses import Response

from jllama.server.protocol.errors import ApiError


def json_response(content: Any, status: int = 200) -> Response:
    """An object as a response."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """What the client is told."""
    response = json_response(error.body, error.status)
    response.headers.update(error.headers)
    return response
