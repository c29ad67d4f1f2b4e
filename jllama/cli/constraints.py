"""What `--json_schema` and `--grammar` mean: a file's content, or a text."""

import os
from typing import Any

from jllama.cli import streams
from jllama.errors import JllamaError
from jllama.grammar.library import library
from jllama.settings import CONSTRAINTS

GRAMMARS = (".lark", ".gbnf")


def read(given: dict[str, Any]) -> dict[str, Any]:
    """The constraints among the flags as `GenerationSettings` takes them.

    Args:
      given: values of flags, by name.

    Raises:
      JllamaError: a file can't be read, or is of another kind than its name says; the library is not there.
    """
    read: dict[str, Any] = {}
    if any(given.get(name) for name in CONSTRAINTS):
        library()  # said before a model is loaded
    if given.get("choice"):
        read["choice"] = tuple(given["choice"])
    if (schema := given.get("json_schema")) is not None:
        if not schema.strip():
            raise JllamaError("--json_schema is empty: give a file's name or a schema, or leave it out")
        is_text = schema.lstrip().startswith("{") or schema.strip() in ("true", "false")
        read["json_schema"] = schema if is_text else streams.read_text(schema)
    if (grammar := given.get("grammar")) is not None:
        read["grammar"] = _grammar(grammar)
    return read


def _grammar(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in GRAMMARS:
        raise JllamaError(f"--grammar={name[:80]}: give the name of a .lark or a .gbnf file")
    from jllama.grammar.source import is_gbnf

    text = streams.read_text(name)
    if (suffix == ".gbnf") != is_gbnf(text):
        raise JllamaError(
            f"{name}: rules of a .gbnf file are written `name ::= …`, those of a .lark file `name: …`"
        )
    return text
