"""A jinja2 environment in which a hostile template can neither reach out nor run away.

Reaching out: jinja2's immutable sandbox, and of the attributes of plain data only named methods.
Running away: every loop turn, call, filter, test, comparison and output pays into a meter, which
stops on size (characters and nodes made) and on the processor time of its own thread. Operations
whose result can outgrow their operands pay before they run. No signals, no trace hooks, no child
processes, so it works on every platform and in any thread.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from markupsafe import Markup

from jllama.text.template import filters, prices
from jllama.text.template.instrument import Instrument
from jllama.text.template.meter import TemplateRefused, current_meter
from jllama.text.template.traced_format import braces
from jllama.text.template.traced_text import Traced, concatenate, traced

MAX_SOURCE_CHARS = 1 << 16

STR_METHODS = frozenset(
    """capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha
    isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust
    lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split
    splitlines startswith strip swapcase title upper zfill""".split()
)
METHODS: Mapping[type, frozenset[str]] = {
    str: STR_METHODS,
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index", "grouper", "list"}),  # the last two: what `groupby` makes
    int: frozenset({"bit_count", "bit_length", "denominator", "imag", "numerator", "real"}),
    float: frozenset({"imag", "is_integer", "real"}),
}


class TemplateRaised(jinja2.TemplateError):
    """The template itself refused its input through `raise_exception`."""


def raise_exception(message: Any) -> None:
    raise TemplateRaised(str(message))


def strftime_now(pattern: str) -> str:
    if re.search(r"%[^a-zA-Z%]*\d", pattern):
        raise TemplateRefused("it asks strftime_now for a padded field")
    current_meter().spend(len(pattern) * prices.UNITS_PER_FIELD)
    return datetime.now().strftime(pattern)


class _Namespace(Namespace):
    """Jinja's namespace without underscore names, which could pass for Python's own protocols."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if str(name).startswith("_"):
        raise TemplateRefused(f"it sets the private name {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict:
    return dict(*args, **kwargs)


class _Generation(Extension):
    """`{% generation %}` marks text for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 (the base class has it so)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class SandboxedTemplates(ImmutableSandboxedEnvironment):
    """Compiles chat templates as transformers does, with a meter running."""

    concat = staticmethod(concatenate)
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            # Folding constants would compute `9**9**9` while compiling, before any meter runs.
            optimized=False,
            finalize=filters.finalize,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
            "dict": _make_dict,
            "namespace": _Namespace,
        }
        self.filters = filters.metered(DEFAULT_FILTERS)
        self.tests = {name: filters.stepped(test) for name, test in DEFAULT_TESTS.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateRefused(f"it is longer than {MAX_SOURCE_CHARS} characters")
        return Instrument(self).visit(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        kind = next((kind for kind in METHODS if isinstance(obj, kind)), None)
        return kind is None or attr in METHODS[kind]

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise TemplateRefused(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        pattern: str = value.__self__
        formatter = prices.PaidFormatter(self)
        if isinstance(pattern, Markup):
            formatter = prices.PaidEscapeFormatter(self, escape=pattern.escape)

        def write(*args: Any, **kwargs: Any) -> str:
            current_meter().spend(len(pattern))
            given = ((), *args) if value.__name__ == "format_map" else (args, kwargs)
            whole = formatter.vformat(pattern, *given)
            if isinstance(pattern, Traced):
                return braces(pattern, whole, lambda field: formatter.vformat(field, *given), *given)
            return type(pattern)(whole)

        return write

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = current_meter()
        meter.step()
        # A macro finds its arguments again as one tuple, `varargs`, which no literal paid for.
        meter.value((args, kwargs))
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            args = prices.pay_for_method(owner, obj.__name__, args, kwargs)
        return meter.value(traced(super().call(context, obj, *args, **kwargs)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = current_meter()
        meter.step()
        if operator == "%" and isinstance(left, str):
            prices.pay_for_percent(left, right)
        elif operator in ("*", "**"):
            prices.pay_for_product(operator, left, right)
        return meter.value(traced(super().call_binop(context, operator, left, right)))
