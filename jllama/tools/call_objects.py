"""A call that is JSON, or whose arguments are."""

from typing import Any

import msgspec


def named_call(name: str, arguments: str) -> tuple[str, str] | None:
    """Both, if the arguments are the JSON of an object."""
    try:
        return (name, arguments) if isinstance(msgspec.json.decode(arguments), dict) else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def read_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of the call that an object is; None: it is none.

    Args:
      text: its JSON; arguments that are a text hold JSON themselves, and none are no arguments.
    """
    try:
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        given = _plain(fields)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if isinstance(given.get("function"), dict):
        return read_call(bytes(fields["function"]).decode())
    name, key = given.get("name"), next((key for key in ("arguments", "parameters") if key in given), None)
    if not isinstance(name, str) or not name:
        return None
    arguments = given[key] if key else {}
    if isinstance(arguments, str):
        return named_call(name, arguments or "{}")
    if arguments in ({}, None):
        return name, "{}"
    return (name, bytes(fields[key]).decode().strip()) if isinstance(arguments, dict) and key else None


def _plain(fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    """The fields decoded, of which each is checked by that."""
    return {name: msgspec.json.decode(raw) for name, raw in fields.items()}
