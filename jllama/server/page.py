"""The chat page: static files of the package, which nothing from outside may join."""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

DIRECTORY = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Page(StaticFiles):
    """Whatever no route answers: a file of the page, or 404."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        """The directory may be absent."""
        self._present = directory.is_dir()
        super().__init__(directory=directory, html=True, check_dir=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `HTTPException` 404."""
        if scope["type"] != "http":
            return
        if not self._present or scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)
        await super().__call__(scope, receive, send)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, with what the browser must not do with it."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
