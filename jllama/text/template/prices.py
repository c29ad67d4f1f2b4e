"""What an operation of a chat template costs: paid before it computes what can outgrow its operands."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2.sandbox import SandboxedFormatter
from markupsafe import EscapeFormatter

from jllama.text.template.meter import MAX_INT_BITS, UNITS_PER_NODE, TemplateRefused, current_meter
from jllama.text.template.traced_text import Traced, printed

# A stripping or a backward search costs the product of the two lengths.
MAX_SEARCH = 1 << 28
SLOW_SEARCHES = frozenset({"rfind", "rindex", "rpartition", "rsplit", "strip", "lstrip", "rstrip"})
PADDINGS = frozenset({"center", "ljust", "rjust", "zfill"})
BLANKS = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u2028\u2029\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
# A field of a million characters costs one letter: two digits of width at most.
DIGITS = re.compile(r"\d{3}")
UNITS_PER_FIELD = 128
PERCENT_REST = re.compile(r"[#0\- +\d.*]*[hlL]?")


def text_of(value: Any) -> Traced:
    """`str(value)`, paid: of a list it is much longer than the list."""
    if not isinstance(value, str):
        current_meter().value(value)
    return printed(value)


def paid_items(values: Iterable) -> Iterator[Any]:
    """The items of `values`, each paid as one of a list before it is made."""
    meter = current_meter()
    for value in values:
        meter.spend(UNITS_PER_NODE)
        meter.look()
        yield value


def pay_for_join(separator: str, parts: list) -> None:
    lengths = sum(len(part) for part in parts if isinstance(part, str))
    current_meter().spend(lengths + len(separator) * len(parts))


def pay_for_replace(text: str, old: Any, new: Any, count: int | None = None) -> None:
    pieces = text.count(text_of(old))
    if count is not None and 0 <= count < pieces:
        pieces = count
    current_meter().spend(len(text) + pieces * (len(text_of(new)) + UNITS_PER_NODE))


def count_of(text: str, characters: str) -> int:
    return sum(map(text.count, characters))


def pay_for_method(owner: str, name: str, args: tuple, kwargs: Mapping[str, Any]) -> tuple:
    """Pay for the method `name` of a text; the arguments to call it with."""
    spend = current_meter().spend
    if name == "join" and args:
        args = ([*paid_items(args[0])],)
        pay_for_join(owner, args[0])
    elif name == "replace" and len(args) > 1:
        pay_for_replace(owner, *args)
    elif name in PADDINGS and args:
        spend(args[0])
    elif name == "expandtabs":
        spend(owner.count("\t") * max(0, *args, *kwargs.values(), 8))
    elif name in {"split", "rsplit", "splitlines"}:
        spend(UNITS_PER_NODE * _pieces(owner, name, *args, **kwargs))
    longest = max((len(arg) for arg in args if isinstance(arg, str)), default=0)
    if name in SLOW_SEARCHES and longest * len(owner) > MAX_SEARCH:
        raise TemplateRefused("it searches a huge text for a huge text")
    return args


def _pieces(text: str, name: str, sep: Any = None, maxsplit: Any = -1, **_keepends: Any) -> int:
    """How many pieces splitting a text makes, at most."""
    if name == "splitlines":
        return count_of(text, LINE_ENDS)
    found = text.count(sep) if isinstance(sep, str) and sep else count_of(text, BLANKS)
    return min(found, maxsplit) if isinstance(maxsplit, int) and maxsplit >= 0 else found


def pay_for_product(sign: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if sign == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_INT_BITS:
            raise TemplateRefused("it computes a huge number")
    for many, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(many, str | list | tuple):
            current_meter().spend(current_meter().weight(many) * max(0, times))


def pay_for_percent(pattern: str, values: Any) -> None:
    """Before `pattern % values`: each field of a mapping may print all of it."""
    fields, weight = pattern.count("%"), current_meter().weight(values)
    uses = fields if isinstance(values, dict) else 1
    current_meter().spend(len(pattern) + fields * UNITS_PER_FIELD + uses * weight)
    at = pattern.find("%") + 1
    while at:
        rest = PERCENT_REST.match(pattern, _after_key(pattern, at))
        if rest is None or "*" in rest[0] or DIGITS.search(rest[0]):
            raise TemplateRefused("it formats a field of a huge or a computed width")
        at = pattern.find("%", rest.end() + 1) + 1


def _after_key(pattern: str, at: int) -> int:
    """Behind the `(name)` of a field, in which parentheses may nest."""
    depth, end = 0, at
    while pattern.startswith("(", at) and end < len(pattern):
        depth += {"(": 1, ")": -1}.get(pattern[end], 0)
        end += 1
        if not depth:
            break
    return end


class PaidFormatter(SandboxedFormatter):
    """`str.format`, each field paid before it is printed."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        value, first = super().get_field(field_name, args, kwargs)
        current_meter().step()
        return current_meter().value(value), first

    def format_field(self, value: Any, format_spec: str) -> Any:
        if DIGITS.search(format_spec):
            raise TemplateRefused("it formats a field of a huge width")
        current_meter().spend(UNITS_PER_FIELD + (len(value) if isinstance(value, str) else 0))
        return super().format_field(value, format_spec)


class PaidEscapeFormatter(PaidFormatter, EscapeFormatter):
    """The same for a text that is marked as HTML."""
