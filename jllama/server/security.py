"""Who may ask: keys, and which names the server goes by."""

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from jllama.server.json_response import error_response
from jllama.server.protocol.errors import ApiError


class KeyCheck:
    """Lets through whoever has one of the keys, as `Authorization: Bearer` or `X-Api-Key`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        """Without `keys` everybody may come in."""
        self.app, self._digests = app, [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `ApiError` 401 for the others."""
        if self._digests and not self._knows(_key_of(Headers(scope=scope))):
            words = (
                "give one of this server's keys, in the header Authorization: Bearer KEY or X-Api-Key: KEY"
            )
            raise ApiError(401, words, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await self.app(scope, receive, send)

    def _knows(self, key: str) -> bool:
        """Compares with all keys, each in the same time whatever is given."""
        digest = _digest(key.encode("latin-1"))  # as the header was read
        return sum(hmac.compare_digest(digest, one) for one in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _key_of(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


class HostCheck:
    """Refuses names that the server does not go by: a web page's own, whose address was made to be ours."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        """Args: `hosts`: names beside IP addresses and localhost; `*` is any."""
        self.app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403 itself."""
        if scope["type"] == "http" and not self._is_ours(Headers(scope=scope).get("host")):
            words = "this server does not go by the name in the Host header: --allowed_host=NAME adds one"
            error = ApiError(403, words, code="host_not_allowed")
            await error_response(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_ours(self, host: str | None) -> bool:
        """No browser leaves the header out."""
        if host is None or "*" in self._hosts:
            return True
        name = _without_port(host.lower())
        return name == "localhost" or name.endswith(".localhost") or name in self._hosts or _is_address(name)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
