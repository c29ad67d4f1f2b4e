"""Python functions as tools: what a model is told, which arguments fit, what comes back."""

import contextlib
import dataclasses
import datetime
import enum
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired, Optional, Required, TypedDict

import pytest

from jllama.cli import interrupts
from jllama.errors import JllamaError
from jllama.tools.definitions import Call
from jllama.tools.functions import Toolbox, as_text, tool_of
from jllama.tools.python_file import load_functions
from jllama.tools.schemas import required_fields


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Trip(TypedDict):
    to: Point
    by: NotRequired[str]


def everything(
    text: Annotated[str, "some text"],
    whole: int,
    number: float,
    flag: bool,
    words: list[str],
    table: dict[str, int],
    unit: Literal["C", "F"],
    maybe: Optional[int],  # noqa: UP045
    colour: Colour,
    trip: Trip,
    anything: Any = None,
    either: int | str = 1,
    *,
    points: Sequence[Point] = (),
):
    """Takes all.

    Of them.
    """
    return [type(value).__name__ for value in locals().values()]


ARGUMENTS = dict(
    text="t",
    whole=1,
    number=2,
    flag=True,
    words=["a"],
    table={"a": 1},
    unit="C",
    maybe=None,
    colour="red",
    trip={"to": {"x": 1}},
    points=[{"x": 1, "y": 2.5}],
)


def run(function, **arguments):
    return Toolbox([function]).run(Call("id", function.__name__, json.dumps(arguments)))


def test_what_a_model_is_told():
    tool = tool_of(everything)
    assert tool.description == "Takes all.\n\nOf them."
    assert tool.parameters["required"] == [*ARGUMENTS][:-1]
    assert {k: v for k, v in tool.parameters.items() if k not in ("properties", "required")} == {
        "type": "object",
        "additionalProperties": False,
    }
    point = {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}}
    point |= {"required": ["x"], "additionalProperties": False}
    trip = {"type": "object", "properties": {"to": point, "by": {"type": "string"}}, "required": ["to"]}
    assert tool.parameters["properties"] == {
        "text": {"type": "string", "description": "some text"},
        "whole": {"type": "integer"},
        "number": {"type": "number"},
        "flag": {"type": "boolean"},
        "words": {"type": "array", "items": {"type": "string"}},
        "table": {"type": "object", "additionalProperties": {"type": "integer"}},
        "unit": {"enum": ["C", "F"]},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "colour": {"enum": ["red", "blue"]},
        "trip": trip | {"additionalProperties": False},
        "anything": {},
        "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "points": {"type": "array", "items": point},
    }


@dataclasses.dataclass
class Kinds:
    plain: int
    given: int = 1
    made: list[int] = dataclasses.field(default_factory=list)
    reckoned: int = dataclasses.field(init=False)


class Half(TypedDict, total=False):
    b: Required[int]
    a: Required[int]
    c: int


@pytest.mark.parametrize(("kind", "required"), [(Kinds, ["plain"]), (Half, ["a", "b"]), (Trip, ["to"])])
def test_what_must_be_given_of_several_fields(kind, required):
    assert required_fields(kind) == required


def test_arguments_become_what_the_hints_say():
    text, ran = run(everything, **ARGUMENTS)
    kinds = [
        "str",
        "int",
        "float",
        "bool",
        "list",
        "dict",
        "str",
        "NoneType",
        "Colour",
        "dict",
        "NoneType",
        "int",
    ]
    assert (json.loads(text), ran) == ([*kinds, "list"], True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"whole": 1.5}, "whole is 1.5, but must be int"),
        ({"whole": True}, "whole is True"),
        ({"number": True}, "number is True, but must be float"),
        ({"text": None}, "text is None, but must be str"),
        ({"words": ["a", 3]}, "words[1] is 3"),
        ({"unit": "K"}, "unit is 'K', but must be typing.Literal['C', 'F']"),
        ({"colour": "green"}, "must be ['red', 'blue']"),
        ({"trip": {"to": {"y": 1}}}, "trip.to lacks the field 'x'"),
        ({"trip": {"to": {"x": 1}, "at": 3}}, "trip has no field 'at'"),
        ({"either": []}, "either is [], but must be int or str"),
        ({"other": 3}, "there is no parameter 'other'"),
        ({"number": float("nan")}, "no JSON object"),
        ({"number": float("-inf")}, "no JSON object"),
    ],
)
def test_arguments_that_do_not_fit_go_back_to_the_model(changes, words):
    text, ran = run(everything, **(ARGUMENTS | changes))
    assert not ran
    assert words in json.loads(text)["error"]


def greet(name: str, times: int = 1) -> str:
    """Says hello."""
    return f"Hello {name}! " * times


