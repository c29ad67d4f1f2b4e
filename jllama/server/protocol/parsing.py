"""A request's body as a type: JSON, known parameters alone, each in its range."""

import re
from typing import Any, TypeVar

import msgspec

from jllama.errors import nearest
from jllama.server.protocol.errors import ApiError

# Bookkeeping of OpenAI's own service: nothing in an answer depends on it.
PASSED_OVER = frozenset(
    "user metadata store safety_identifier prompt_cache_key prompt_cache_retention service_tier".split()
)
Kind = TypeVar("Kind", bound=msgspec.Struct)
_VALIDATION = re.compile(r"(?P<what>.*?)( - at (`key` in )?`\$\.?(?P<where>.*)`)?", re.DOTALL)


def parse(body: bytes, kind: type[Kind], refused: dict[str, str] | None = None) -> Kind:
    """The request that a body holds. A null is as good as absent.

    Args:
      body: JSON.
      kind: what it should be.
      refused: parameters of the protocol that are not honoured, and what to do instead.

    Raises:
      ApiError: 400: it is no JSON object, a parameter is unknown, not honoured or out of range.
    """
    given = {name: value for name, value in _object(body).items() if value is not None}
    known = set(kind.__struct_fields__)
    for name in given.keys() - known - PASSED_OVER:
        raise _foreign(name, known, refused or {})
    return convert({name: given[name] for name in given if name in known}, kind)


def convert(given: Any, kind: Any, within: str = "") -> Any:
    """Plain data as a type; `within` is where it stands in the request.

    Raises:
      ApiError: 400, with the name of what is wrong.
    """
    try:
        return msgspec.convert(given, kind, str_keys=True)
    except msgspec.ValidationError as error:
        found = _VALIDATION.fullmatch(str(error))
        assert found is not None
        where = ".".join(filter(None, [within, found["where"]])) or None
        raise ApiError(400, f"{where or 'the body'}: {found['what']}", param=where) from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is no JSON: {error}") from None
    except RecursionError:
        raise ApiError(400, "the body nests too deeply") from None
    if not isinstance(given, dict):
        raise ApiError(400, "the body must be a JSON object")
    return given


def _foreign(name: str, known: set[str], refused: dict[str, str]) -> ApiError:
    shown = name[:80]
    if name in refused:
        return ApiError(400, f"{shown} is not supported: {refused[name]}", param=shown, code="unsupported")
    words = f"unknown parameter {shown!r}{nearest(shown, known)}: leave it out"
    return ApiError(400, words, param=shown, code="unknown_parameter")
