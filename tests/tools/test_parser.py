"""Calls out of text: the same events wherever it is cut, and text for whatever is no call."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jllama.tools import formats
from jllama.tools.call_objects import named_call, read_call
from jllama.tools.definitions import Call
from jllama.tools.events import Arguments, Begin, End, calls_of
from jllama.tools.parser import CallParser

NAMES = ("f", "get_weather")
CITY = '{"city": "Oslo"}'
F = '{"name": "f", "arguments": {}}'
NASTY = '{"a": "</tool_call>\\n<tool_call> \\"[TOOL_CALLS] }] {", "b": [{"c": {}}], "d": "\\\\"}'
ONE = [("get_weather", CITY)]
# format, what the model writes, what stays text, names and arguments of the calls
CASES = [
    ("hermes", f'<tool_call>\n{{"name": "get_weather", "arguments": {CITY}}}\n</tool_call>', "", ONE),
    ("hermes", f"I look.\n\n<tool_call>{F}</tool_call>\n\n", "I look.", [("f", "{}")]),
    ("hermes", f"<tool_call>\n{F}\n</tool_call>\n<tool_call>\n{F}\n</tool_call>", "", [("f", "{}")] * 2),
    ("hermes", f'<tool_call>{{"arguments": {NASTY}, "name": "x"}}', "", [("x", NASTY)]),
    ("hermes", f"a <tool_call>{F}</tool_call> b", "ab", [("f", "{}")]),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {city}}\n</tool_call>', None, []),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>', None, []),
    ("hermes", f"<tool_call> <tool_call>\n{F}\n</tool_call>", "<tool_call>", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', None, []),
    ("hermes", "3 < 4, <tool> and <tool_cal", None, []),
    ("hermes", "<tool_call>] said he", None, []),
    ("hermes", '{"name": "f", "arguments": {}}', None, []),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"type": "function", "function": {"name": "f"}}', "", [("f", "{}")]),
    ("smollm2", f"<tool_call>[{F}, {F}]</tool_call>", "", [("f", "{}")] * 2),
    ("smollm2", "<tool_call>[]</tool_call>", "", []),
    ("smollm2", f"<tool_call>[{F}]</tool", "", [("f", "{}")]),
    ("smollm2", f"<tool_call>[\n{F},\n{{broken}}]</tool_call>", "{broken}]</tool_call>", [("f", "{}")]),
    ("llama", f'{{"name": "get_weather", "parameters": {CITY}}}', "", ONE),
    ("llama", f'\n<|python_tag|>{{"name": "get_weather", "parameters": {CITY}}}', "", ONE),
    (
        "llama",
        '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}};',
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    ("llama", '{"name": "someone", "parameters": {}}', None, []),
    ("llama", '  {"a": 1}', None, []),
    ("llama", "[1, 2]", None, []),
    ("llama", '[{"a": 1}', None, []),
    ("llama", 'So: {"name": "f", "parameters": {}}', None, []),
    ("llama", "<|python_tag|>print(1)", None, []),
    ("llama", " \n ", None, []),
    (
        "mistral-list",
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {CITY}, "id": "abcdefghi"}}]',
        "",
        ONE,
    ),
    ("mistral-list", f"[TOOL_CALLS][{F},{F}]", "", [("f", "{}")] * 2),
    ("mistral-list", f"[TOOL_CALLS]get_weather[ARGS]{CITY}", "", ONE),
    ("mistral-args", f"[TOOL_CALLS]get_weather[ARGS]{CITY}[TOOL_CALLS]f[ARGS]{{}}", "", [*ONE, ("f", "{}")]),
    ("mistral-args", f"Now.[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{CITY}", "Now.", ONE),
    ("mistral-args", f"[TOOL_CALLS]get_weather{NASTY}", "", [("get_weather", NASTY)]),
    ("mistral-args", f"[TOOL_CALLS] [{F}]", "", [("f", "{}")]),
    ("mistral-args", "[TOOL_CALLS]f[ARGS]{oh}", None, []),
    ("mistral-args", "[TOOL_CALLS]what is this", None, []),
    ("mistral-args", "[TOOL_CALLS]f", None, []),
    ("phi", f"<|tool_call|>[{F}]<|/tool_call|>", "", [("f", "{}")]),
    ("phi", f"<|tool_call|>{F}<|/tool_call|><|tool_call|>{F}<|/tool_call|>", "", [("f", "{}")] * 2),
    ("phi", f"functools[{F}, {F}]", "", [("f", "{}")] * 2),
    ("phi", "functools is a module: functools[0]", None, []),
    ("generic", f"{F}\n{F}", "", [("f", "{}")] * 2),
    ("generic", f"[{F}]\nDone.", "Done.", [("f", "{}")]),
    ("generic", "", "", []),
    ("generic", f"{F}\u00a0\u00a0Done.", "Done.", [("f", "{}")]),  # blanks, though none that part calls
    ("hermes", f"<tool_call>{F}</tool_call>\u00a0\u00a0Done.", "Done.", [("f", "{}")]),
]
FORMATS = {each.name: each for each in formats.ALL}


def read(format, text, cuts=(), sure=False):
    """The text, and names with arguments, of an answer that comes cut so; its events are in order."""
    ids = itertools.count()
    parser = CallParser(FORMATS[format], NAMES, lambda: f"call_{next(ids)}", sure=sure)
    ends = [*sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    events = [event for piece in pieces for event in parser.push(piece)] + parser.push("", final=True)
    check_order(events)
    said, calls = calls_of(events)
    assert [call.id for call in calls] == [f"call_{at}" for at in range(len(calls))]
    return said, [(call.name, call.arguments) for call in calls]


def check_order(events):
    """Begin, arguments, end of one call before the next begins; nothing but text outside."""
    open_call, begun = None, 0
    for event in events:
        if isinstance(event, Begin):
            assert (open_call, event.index) == (None, begun)
            open_call, begun = event.index, begun + 1
        elif isinstance(event, Arguments):
            assert event.index == open_call
            assert event.piece
        elif isinstance(event, End):
            assert event.index == open_call
            open_call = None
        else:
            assert event
            assert open_call is None


@pytest.mark.parametrize(("format", "text", "rest", "calls"), CASES)
def test_what_is_a_call_and_what_is_text_wherever_it_is_cut(format, text, rest, calls):
    wanted = (text if rest is None else rest, calls)
    assert read(format, text) == wanted
    for cut in range(len(text)):
        assert read(format, text, [cut]) == wanted
    assert read(format, text, range(len(text))) == wanted
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("format", FORMATS)
def test_what_a_grammar_enforces_is_read_as_it_comes(format, several):
    calls = [
        Call("", name, arguments) for name, arguments in (("f", NASTY), ("get_weather", CITY), ("f", "{}"))
    ]
    text = str.__str__(FORMATS[format].written(calls[:several]))
    wanted = ("", [(call.name, call.arguments) for call in calls[:several]])
    for cuts in ((), *([cut] for cut in range(len(text))), range(len(text))):
        assert read(format, text, cuts, sure=True) == wanted
        assert read(format, text, cuts) == wanted
    parser = CallParser(FORMATS[format], NAMES, lambda: "id", sure=True)
    half = text[: text.index("[TOOL_CALLS] }")]  # amid the arguments
    told = calls_of(parser.push(half))[1]
    assert told[0].arguments == NASTY[: len(told[0].arguments)] != ""
    assert calls_of(parser.push("", final=True)) == ("", [])  # an answer that was cut: what came was told


def test_a_call_that_is_cut_has_what_came_of_its_arguments():
    assert read("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": [1', sure=True) == (
        "",
        [("f", '{"a": [1')],
    )


@pytest.mark.parametrize("format", FORMATS)
def test_a_call_that_is_cut_before_its_arguments_leaves_no_marks(format):
    one, two = (FORMATS[format].written([Call("", name, CITY)] * 2) for name in ("f", "get_weather"))
    head = one.index(CITY)
    for text, begun in ((one[:head], 0), (two, 1)):
        for end in range(text.index(CITY) + len(CITY) if begun else 0, len(text)):
            parser = CallParser(FORMATS[format], NAMES, lambda: "id", sure=True, must=True)
            said, calls = calls_of(parser.push(text[:end], final=True))
            assert (said, len(calls) >= begun) == ("", True), text[:end]
    behind = CallParser(FORMATS[format], NAMES, lambda: "id", sure=True)  # where it might be a text
    if mark := FORMATS[format].marks[:1]:
        assert calls_of(behind.push(f"So. {mark[0]}[", final=True)) == ("So.", [])


@pytest.mark.parametrize(
    ("format", "text", "rest"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}}</tool_call> }', "}</tool_call> }"),
        ("llama", '{"name": "f", "parameters": {}} }', "}"),
        ("mistral-args", "[TOOL_CALLS]f[ARGS]{}} and", "} and"),
        ("mistral-args", "[TOOL_CALLS]f[ARGS]{} }", "}"),
    ],
)
def test_behind_a_call_one_brace_goes_where_the_format_has_one(format, text, rest):
    for cuts in ((), range(len(text))):
        assert read(format, text, cuts, sure=True) == read(format, text, cuts) == (rest, [("f", "{}")])


MARKS = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "functools",
    "<|tool_call|>",
    "<tool",
    "_call>",
)
REST = ("f", '{"name": "f", "arguments": ', "{}", "}", "[", "]", ",", " ", "\n", '"', "\\", "x", F)
pieces = st.lists(st.sampled_from([*MARKS, *REST]), max_size=14)


@given(st.sampled_from(sorted(FORMATS)), pieces, st.sets(st.integers(0, 90)), st.booleans())
def test_cuts_change_nothing(format, pieces, cuts, sure):
    text = "".join(pieces)
    wanted = read(format, text, sure=sure)
    assert read(format, text, [cut for cut in cuts if cut < len(text)], sure=sure) == wanted
    if not sure:
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in wanted[1])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"name": "f"}', ("f", "{}")),
        ('{"name": "f", "arguments": null}', ("f", "{}")),
        ('{"name": "f", "arguments": ""}', ("f", "{}")),
        ('{"name": "f", "arguments": {}}', ("f", "{}")),
        ('{"name": "f", "parameters":  {"a":  1} }', ("f", '{"a":  1}')),  # as it was written
        ('{"arguments": {"a": 1}, "name": "f", "parameters": {"b": 2}}', ("f", '{"a": 1}')),
        ('{"name": "f", "arguments": "{\\"a\\":1}"}', ("f", '{"a":1}')),
        ('{"function": {"name": "f", "arguments": {"a": 1}}, "id": "x"}', ("f", '{"a": 1}')),
        ('{"function": "g", "name": "f"}', ("f", "{}")),
        ('{"name": "f", "arguments": 3}', None),
        ('{"name": "f", "arguments": [1]}', None),
        ('{"name": "f", "arguments": false}', None),
        ('{"name": "f", "id": broken}', None),
    ],
)
def test_what_a_call_says(text, found):
    assert read_call(text) == found


@pytest.mark.parametrize(
    "text",
    [
        '{"name": 3}',
        '{"name": ""}',
        "[]",
        '{"name": "f", "arguments": "x"}',
        "{" * 9,
        '{"name": "f", "arguments": "[]"}',
    ],
)
def test_what_is_no_call(text):
    assert read_call(text) is None


def test_arguments_with_half_a_letter_are_no_call():
    assert named_call("f", '{"a": "\ud800"}') is None
    assert named_call("f", '{"a": "é"}') == ("f", '{"a": "é"}')
