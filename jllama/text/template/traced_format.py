"""`str.format` of texts whose characters know their origin."""

from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

from jllama.text.template.traced_text import GIVEN, OWN, Traced, checked


def braces(
    pattern: Traced, whole: str, write_field: Callable[[str], str], args: tuple, kwargs: Mapping
) -> Traced:
    """`whole`, which is `pattern.format(*args, **kwargs)`; `write_field` formats a pattern of one field."""
    origin = OWN if set(pattern.origins) <= {OWN} else GIVEN
    pieces: list[str] = []
    count = 0
    for literal, name, spec, conversion in Formatter().parse(pattern):
        pieces.append(Traced(literal, origin))
        if name is None:
            continue
        name, count = _numbered(name, count)
        spec, count = _numbered_spec(spec or "", count)
        value: Any = args[int(name)] if name.isdecimal() else kwargs.get(name)
        field = f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
        is_text = isinstance(value, Traced) and not (spec or conversion)
        pieces.append(value if is_text else write_field(field))
    return checked(pieces, whole)


def _numbered(name: str, count: int) -> tuple[str, int]:
    """The name of a field, whose number may be left out, and the number of the next such field."""
    return (f"{count}{name}", count + 1) if not name or name[0] in ".[" else (name, count)


def _numbered_spec(spec: str, count: int) -> tuple[str, int]:
    """The same for the fields in a field."""
    made = ""
    for literal, name, inner, conversion in Formatter().parse(spec):
        made += literal
        if name is not None:
            name, count = _numbered(name, count)
            made += f"{{{name}{'!' + conversion if conversion else ''}{':' + inner if inner else ''}}}"
    return made, count
