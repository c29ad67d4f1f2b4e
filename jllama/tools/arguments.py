"""JSON as the values that type hints ask for."""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from jllama.tools.schemas import WRAPPERS, hints_of, required_fields, shown


class ArgumentsError(Exception):
    """Arguments that do not fit a function's signature: the model is told why."""


def converted(value: Any, hint: Any, where: str) -> Any:
    """Data out of JSON as a type hint has it: enums, dataclasses and whole numbers that are floats are made.

    Args:
      value: what the model gave.
      hint: one of those that `schema_of` knows.
      where: the parameter, or the place in it.

    Raises:
      ArgumentsError: it does not fit.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated or origin in WRAPPERS:
        return converted(value, inner[0], where)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, inner, where)
    if origin is typing.Literal and any(value == one and type(value) is type(one) for one in inner):
        return value
    if (origin or hint) in (list, Sequence) and isinstance(value, list):
        each = enumerate(value)
        return [converted(one, inner[0], f"{where}[{at}]") for at, one in each] if inner else value
    if (origin or hint) in (dict, Mapping) and isinstance(value, dict):
        return (
            {key: converted(one, inner[1], f"{where}.{key}") for key, one in value.items()}
            if inner
            else value
        )
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _member(value, hint, where)
    if isinstance(value, dict) and (dataclasses.is_dataclass(hint) or typing.is_typeddict(hint)):
        return _made(value, hint, where)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Any or type(value) is hint or (value is None and hint in (None, type(None))):
        return value
    raise _unfit(value, hint, where)


def _one_of(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    for hint in hints:
        try:
            return converted(value, hint, where)
        except ArgumentsError:
            continue
    raise _unfit(value, " or ".join(map(shown, hints)), where)


def _member(value: Any, kind: type[enum.Enum], where: str) -> enum.Enum:
    try:
        return kind(value)
    except ValueError:
        raise _unfit(value, [member.value for member in kind], where) from None


def _made(value: dict[str, Any], kind: Any, where: str) -> Any:
    """A dataclass or a TypedDict out of its fields."""
    hints = hints_of(kind, where)
    for name in value.keys() - hints.keys():
        raise ArgumentsError(f"{where} has no field {name!r}; there are {', '.join(hints)}")
    for name in required_fields(kind):
        if name not in value:
            raise ArgumentsError(f"{where} lacks the field {name!r}")
    return kind(**{name: converted(one, hints[name], f"{where}.{name}") for name, one in value.items()})


def _unfit(value: Any, wanted: Any, where: str) -> ArgumentsError:
    given = repr(value)
    shortened = given if len(given) <= 80 else given[:79] + "…"
    return ArgumentsError(
        f"{where} is {shortened}, but must be {wanted if isinstance(wanted, str | list) else shown(wanted)}"
    )