def test_results_and_mistakes():
    box = Toolbox([greet, broken, made])
    assert box.run(Call("", "greet", '{"name": "é"}')) == ("Hello é! ", True)
    assert box.run(Call("", "made", "{}")) == ('{"x": 1, "y": 0.0}', True)
    for name, arguments, words in (
        ("broken", "{}", "ZeroDivisionError: division by zero"),
        ("greet", "{}", "parameter 'name' is missing"),
        ("greet", "{", "no JSON object"),
        ("greet", "[]", "no JSON object"),
        ("greet", '{"times": 1e999}', "out of range"),
        ("gret", "{}", "there is no tool 'gret'; there are greet, broken, made"),
    ):
        text, ran = box.run(Call("", name, arguments))
        assert not ran
        assert words in json.loads(text)["error"], text


def nothing():
    pass


@pytest.mark.parametrize(
    ("tools", "call", "words"),
    [
        ([], "f", "there is no tool 'f'; there are none"),
        ([greet, nothing], "f", "there is no tool 'f'; there are greet, nothing"),
        ([nothing], "nothing", "there is no parameter 'x'; there are none"),
        ([greet], "greet", "there is no parameter 'x'; there are name, times"),
    ],
)
def test_what_there_is_is_told_where_something_is_missing(tools, call, words):
    box = Toolbox(tools)
    assert box.run(Call("", call, '{"x": 1}')) == (json.dumps({"error": words}), False)
    assert box.problem(Call("", call, '{"x": 1}')) == json.dumps({"error": words})


def broken():
    return 1 / 0


def leaving():
    sys.exit(3)


def unnumbered():
    return {"a": [float("nan"), float("-inf"), "é", 1.5]}


def half():
    return "a\ud800"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (None, "null"),
        ([1, True, "é"], '[1, true, "é"]'),
        (Point(1.0), '{"x": 1.0, "y": 0.0}'),
        ({"at": datetime.date(2026, 1, 2)}, '{"at": "2026-01-02"}'),  # what JSON does not know, as a text
        (Colour.RED, '"Colour.RED"'),
        (Point, f'"{Point}"'),
        (float("inf"), '"Infinity"'),
        ({1: 2}, '{"1": 2}'),
    ],
)
def test_what_a_function_gave_is_told_as_text_or_json(value, text):
    assert as_text(value) == text


def test_a_tool_that_leaves_or_gives_half_a_letter():
    box = Toolbox([leaving, half, unnumbered])
    assert box.run(Call("", "unnumbered", "{}")) == ('{"a": ["NaN", "-Infinity", "é", 1.5]}', True)
    assert box.run(Call("", "leaving", "{}")) == ('{"error": "SystemExit: 3"}', False)
    assert box.run(Call("", "half", "{}")) == ("a?", True)


def terminated():
    raise interrupts.Terminated(143)


def interrupted():
    raise KeyboardInterrupt


def test_signals_are_no_tools_mistake(tmp_path):
    with pytest.raises(SystemExit):
        Toolbox([terminated]).run(Call("", "terminated", "{}"))
    with pytest.raises(KeyboardInterrupt):
        Toolbox([interrupted]).run(Call("", "interrupted", "{}"))
    path = tmp_path / "tools.py"
    path.write_text("from jllama.cli import interrupts\nraise interrupts.Terminated(143)\n")
    with pytest.raises(interrupts.Terminated):
        load_functions(path)
    path.write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_functions(path)


def noted(
    a: Annotated[int, "one", 5, "two"], b: Annotated[str, 5], c: Annotated[int | None, ""] = None
) -> None:
    pass


def test_texts_beside_a_hint_are_told_and_nothing_else_is():
    made = tool_of(noted).parameters
    assert made["required"] == ["a", "b"]
    assert made["properties"] == {
        "a": {"type": "integer", "description": "one two"},
        "b": {"type": "string"},
        "c": {"anyOf": [{"type": "integer"}, {"type": "null"}], "description": ""},
    }
    assert Toolbox([noted]).problem(Call("", "noted", '{"a": 1, "b": "x"}')) is None
    assert run(noted, a=1, b="x", c=None) == ("null", True)


def made():
    return Point(1)


def bare(x):
    pass


def half_bare(y: int, x):
    pass


def odd(x: bytes):
    pass


def keyed(x: dict[int, str]):
    pass


def many(*x: int):
    pass


def nowhere(x: "Nowhere"):  # noqa: F821
    pass


@dataclasses.dataclass
class Endless:
    next: "Endless | None"


def endless(x: Endless):
    pass


def in_bytes(x: Literal[b"a"]):
    pass


def of_none(x: enum.Enum("Empty", [])):
    pass


def of_nan(x: enum.Enum("Odd", {"a": float("nan")})):
    pass


async def later():
    pass


