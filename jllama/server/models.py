"""`GET /v1/models`, `/v1/models/{id}`, `/health` and `/version`."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jllama import __version__
from jllama.server.json_response import json_response
from jllama.server.service import Service


async def models(request: Request) -> Response:
    """All names under which the model answers."""
    service: Service = request.app.state.service
    return json_response({"object": "list", "data": [_card(service, name) for name in service.options.names]})


async def model(request: Request) -> Response:
    """One of them."""
    service: Service = request.app.state.service
    name = request.path_params["name"]
    service.check_model(name)
    return json_response(_card(service, name))


async def health(request: Request) -> Response:
    """Whether requests are answered."""
    service: Service = request.app.state.service
    service.check_health()
    return json_response({"status": "ok"})


async def version(_: Request) -> Response:
    """Of jllama."""
    return json_response({"version": __version__})


def _card(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "jllama",
        "root": service.options.names[0],
        "max_model_len": service.engine.max_seq_len,
    }
