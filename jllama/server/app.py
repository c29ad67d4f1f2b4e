"""The routes, and what stands before them."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from jllama.batching.engine import Engine
from jllama.errors import JllamaError
from jllama.server import models, page, tokens
from jllama.server.chat_completions import chat_completions
from jllama.server.completions import completions
from jllama.server.json_response import error_response
from jllama.server.metrics import metrics
from jllama.server.protocol.errors import ApiError, translated
from jllama.server.responses import responses
from jllama.server.security import HostCheck, KeyCheck
from jllama.server.service import Options, Service

Endpoint = Callable[[Request], Awaitable[Response]]
# What needs a key, where there are keys. The rest is open: /health, and the page, which holds no secrets.
ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/responses", responses),
    ("GET", "/v1/models", models.models),
    ("GET", "/v1/models/{name:path}", models.model),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("POST", "/apply-template", tokens.apply_template),
    ("GET", "/metrics", metrics),
    ("GET", "/version", models.version),
)
WORDS = {404: "there is nothing at this address", 405: "this address takes another method"}


def create_app(
    engine: Engine, options: Options | None = None, page_files: Path = page.DIRECTORY
) -> Starlette:
    """The server as an ASGI application; its state holds the `Service`.

    Args:
      engine: stays the caller's to close.
      options: names, keys, limits.
      page_files: the chat page; may be absent.
    """
    chosen = options or Options()
    guard = [Middleware(KeyCheck, keys=chosen.keys)]
    routes = [Route(path, endpoint, methods=[method], middleware=guard) for method, path, endpoint in ROUTES]
    routes.append(Route("/health", models.health, methods=["GET"]))
    app = Starlette(routes=routes, middleware=_middleware(chosen), exception_handlers=_handlers())
    app.router.redirect_slashes = False
    app.router.default = page.Page(page_files)
    app.state.service = Service(engine, chosen)
    return app


def _middleware(options: Options) -> list[Middleware]:
    found = [Middleware(HostCheck, hosts=options.hosts)]
    if options.origins:
        methods, headers = ["GET", "POST"], ["*"]
        found.append(
            Middleware(
                CORSMiddleware, allow_origins=options.origins, allow_methods=methods, allow_headers=headers
            )
        )
    return found


def _handlers() -> dict:
    return {
        ApiError: _failed,
        JllamaError: _failed,
        HTTPException: _refused,
        ClientDisconnect: _left,
        Exception: _failed,  # a mistake of ours: the log has it
    }


async def _failed(_: Request, error: Exception) -> Response:
    return error_response(translated(error))


async def _refused(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses."""
    assert isinstance(error, HTTPException)
    words = WORDS.get(error.status_code, error.detail)
    path = request.url.path[:200]
    return error_response(ApiError(error.status_code, f"{words}: {path}", headers=error.headers))


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