def one_by_one():
    yield 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (in_bytes, "tool in_bytes(x): the values of typing.Literal[b'a'] must be"),
        (of_none, "the values of Empty must be"),
        (of_nan, "tool of_nan(x): Odd holds nan, no number of JSON"),
        (later, "tool later is a generator or async"),
        (one_by_one, "tool one_by_one is a generator or async"),
        (5, "tool int says no parameters"),
        (bare, "tool bare: parameter x has no type hint"),
        (half_bare, "tool half_bare: parameter x has no type hint"),
        (odd, "tool odd(x): the type hint bytes can't be told"),
        (keyed, "keys of a dict must be str"),
        (many, "has no name"),
        (nowhere, "type hint can't be read: name 'Nowhere'"),
        (endless, "nest without end"),
    ],
)
def test_a_hint_that_can_not_be_told_is_refused_with_its_name(function, words):
    with pytest.raises(JllamaError) as error:
        Toolbox([function])
    assert words in str(error.value)


def containers(a: list, b: dict, c: dict[str, list[int]], d: Sequence) -> list:
    return [a, b, c, d]


def test_containers_of_anything():
    array, table = {"type": "array"}, {"type": "object"}
    lists = {"type": "array", "items": {"type": "integer"}}
    assert tool_of(containers).parameters["properties"] == {
        "a": array,
        "b": table,
        "c": table | {"additionalProperties": lists},
        "d": array,
    }
    given = dict(a=[1, "x"], b={"k": None}, c={"l": [2]}, d=[])
    assert run(containers, **given) == (json.dumps(list(given.values())), True)
    text, ran = run(containers, **given | {"c": {"l": ["x"]}})
    assert (ran, json.loads(text)) == (False, {"error": "c.l[0] is 'x', but must be int"})
    text, ran = run(containers, **given | {"a": {}})
    assert (ran, json.loads(text)) == (False, {"error": "a is {}, but must be list"})


class Mixed(enum.Enum):
    ONE = 1
    WORD = "w"
    NONE = None


def mixed(x: Mixed, y: Literal[1, True, "1", None] = None) -> list:
    return [x.name, y]


def half_odd(x: Literal["a", b"b"]):
    pass


def test_values_of_several_kinds():
    assert tool_of(mixed).parameters["properties"] == {
        "x": {"enum": [1, "w", None]},
        "y": {"enum": [1, True, "1", None]},
    }
    assert run(mixed, x=1, y=True) == ('["ONE", true]', True)
    assert run(mixed, x=None, y="1") == ('["NONE", "1"]', True)
    assert not run(mixed, x="1")[1]
    assert not run(mixed, x=1, y=1.0)[1]
    with pytest.raises(JllamaError, match="must be texts, numbers, bools or None"):
        tool_of(half_odd)


@pytest.mark.parametrize(("length", "shown"), [(78, "'" + "x" * 78 + "'"), (79, "'" + "x" * 78 + "…")])
def test_what_does_not_fit_is_quoted_up_to_a_length(length, shown):
    error = json.loads(run(everything, **ARGUMENTS | {"whole": "x" * length})[0])["error"]
    assert error == f"whole is {shown}, but must be int"


def test_names_are_their_own():
    with pytest.raises(JllamaError, match="two tools are called 'greet'"):
        Toolbox([greet, greet])


FILE = """
from dataclasses import dataclass
from math import sqrt
from textwrap import dedent

@dataclass
class Pair:
    a: int

def first(pair: Pair) -> int:
    return pair.a

def _helper(): ...

def second() -> str:
    return "2"
"""


def test_a_file_gives_its_own_functions(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    functions = load_functions(tmp_path / "mine.py")
    assert [function.__name__ for function in functions] == ["first", "second"]
    assert Toolbox(functions).run(Call("", "first", '{"pair": {"a": 3}}')) == ("3", True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("source", [FILE, "1 / 0"])
def test_a_file_leaves_the_way_of_importing_as_it_was(tmp_path, monkeypatch, before, source):
    monkeypatch.setattr(sys, "dont_write_bytecode", before)
    (tmp_path / "mine.py").write_text(source)
    with contextlib.suppress(JllamaError):
        load_functions(tmp_path / "mine.py")
    assert sys.dont_write_bytecode is before


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\ny = 1 / 0\n", "fails in line 2: ZeroDivisionError"),
        ("def f():\n    return 1 / 0\n\nf()", "fails in line 2: ZeroDivisionError"),
        ("import json\njson.loads('{')", "fails in line 2: JSONDecodeError"),
        ("from textwrap import dedent", "defines no function"),
        ("def _f():\n    pass", "defines no function"),
        ("def f(:\n", "fails in line 1: SyntaxError"),
        ("raise SystemExit(3)", "fails in line 1: SystemExit"),
        ("from math import sqrt", "defines no function"),
        (None, "there is no file"),
    ],
)
def test_a_file_that_can_not_be_used(tmp_path, source, words):
    path = tmp_path / "tools.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(JllamaError) as error:
        load_functions(path)
    assert words in str(error.value)
