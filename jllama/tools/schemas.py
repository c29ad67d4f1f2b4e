"""Type hints as JSON Schema."""

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from jllama.errors import JllamaError

PLAIN: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
WRAPPERS = (typing.Required, typing.NotRequired)  # of a TypedDict's fields
DEEPEST = 20  # dataclasses in dataclasses
Schema = dict[str, Any]


def hints_of(thing: Any, where: str) -> dict[str, Any]:
    """The type hints of a function, dataclass or TypedDict.

    Raises:
      JllamaError: one names what there is not.
    """
    try:
        return typing.get_type_hints(thing, include_extras=True)
    except Exception as error:
        raise JllamaError(f"{where}: a type hint can't be read: {error}") from None


def schema_of(hint: Any, where: str) -> Schema:
    """The JSON Schema of a type hint.

    Args:
      hint: a plain type, a list or dict of one, Literal, Optional, Union, Enum, dataclass, TypedDict, or any
        of them with a text for the model, `Annotated[str, "a city"]`.
      where: what it belongs to, for messages.

    Raises:
      JllamaError: it is of another kind.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if where.count(".") > DEEPEST:
        raise JllamaError(f"tool {where[:80]}…: the type hints nest without end")
    if origin in WRAPPERS:
        return schema_of(inner[0], where)
    if origin is typing.Annotated:
        words = [text for text in inner[1:] if isinstance(text, str)]
        return {**schema_of(inner[0], where), **({"description": " ".join(words)} if words else {})}
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if hint is None or hint is type(None):
        return {"type": "null"}
    if hint is Any:
        return {}
    if origin is typing.Literal:
        return _values(list(inner), hint, where)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema_of(one, where) for one in inner]}
    if (origin or hint) in (list, Sequence, dict, Mapping):
        return _container((origin or hint) in (list, Sequence), inner, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _values([member.value for member in hint], hint, where)
    if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
        return _fields(hint, where)
    raise JllamaError(
        f"tool {where}: the type hint {shown(hint)} can't be told to a model: use str, int, float, bool, "
        "list, dict, Literal, Optional, an Enum, a dataclass or a TypedDict"
    )


def _values(values: list[Any], hint: Any, where: str) -> Schema:
    """Of a Literal or an Enum."""
    if not values or not all(one is None or isinstance(one, (*PLAIN,)) for one in values):
        raise JllamaError(f"tool {where}: the values of {shown(hint)} must be texts, numbers, bools or None")
    odd = next((one for one in values if isinstance(one, float) and not math.isfinite(one)), None)
    if odd is not None:
        raise JllamaError(f"tool {where}: {shown(hint)} holds {odd}, no number of JSON: leave it out")
    return {"enum": values}


def _container(is_list: bool, inner: tuple[Any, ...], where: str) -> Schema:
    if is_list:
        return {"type": "array", **({"items": schema_of(inner[0], where)} if inner else {})}
    if inner and inner[0] is not str:
        raise JllamaError(f"tool {where}: keys of a dict must be str: JSON has no others")
    return {"type": "object", **({"additionalProperties": schema_of(inner[1], where)} if inner else {})}


def _fields(kind: Any, where: str) -> Schema:
    """Of a dataclass or a TypedDict."""
    hints = hints_of(kind, f"tool {where}")
    required = required_fields(kind)
    properties = {name: schema_of(hint, f"{where}.{name}") for name, hint in hints.items()}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def required_fields(kind: Any) -> list[str]:
    """The names of the fields of a dataclass or TypedDict that have no default."""
    if not dataclasses.is_dataclass(kind):
        return sorted(kind.__required_keys__)
    none = dataclasses.MISSING
    return [
        f.name for f in dataclasses.fields(kind) if f.init and f.default is none and f.default_factory is none
    ]


def shown(hint: Any) -> str:
    """A hint in a message."""
    return hint.__name__ if isinstance(hint, type) else str(hint)
