"""JSON Schemas as the library is given them: what it would enforce loosely is refused, or said strictly.

Found by JSON-Schema-Test-Suite and by hand (`tests/grammar/test_schemas.py`). The rest is the library's own
affair: it refuses keywords that it does not know to enforce.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from jllama.errors import JllamaError

OPTIONS = "x-guidance"  # the library's own keyword; most of its options loosen something
# One way to write a value: free blanks would let a small model write nothing else up to its limit. One way to
# write a text: an escaped letter in a key would pass by the property that the key names. So no `\u`.
STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
    "json_allowed_escapes": '"\\bfnrt',
    "json_allow_general_unicode_escapes": False,
}
_FREE = {"item_separator": ",", "key_separator": ":"}  # where blanks may stand anywhere
# What a user may change of it.
_SPACING = {
    "whitespace_flexible": re.compile("True|False"),
    "item_separator": re.compile(r"[ \t\r\n]*,[ \t\r\n]*"),
    "key_separator": re.compile(r"[ \t\r\n]*:[ \t\r\n]*"),
}
_ONE = (
    *("items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not", "if", "then"),
    *("else", "unevaluatedItems", "unevaluatedProperties"),
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
# Control characters that no escape writes: the library leaves them out of what it must spell.
_UNWRITTEN = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_UNWRITTEN_CLASS = re.compile(r"\\(x[01]|x7[fF]|x\{|u00[01]|u007|u\{|[cv0ae]|[pP]\{?C)|\[:\^?cntrl")

_DAYS = (
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
# The library's own take a 29th of February each year, and a leap second at any time of the day.
_FORMATS = {
    "date": f"^{_DAYS}$",
    "time": "^[0-9]{2}:[0-9]{2}:[0-5][0-9]",
    "date-time": f"^{_DAYS}[Tt][0-9]{{2}}:[0-9]{{2}}:[0-5][0-9]",
}


def prepared(schema: Any) -> dict[str, Any]:
    """A schema that means the same, to the letter, to the library.

    Args:
      schema: what JSON's text holds, of bounded depth.

    Raises:
      JllamaError: names what is not enforced exactly, and where it stands.
    """
    if schema is False:
        raise refusal("#", "nothing matches false", "give a schema that something matches")
    copy = {} if schema is True else json.loads(json.dumps(schema))
    found = dict(_schemas(copy, "#"))
    spacing = _spacing(copy.pop(OPTIONS, {}))
    for path, each in found.items():
        _check(path, each, found)
    for each in found.values():
        if (pattern := _FORMATS.get(str(each.get("format")))) is not None:
            each["allOf"] = [*each.get("allOf", []), {"pattern": pattern}]
    return {**copy, OPTIONS: STYLE | (_FREE if spacing.get("whitespace_flexible") else {}) | spacing}


def refusal(path: str, words: str, remedy: str) -> JllamaError:
    """What a user is told of a schema, and where in it."""
    return JllamaError(f"json_schema can't be used: {words}, at {path[:200]}: {remedy}")


def _spacing(given: Any) -> dict[str, Any]:
    for name, value in given.items() if isinstance(given, dict) else [(str(given), None)]:
        if name not in _SPACING or not _SPACING[name].fullmatch(str(value)):
            words = f"{OPTIONS} holds {name[:40]!r}: {str(value)[:40]!r}"
            raise refusal(
                "#", words, f"it may say {', '.join(_SPACING)} alone, and blanks around the separators"
            )
    return given


def _check(path: str, schema: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if OPTIONS in schema:
        raise refusal(path, f"{OPTIONS} inside a schema", "put it at its top, or leave it out")
    fewest, needed = schema.get("minProperties", 0), schema.get("required", [])
    enough = max(1, len(needed) if isinstance(needed, list) else 0)
    # A key may come twice if no property names it, and counts once when it is read.
    if isinstance(fewest, int | float) and fewest > enough:
        raise refusal(
            path, f"minProperties is more than what is required ({enough})", "name those in required"
        )
    _check_characters(path, schema)
    reference = schema.get("$ref")
    named = reference if isinstance(reference, str) and reference.startswith("#/") else "#"
    inside = _plain(named)[1:]
    if not any(place.endswith(inside) for place in found):  # of the whole, or of what has an $id
        raise refusal(path, f"$ref names {named[:80]!r}, where no schema stands", "put it into $defs")


def _check_characters(path: str, schema: Mapping[str, Any]) -> None:
    names, patterns = (schema.get(name) for name in ("properties", "patternProperties"))
    spelled = [schema.get(name) for name in ("const", "enum", "required")]
    for text in _texts([*spelled, *_keys(names)]):
        if _UNWRITTEN.search(text):
            raise refusal(path, f"{text[:40]!r} holds a control character, which never comes", "leave it out")
    for text in _texts([schema.get("pattern"), *_keys(patterns)]):
        if _UNWRITTEN.search(text) or _UNWRITTEN_CLASS.search(text):
            words = f"the pattern {text[:40]!r} names control characters, which never come"
            raise refusal(path, words, "leave them out")


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else []


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, keys too."""
    if isinstance(value, str):
        yield value
    parts = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from _texts(part)


def _plain(pointer: str) -> str:
    return unquote(pointer).replace("~1", "/").replace("~0", "~")


def _schemas(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and all those in it, each with its place; empty ones for booleans."""
    if isinstance(schema, bool):
        yield path, {}
    if not isinstance(schema, dict):
        return
    yield path, schema
    for name, inner in schema.items():
        if name in _ONE:
            yield from _schemas(inner, f"{path}/{name}")
        if name in _LISTS and isinstance(inner, list):
            for at, each in enumerate(inner):
                yield from _schemas(each, f"{path}/{name}/{at}")
        if name in _MAPS and isinstance(inner, dict):
            for key, each in inner.items():
                yield from _schemas(each, f"{path}/{name}/{key}")
