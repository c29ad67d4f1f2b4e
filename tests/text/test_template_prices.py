"""What the operations of a chat template cost, that they pay before they make it, and what a meter counts."""

import contextlib
import re
import sys
import time

import pytest
from jinja2.utils import Namespace

from jllama.text.template import meter as metering_module
from jllama.text.template import prices
from jllama.text.template.meter import UNITS_PER_NODE, Meter, TemplateRefused, current_meter, metering
from jllama.text.template.sandbox import SandboxedTemplates
from jllama.text.template.traced_text import Traced

X = {"x": Traced("a" * 1000), "n": 10, "lone": Traced("b")}


def spent(source: str, **variables) -> int:
    """Units that a template pays."""
    template = SandboxedTemplates().from_string(source)
    with metering(None) as meter:
        before = meter.left
        template.render(**X | variables)
    return before - meter.left


# What is made, and how many characters or items that are: nothing is printed.
MADE = [
    ("x | replace('a', 'bcd')", 3000),
    ("x.replace('a', 'bcd')", 3000),
    ("x.replace('a', 'bcd', 500)", 2000),
    ("x * n", 10_000),
    ("n * x", 10_000),
    ("[1] * 100", 100 * UNITS_PER_NODE),
    ("lone.center(5000)", 5000),
    ("lone | center(5000)", 5000),
    ("lone.ljust(5000)", 5000),
    ("lone.rjust(5000)", 5000),
    ("lone.zfill(5000)", 5000),
    ("('\t' * 100).expandtabs(50)", 5000),
    ("('\t' * 100).expandtabs()", 800),
    ("('\t' * 100).expandtabs(tabsize=50)", 5000),
    ("x.join(['b'] * 10)", 9000),
    ("range(10) | join(x)", 9000),
    ("('\\n' * 100) | indent(50)", 5000),
    ("('\\n' * 100) | indent('bbbbbbbbbb')", 1000),
    ("x ~ x", 2000),
    ("x + x", 2000),
    ("x[1:]", 999),
    ("('%(a)s' * 10) % {'a': x}", 10_000),
    ("('%(a)s' * 10) | format(a=x)", 10_000),
    ("'%s-%s' % (x, x)", 2000),
    ("('{0}' * 10).format(x)", 10_000),
    ("('{a}' * 10).format_map({'a': x})", 10_000),
    ("x.split('a')", 1000 * UNITS_PER_NODE),
    ("x.rsplit('a')", 1000 * UNITS_PER_NODE),
    ("('a ' * 1000).split()", 1000 * UNITS_PER_NODE),
    ("('a\\n' * 1000).splitlines()", 1000 * UNITS_PER_NODE),
    ("x | list", 1000 * UNITS_PER_NODE),
    ("x | batch(1)", 1000 * UNITS_PER_NODE),
    ("x | sort", 1000 * UNITS_PER_NODE),
    ("x | slice(2)", 1000 * UNITS_PER_NODE),
    ("x | title", 1000 * UNITS_PER_NODE),
    ("x | wordcount", 1000 * UNITS_PER_NODE),
    ("range(1000) | list", 1000 * UNITS_PER_NODE),
    ("[x, x]", 2000),
    ("(x, x)", 2000),
    ("{'a': x, 'b': x}", 2000),
    ("dict(a=x, b=x)", 2000),
    ("namespace(a=x).a", 1000),
    ("[x, x] | string", 2000),
    ("[x, x] | tojson", 2000),
    ("[x, x] | tojson(indent=1)", 2000),
    ("2 ** 1000", 250),
    ("strftime_now('%Y' * 10)", 20 * prices.UNITS_PER_FIELD),
]


@pytest.mark.parametrize(("made", "size"), MADE)
def test_what_is_made_is_paid_and_a_margin_at_most(made, size):
    nothing = spent("{% set y = 1 %}")
    assert nothing <= 100
    assert size <= spent("{% set y = " + made + " %}") <= 40 * size + 200 * UNITS_PER_NODE


