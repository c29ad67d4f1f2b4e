"""The filters of a chat template, each paying into the meter of the sandbox."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2.filters import do_replace, do_round, do_sum, make_attrgetter, sync_do_slice
from jinja2.nodes import EvalContext
from jinja2.runtime import Context

from jllama.text.template.meter import UNITS_PER_NODE, UNITS_PER_TURN, TemplateRefused, current_meter
from jllama.text.template.prices import (
    LINE_ENDS,
    count_of,
    paid_items,
    pay_for_join,
    pay_for_percent,
    pay_for_replace,
    text_of,
)
from jllama.text.template.traced_text import Traced, join_traced, printed, traced

# Left out of jinja2's own: what chat templates do not use and what is slow on hostile text.
NAMES = """abs attr batch capitalize center count d default dictsort e escape first float format
groupby indent int items join last length list lower map max min reject rejectattr replace reverse
round safe select selectattr slice sort string sum title tojson trim truncate unique upper
wordcount""".split()

MAX_COUNT = 100_000
MAX_DIGITS = 100
# They print what they are given, whatever it is.
PRINTING = frozenset(
    "capitalize center e escape format indent lower replace string title tojson trim truncate upper "
    "wordcount".split()
)
# They make a list of what they are given: of a text, too.
LISTING = frozenset("batch groupby join list reverse slice sort".split())
# They may take a path of attributes by position.
BY_PATH = frozenset("groupby max min rejectattr selectattr sort sum unique".split())
MAX_PATH = 32
WORDS = frozenset({"title", "wordcount"})


@jinja2.pass_context
def finalize(_context: Any, value: Any) -> str:
    current_meter().step()
    text = text_of(value)
    current_meter().spend(len(text))
    return text


def metered(filters: Mapping[str, Any]) -> dict[str, Callable]:
    """The allowed filters out of `filters`, metered, and those that the sandbox itself inserts."""
    allowed: dict[str, Any] = {name: filters[name] for name in NAMES} | _OWN
    return {name: _metered(name, function) for name, function in allowed.items()} | _INSERTED


def _metered(name: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        current_meter().step()
        # jinja2 gives some filters its own objects first.
        _refuse_long_path(name, args[1:], kwargs)
        at = int(bool(args) and isinstance(args[0], Context | EvalContext | jinja2.Environment))
        if len(args) > at:
            args = (*args[:at], _paid_operand(name, args[at]), *args[at + 1 :])
        return current_meter().value(traced(function(*args, **kwargs)))

    return run


def _refuse_long_path(name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Each item of a list is asked for each part of an attribute's path, `a.b,c.d`; `join` takes it third."""
    paths = (*(args if name in BY_PATH else args[2:] if name == "join" else ()), kwargs.get("attribute"))
    if any(isinstance(path, str) and count_of(path, ".,") > MAX_PATH for path in paths):
        raise TemplateRefused("it asks for attributes of attributes without end")


def _paid_operand(name: str, value: Any) -> Any:
    meter = current_meter()
    if name in PRINTING and not isinstance(value, str):
        meter.value(value)
    elif name in WORDS:
        meter.spend(UNITS_PER_NODE * len(value))
    is_list = isinstance(value, list | tuple | dict) or (name == "reverse" and isinstance(value, str))
    return paid_items(value) if isinstance(value, Iterator) or (name in LISTING and not is_list) else value


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
    parts = [text_of(part) for part in value]
    pay_for_join(text_of(d), parts)
    return printed(d).join(parts)


@jinja2.pass_eval_context
def _replace(eval_ctx: Any, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    pay_for_replace(str(s), old, new, count)
    return do_replace(eval_ctx, printed(s), old, new, count)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = len(width) if isinstance(width, str) else width
    current_meter().spend((count_of(s, LINE_ENDS) + 1) * (size + UNITS_PER_NODE))
    blanks = width if isinstance(width, str) else " " * width
    lines = (printed(s) + "\n").splitlines()
    # As jinja2's own, which joins the lines as plain texts.
    return Traced("\n").join(
        [blanks + line if (first if at == 0 else line or blank) else line for at, line in enumerate(lines)]
    )


def _trim(value: Any, chars: str | None = None) -> str:
    if len(chars or "") > MAX_DIGITS:
        raise TemplateRefused("it trims a huge set of characters")
    return printed(value).strip(chars)


def _center(value: Any, width: int = 80) -> str:
    current_meter().spend(width)
    return printed(value).center(width)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    pay_for_percent(str(value), kwargs or args)
    return printed(value) % (kwargs or args)


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
    return list(sync_do_slice(list(value), slices, fill_with))


_OWN: dict[str, Callable] = {
    "safe": printed,  # nothing is escaped, so that nothing needs the mark
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


def _cut(value: Any) -> Any:
    """A slice. What is in a list was paid for: the list alone is new."""
    current_meter().step()
    current_meter().spend(len(value) if isinstance(value, str | list | tuple) else 1)
    return value


def _items(value: Any) -> Any:
    """What a loop or a call goes through; jinja2 may make a list of it."""
    current_meter().step()
    if isinstance(value, str):
        current_meter().spend(UNITS_PER_NODE * len(value))
    return paid_items(value) if isinstance(value, Iterator) else value


def _concat(values: list) -> str:
    return join_traced(current_meter().value(text_of(value)) for value in values)


# A leading blank: no template can write these names.
_INSERTED: dict[str, Callable] = {
    " step": _step,
    " turn": _turn,
    " value": _value,
    " cut": _cut,
    " items": _items,
    " concat": _concat,
}
