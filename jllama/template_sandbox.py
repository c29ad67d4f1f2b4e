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
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from jllama import template_filters, template_prices
from jllama.template_meter import TemplateRefused, current_meter

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
    current_meter().spend(len(pattern) * template_prices.UNITS_PER_FIELD)
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


class _Instrument(NodeTransformer):
    """Puts the meter into the syntax tree, where jinja2 has no hook to offer."""

    def __init__(self) -> None:
        self._visitors: dict[type, Callable[[Any], nodes.Node]] = {
            nodes.For: self._loop,
            nodes.Concat: self._concat,
            nodes.Compare: self._compare,
            nodes.Getitem: self._getitem,
            nodes.Call: self._call,
            nodes.Filter: self._call,
            nodes.Test: self._call,
        }
        bodies = (nodes.Macro, nodes.CallBlock, nodes.Block)
        values = (nodes.List, nodes.Tuple, nodes.Dict)
        others = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
        self._visitors |= dict.fromkeys(bodies, self._pay_for_body)
        self._visitors |= dict.fromkeys(values, self._pay_for_value)
        self._visitors |= dict.fromkeys(others, self._refuse)

    def _paid(self, node: nodes.Expr, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def _pay_for_body(self, node: Any) -> Any:
        self.generic_visit(node)
        static = sum(len(data.data) for part in node.body for data in _texts(part))
        price = nodes.Const(static, lineno=node.lineno)
        payment = nodes.Output([self._paid(price, " turn")], lineno=node.lineno)
        node.body.insert(0, payment)
        return node

    def _loop(self, node: Any) -> nodes.Node:
        node = self._pay_for_body(node)
        node.iter = self._paid(node.iter, " items")
        return node

    def _call(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = self._paid(node.dyn_args, " items")
        return node

    def _pay_for_value(self, node: Any) -> nodes.Node:
        # The target of `{% set a, b = … %}` is a Tuple too, and takes no filter.
        if getattr(self.generic_visit(node), "ctx", "load") != "load":
            return node
        return self._paid(node, " value")

    def _concat(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return self._paid(nodes.List(node.nodes, lineno=node.lineno), " concat")

    def _compare(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._paid(node.expr, " step")
        for operand in node.ops:
            operand.expr = self._paid(operand.expr, " step")
        return node

    def _getitem(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return self._paid(node, " cut")
        if node.ctx == "load" and not isinstance(node.arg, nodes.Const):
            node.node = self._paid(node.node, " step")
        return node

    def _refuse(self, node: Any) -> nodes.Node:
        raise TemplateRefused(f"it reads other templates (line {node.lineno})")

    def get_visitor(self, node: nodes.Node) -> Any:
        return self._visitors.get(type(node))


def _texts(node: nodes.Node) -> list[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        return [node]
    return list(node.find_all(nodes.TemplateData))


class SandboxedTemplates(ImmutableSandboxedEnvironment):
    """Compiles chat templates as transformers does, with a meter running."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            # Folding constants would compute `9**9**9` while compiling, before any meter runs.
            optimized=False,
            finalize=template_filters.finalize,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
            "dict": _make_dict,
            "namespace": _Namespace,
        }
        self.filters = template_filters.metered(DEFAULT_FILTERS)
        self.tests = {name: template_filters.stepped(test) for name, test in DEFAULT_TESTS.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateRefused(f"it is longer than {MAX_SOURCE_CHARS} characters")
        return _Instrument().visit(super()._parse(source, name, filename))

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
        formatter = template_prices.PaidFormatter(self)
        if isinstance(pattern, Markup):
            formatter = template_prices.PaidEscapeFormatter(self, escape=pattern.escape)

        def write(*args: Any, **kwargs: Any) -> str:
            current_meter().spend(len(pattern))
            given = ((), *args) if value.__name__ == "format_map" else (args, kwargs)
            return type(pattern)(formatter.vformat(pattern, *given))

        return write

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = current_meter()
        meter.step()
        # A macro finds its arguments again as one tuple, `varargs`, which no literal paid for.
        meter.value((args, kwargs))
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            args = template_prices.pay_for_method(owner, obj.__name__, args, kwargs)
        return meter.value(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = current_meter()
        meter.step()
        if operator == "%" and isinstance(left, str):
            template_prices.pay_for_percent(left, right)
        elif operator in ("*", "**"):
            template_prices.pay_for_product(operator, left, right)
        return meter.value(super().call_binop(context, operator, left, right))
