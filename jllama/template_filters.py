"""The filters of a chat template, each paying into the meter of the sandbox."""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
from jinja2.filters import do_indent, do_replace, do_round, do_slice, do_sum, make_attrgetter

from jllama.template_meter import UNITS_PER_TURN, TemplateRefused, current_meter

# Left out of jinja2's own: what chat templates do not use and what is slow on hostile text.
NAMES = """abs attr batch capitalize center count d default dictsort e escape first float format
groupby indent int items join last length list lower map max min reject rejectattr replace reverse
round safe select selectattr slice sort string sum title tojson trim truncate unique upper
wordcount""".split()

MAX_COUNT = 100_000
MAX_DIGITS = 100
# Two digits of width at most, none computed: a field of a million characters costs one letter.
WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[^a-zA-Z%]*(\*|\d{3})")
WIDE_BRACES = re.compile(r"[:!][^{}]*(\d{3}|\{)")


def refuse_wide_format(pattern: str) -> None:
    if WIDE_PERCENT.search(pattern) or ("{" in pattern and WIDE_BRACES.search(pattern)):
        raise TemplateRefused("it formats a field of a huge or a computed width")


def pay_for_join(separator: str, parts: list) -> None:
    lengths = sum(len(part) for part in parts if isinstance(part, str))
    current_meter().spend(lengths + len(separator) * len(parts))


def pay_for_replace(text: str, old: Any, new: Any) -> None:
    current_meter().spend(len(text) + text.count(str(old)) * len(str(new)))


@jinja2.pass_context
def finalize(_context: Any, value: Any) -> str:
    text = str(value)
    current_meter().step()
    current_meter().spend(len(text))
    return text


def metered(filters: Mapping[str, Any]) -> dict[str, Callable]:
    """The allowed filters out of `filters`, metered, and those that the sandbox itself inserts."""
    allowed: dict[str, Any] = {name: filters[name] for name in NAMES} | _OWN
    return {name: _metered(function) for name, function in allowed.items()} | _INSERTED


def _metered(function: Callable) -> Callable:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        current_meter().step()
        return current_meter().value(function(*args, **kwargs))

    return run


def stepped(test: Any) -> Callable:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> Any:
        current_meter().step()
        return test(*args, **kwargs)

    return run


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' `tojson`: json.dumps, without jinja2's escaping for HTML."""
    if indent is not None and not 0 <= indent <= 32:
        raise TemplateRefused("it indents JSON by more than 32")
    if separators is not None and sum(map(len, separators)) > 32:
        raise TemplateRefused("it separates JSON by long texts")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None:
        return encoder.encode(value)
    return "".join(current_meter().value(chunk) for chunk in encoder.iterencode(value))


@jinja2.pass_environment
def _join(environment: jinja2.Environment, value: Iterable, d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    parts = [current_meter().value(str(part)) for part in value]
    pay_for_join(str(d), parts)
    return str(d).join(parts)


@jinja2.pass_eval_context
def _replace(eval_ctx: Any, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    pay_for_replace(str(s), old, new)
    return do_replace(eval_ctx, s, old, new, count)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = len(width) if isinstance(width, str) else width
    current_meter().spend((len(str(s).splitlines()) + 1) * size)
    return do_indent(s, width, first, blank)


def _trim(value: Any, chars: str | None = None) -> str:
    if len(chars or "") > MAX_DIGITS:
        raise TemplateRefused("it trims a huge set of characters")
    return str(value).strip(chars)


def _center(value: Any, width: int = 80) -> str:
    current_meter().spend(width)
    return str(value).center(width)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    refuse_wide_format(str(value))
    return str(value) % (kwargs or args)


def _round(value: Any, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > MAX_DIGITS:
        raise TemplateRefused("it rounds to a huge number of digits")
    return do_round(value, precision, method)


@jinja2.pass_environment
def _sum(environment: Any, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, int | float):
        raise TemplateRefused("it sums what are no numbers")
    return do_sum(environment, iterable, attribute, start)


def _batch(value: Iterable, linecount: int, fill_with: Any = None) -> list[list]:
    items = list(value)
    if not 0 < linecount <= MAX_COUNT:
        raise TemplateRefused("it makes huge batches")
    rows = [items[at : at + linecount] for at in range(0, len(items), linecount)]
    if rows and fill_with is not None:
        rows[-1] += [fill_with] * (linecount - len(rows[-1]))
    return rows


def _slice(value: Iterable, slices: int, fill_with: Any = None) -> list:
    if not 0 < slices <= MAX_COUNT:
        raise TemplateRefused("it makes huge numbers of slices")
    return list(do_slice(value, slices, fill_with))


_OWN: dict[str, Callable] = {
    "tojson": _tojson,
    "join": _join,
    "replace": _replace,
    "indent": _indent,
    "trim": _trim,
    "center": _center,
    "format": _format,
    "round": _round,
    "sum": _sum,
    "batch": _batch,
    "slice": _slice,
}


def _step(value: Any) -> Any:
    current_meter().step()
    return value


def _turn(static_chars: int) -> str:
    current_meter().step()
    current_meter().spend(UNITS_PER_TURN + static_chars)
    return ""


def _value(value: Any) -> Any:
    current_meter().step()
    return current_meter().value(value)


def _concat(values: list) -> str:
    return "".join(current_meter().value(str(value)) for value in values)


# A leading blank: no template can write these names.
_INSERTED: dict[str, Callable] = {
    " step": _step,
    " turn": _turn,
    " value": _value,
    " concat": _concat,
}