class Unprinted(list):
    """Whoever prints it has not paid for it."""

    def __str__(self):
        raise AssertionError("printed before it was paid")

    __repr__ = __html__ = __str__


PRINTING = (
    "capitalize center(5) e escape format indent lower replace('q','') string title trim truncate upper"
)


@pytest.mark.parametrize("how", [*PRINTING.split(), "wordcount"])
def test_who_prints_a_list_pays_for_its_texts_before(how):
    template = SandboxedTemplates().from_string("{% set y = pair | " + how + " %}")
    with metering(None) as meter:
        meter.left = 150_000
        with pytest.raises(TemplateRefused):
            template.render(pair=Unprinted([Traced("a" * 100_000)] * 2))


@pytest.mark.parametrize(
    "printed", ["{{ x }}", "{{ [x] }}", "{{ x }}{{ n }}", "{% set y %}{{ x }}{% endset %}"]
)
def test_what_is_printed_is_paid(printed):
    assert 1000 <= spent(printed) <= 4000


# Each turn, with its static text, is paid though nothing computes in it.
BODIES = [
    "{% for i in range(20) %}" + "y" * 500 + "{% endfor %}",
    "{% macro m() %}" + "y" * 500 + "{% endmacro %}" + "{% set a = m() %}" * 20,
    "{% macro m() %}{{ caller() }}{% endmacro %}" + ("{% call m() %}" + "y" * 500 + "{% endcall %}") * 20,
    "{% for i in range(20) %}{% if true %}" + "y" * 500 + "{% endif %}{% endfor %}",
    "{% for i in range(20) %}" + "y" * 500 + "{% continue %}{% endfor %}",
    "{% for i in range(20) %}{% for j in 'a' %}" + "y" * 500 + "{% break %}{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("source", BODIES)
def test_static_text_is_paid_each_time(source):
    assert 20 * 500 <= spent(source) <= 20 * 2500


@pytest.mark.parametrize("given", ["x, x", "b=x, a=x", "*[x, x]"])
def test_what_a_macro_is_given_is_paid(given):
    """It finds it again as one tuple or dictionary, which no literal paid for."""
    macro = "{% macro m() %}{% set a = (varargs | length) + (kwargs | length) %}{% endmacro %}"
    nothing = spent(macro + "{% set y = m() %}")
    assert 2000 <= spent(macro + "{% set y = m(" + given + ") %}") - nothing <= 20_000


@pytest.mark.parametrize("walk", ["{% for i in x %}{% break %}{% endfor %}", "{% set a = '{}'.format(*x) %}"])
def test_who_walks_through_a_text_pays_for_a_list_of_it(walk):
    assert spent(walk) >= 1000 * UNITS_PER_NODE


@pytest.mark.parametrize(
    "statement", ["include 'a'", "import 'a' as b", "from 'a' import b", "extends 'a'", "include n"]
)
def test_no_template_reads_another(statement):
    with pytest.raises(TemplateRefused, match=r"it reads other templates \(line 2\)"):
        SandboxedTemplates().from_string("\n{% " + statement + " %}")


# One operation each, which looks at the clock and pays.
OPERATIONS = """
{% for i in '' %}{% endfor %}; {% for i in 'ab' %}{% endfor %}; {{ 1 }}; {% set a = range(1) %}
{% set a = lone | upper %}; {% set a = 1 is odd %}; {% set a = 1 == 2 %}; {% set a = [] %}; {% set a = () %}
{% set a = {} %}; {% set a = x[1:] %}; {% set a = x[n] %}; {% set a = 1 + 1 %}
{% set a = 2 * 2 %}; {% set a = 2 ** 2 %}; {% set a = 7 % 2 %}; {% set a = lone.upper() %}
{% set a = dict(*[]) %}; {% set a = '{}'.format(1) %}; {% set a = [1] | map('string') %}; {% set a = n < 2 %}
"""


@pytest.mark.parametrize("source", [one.strip() for one in re.split("[;\n]", OPERATIONS) if one.strip()])
def test_every_operation_looks_at_the_clock_and_pays(source, monkeypatch):
    template = SandboxedTemplates().from_string(source)
    assert spent(source) > 0
    monkeypatch.setattr(metering_module, "SECONDS", -1.0)
    with metering(None), pytest.raises(TemplateRefused, match="seconds"):
        template.render(**X)


@pytest.mark.parametrize(("later", "refused"), [(2.0, False), (2.1, True)])
def test_a_template_has_two_seconds_of_its_thread(monkeypatch, later, refused):
    now = iter([100.0, 100.0 + later])
    monkeypatch.setattr("time.thread_time", lambda: next(now))
    meter = Meter()
    if refused:
        with pytest.raises(TemplateRefused, match="more than 2 seconds"):
            meter.look()
    else:
        meter.look()


def test_what_costs_nothing_needs_no_clock(monkeypatch):
    monkeypatch.setattr(metering_module, "SECONDS", -1.0)
    with metering(None):
        assert SandboxedTemplates().from_string("text{% set a = 1 %}").render() == "text"


def test_a_comparison_looks_between_its_operands(monkeypatch):
    """Each of a chain may take long."""
    assert (
        spent("{% set a = n < 2 %}")
        < spent("{% set a = n < 20 < 30 %}")
        < spent("{% set a = 1 < 2 < 3 < 4 %}")
    )


def test_a_meter_spends_to_the_last_unit_and_not_beyond():
    meter = Meter()
    meter.left = 5
    meter.spend(-3)
    assert meter.left == 5
    meter.spend(5)
    assert meter.left == 0
    meter.spend(0)
    with pytest.raises(TemplateRefused, match="far more text"):
        meter.spend(1)
    meter.left = 5
    with pytest.raises(TemplateRefused):
        meter.spend(6)
    with pytest.raises(TemplateRefused):
        meter.spend("1")
    with pytest.raises(TemplateRefused):
        meter.spend(1.5)
    assert meter.left == 5
    meter.step()
    assert meter.left == 4


def test_a_meter_has_more_for_more():
    none, short, long = (Meter(given).left for given in (None, "x" * 1000, ["x" * 1000] * 10))
    assert none > 1_000_000
    assert short - none > 10 * 1000
    assert long - none > 9 * (short - none)


NODE = UNITS_PER_NODE
WEIGHTS = [
    ("abc", 3), ("", 0), (None, NODE), (1.5, NODE), (True, NODE), (1 << 400, NODE + 100), ([], NODE),
    (["ab", "c"], NODE + 3), ((), NODE), ({"a": "bc"}, NODE + 3), ({"a": ["b"]}, 2 * NODE + 2),
    ([[], []], 3 * NODE), ({"ab"}, NODE + 2), ({"a": 1}.keys(), NODE + 1), ({"a": "bc"}.values(), NODE + 2),
    (Namespace(a="bc"), NODE + 3), ([["ab"] * 2] * 2, 3 * NODE + 8), (frozenset({"ab"}), NODE + 2),
]  # fmt: skip


@pytest.mark.parametrize(("value", "weight"), WEIGHTS)
def test_a_value_weighs_its_characters_and_nodes_shared_ones_each_time(value, weight):
    assert Meter().weight(value) == weight
    meter = Meter()
    before = meter.left
    assert meter.value(value) is value
    assert before - meter.left == weight
    meter.left = weight - 1
    with pytest.raises(TemplateRefused):
        meter.value(value)


def test_a_walk_stops_where_nothing_is_left_and_where_the_time_is_over(monkeypatch):
    doubled = ["x"]
    for _ in range(60):
        doubled = [doubled, doubled]
    with pytest.raises(TemplateRefused, match="builds far more"):
        Meter().weight(doubled)
    late = Meter()
    late.left = sys.maxsize
    monkeypatch.setattr(time, "thread_time", lambda: 1e9)
    with pytest.raises(TemplateRefused, match="more than 2 seconds"):
        late.weight([1] * (1 << 15))
    assert late.weight([1] * 100) > 100


def test_whole_numbers_have_a_size_at_most():
    meter = Meter()
    meter.value((1 << 4096) - 1)
    with pytest.raises(TemplateRefused, match="huge number"):
        meter.value(1 << 4096)


def test_a_meter_runs_as_long_as_its_template():
    with metering(None) as outer:
        with pytest.raises(ZeroDivisionError), metering(None) as inner:
            _ = 1 / (current_meter() is not inner)
        assert current_meter() is outer
    with pytest.raises(LookupError):
        current_meter()


FIELD = prices.UNITS_PER_FIELD
PRICES = [
    (lambda: prices.pay_for_join(", ", ["a", "bc", "d"]), 4 + 3 * 2),
    (lambda: prices.pay_for_join("", [1, "bc"]), 2),
    (lambda: prices.pay_for_replace("xyx", "x", "abc"), 3 + 2 * (3 + NODE)),
    (lambda: prices.pay_for_replace("xyx", "x", "abc", 1), 3 + 3 + NODE),
    (lambda: prices.pay_for_replace("xyx", "x", "abc", 0), 3),
    (lambda: prices.pay_for_replace("xyx", "x", "abc", -1), 3 + 2 * (3 + NODE)),
    (lambda: prices.pay_for_replace("xyx", "x", "abc", 5), 3 + 2 * (3 + NODE)),
    (lambda: prices.pay_for_replace("xyx", "", "a"), 3 + 4 * (1 + NODE)),
    (lambda: prices.pay_for_product("*", "ab", 3), 6),
    (lambda: prices.pay_for_product("*", 3, "ab"), 6),
    (lambda: prices.pay_for_product("*", "ab", -3), 0),
    (lambda: prices.pay_for_product("*", ["ab"], 2), 2 * (2 + NODE)),
    (lambda: prices.pay_for_product("*", 3, 4), 0),
    (lambda: prices.pay_for_method("ab", "center", (7,), {}), 7),
    (lambda: prices.pay_for_method("ab", "center", (-7,), {}), 0),
    (lambda: prices.pay_for_method("\t\t", "expandtabs", (-7,), {}), 16),
    (lambda: prices.pay_for_method("\t\t", "expandtabs", (20,), {}), 40),
    (lambda: prices.pay_for_method("\t\t", "expandtabs", (), {"tabsize": 20}), 40),
    (lambda: prices.pay_for_method("\t\t", "expandtabs", (), {}), 16),
    (lambda: prices.pay_for_method("a,b,c", "split", (",",), {}), 2 * NODE),
    (lambda: prices.pay_for_method("a,b,c", "split", (",", 1), {}), NODE),
    (lambda: prices.pay_for_method("a,b,c", "split", (",", 0), {}), 0),
    (lambda: prices.pay_for_method("a,b,c", "split", (",", -1), {}), 2 * NODE),
    (lambda: prices.pay_for_method("a,b,c", "rsplit", (), {"sep": ",", "maxsplit": 1}), NODE),
    (lambda: prices.pay_for_method("a b\tc", "split", (), {}), 2 * NODE),
    (lambda: prices.pay_for_method("a\u3000b\u2005c", "split", (None,), {}), 2 * NODE),
    (lambda: prices.pay_for_method("a\nb\u2028c\r", "splitlines", (True,), {}), 3 * NODE),
    (lambda: prices.pay_for_method("ab", "upper", (), {}), 0),
    (lambda: prices.pay_for_method("xyx", "replace", ("x", "abc"), {}), 3 + 2 * (3 + NODE)),
    (lambda: prices.pay_for_method("xyx", "replace", ("x", "abc", 1), {}), 3 + 3 + NODE),
    (lambda: prices.pay_for_method(", ", "join", (["a", "bc"],), {}), 3 + 2 * 2 + 2 * NODE),
    (lambda: prices.pay_for_percent("ab", ()), 2 + NODE),
    (lambda: prices.pay_for_percent("%s-%s", ("a", "bc")), 5 + 2 * FIELD + NODE + 3),
    (lambda: prices.pay_for_percent("%s", "abc"), 2 + FIELD + 3),
    (lambda: prices.pay_for_percent("%(a)s%(a)s", {"a": "bc"}), 10 + 2 * FIELD + 2 * (NODE + 3)),
    (lambda: prices.pay_for_percent("%%", {"a": "bc"}), 2 + 2 * FIELD + 2 * (NODE + 3)),
]  # fmt: skip


@pytest.mark.parametrize(("pay", "units"), PRICES)
def test_a_price_is_what_may_be_made(pay, units):
    with metering(None) as meter:
        before = meter.left
        pay()
        assert before - meter.left == units
        if units:
            meter.left = units - 1
            with pytest.raises(TemplateRefused):
                pay()


def test_the_items_of_a_stream_are_paid_before_they_are_made():
    made = []
    with metering(None) as meter:
        items = prices.paid_items(made.append(i) or i for i in range(100))
        meter.left = 3 * NODE
        with pytest.raises(TemplateRefused):
            list(items)
    assert len(made) == 4  # the fourth was asked for, and not handed on


def test_each_item_of_a_stream_looks_at_the_clock(monkeypatch):
    asked = []
    with metering(None) as meter:
        monkeypatch.setattr(meter, "look", lambda: asked.append(1))
        assert list(prices.paid_items("abc")) == ["a", "b", "c"]
    assert asked == [1] * 3


@pytest.mark.parametrize(
    "name", ["rfind", "rindex", "rpartition", "rsplit", "strip", "lstrip", "rstrip", "find", "removeprefix"]
)
def test_a_slow_search_has_a_size_at_most(monkeypatch, name):
    monkeypatch.setattr(prices, "MAX_SEARCH", 100)
    is_slow = name not in ("find", "removeprefix")
    with metering(None):
        prices.pay_for_method("a" * 10, name, ("b" * 10,), {})
        for owner, args in (("a" * 11, ("b" * 10,)), ("a" * 10, ("b", "c" * 11)), ("a" * 10, (1, "c" * 11))):
            with pytest.raises(TemplateRefused, match="huge text") if is_slow else contextlib.nullcontext():
                prices.pay_for_method(owner, name, args, {})


def test_a_joined_stream_is_read_once():
    with metering(None):
        args = prices.pay_for_method(", ", "join", (iter("abc"),), {})
    assert args == (["a", "b", "c"],)


# What jinja2 or Python would make of each, and where.
OUTGROWING = [
    ("x | replace('a', x)", "jllama.text.template.filters.do_replace"),
    ("x.replace('a', x)", "jinja2.sandbox.SandboxedEnvironment.call"),
    ("x.join(['b'] * n)", "jinja2.sandbox.SandboxedEnvironment.call"),
    ("lone.center(10 ** 5)", "jinja2.sandbox.SandboxedEnvironment.call"),
    ("x.split('a')", "jinja2.sandbox.SandboxedEnvironment.call"),
    ("x * 100", "jinja2.sandbox.SandboxedEnvironment.call_binop"),
    ("('%(a)s' * 10) % {'a': x}", "jllama.text.template.traced_text.Traced.__mod__"),
    ("'%(a)s%(a)s' | format(a=x)", "jllama.text.template.traced_text.Traced.__mod__"),
    ("lone | center(10 ** 5)", "jllama.text.template.traced_text.Traced.center"),
    ("x | join(x)", "jllama.text.template.traced_text.Traced.join"),
]


@pytest.mark.parametrize(("made", "by"), OUTGROWING)
def test_what_may_outgrow_its_operands_is_paid_before_it_is_made(monkeypatch, made, by):
    whole, operands = "{% set y = " + made + " %}", "{% set y = ['b'] * n %}{% set z = '%(a)s' * 10 %}"
    template, little = SandboxedTemplates().from_string(whole), spent(operands) + 1000
    assert little < spent(whole) / 2

    def never(*_, **__):
        raise AssertionError("made before it was paid")

    monkeypatch.setattr(by, never)
    with metering(None) as meter:
        meter.left = little
        with pytest.raises(TemplateRefused):
            template.render(**X)
