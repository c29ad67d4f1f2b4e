"""Schemas that the library would take and not enforce to the letter."""

from collections.abc import Iterator
from typing import Any

from jllama.errors import JllamaError

OWN_OPTIONS = "x-guidance"  # of the library: some loosen what it enforces


def check_schema(schema: Any) -> None:
    """Refuses them.

    Args:
      schema: what JSON's text holds.

    Raises:
      JllamaError: names the keyword and where it stands.
    """
    for path, value in _objects(schema, "#"):
        if OWN_OPTIONS in value:
            raise JllamaError(
                f"json_schema can't be used: {OWN_OPTIONS} at {path} is not taken: leave it out"
            )


def _objects(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object in a schema, with its JSON pointer."""
    if isinstance(value, dict):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from _objects(inner, f"{path}/{name}")
