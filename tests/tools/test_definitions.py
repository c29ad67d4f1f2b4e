"""Tools and calls by themselves, how a model is told in words of both, and what tells a format."""

import itertools
import json

import pytest

from jllama.errors import JllamaError
from jllama.text.template.chat_template import ChatTemplate
from jllama.tools import formats, manner
from jllama.tools.definitions import MOST_TOOLS, Call, Tool, check_tools
from jllama.tools.events import Arguments, Begin, End, calls_of, joined
from jllama.tools.formats import GENERIC, HERMES, LLAMA, MISTRAL_ARGS, formats_of, instructions
from jllama.tools.manner import Manner
from jllama.tools.parser import CallParser
from tests.support.tool_templates import sources


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "x" * 64])
def test_a_tool_s_name(name):
    assert Tool(name=name).as_dict() == {
        "type": "function",
        "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}},
    }


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "é", "a\n", "a/b"])
def test_no_name_of_a_tool(name):
    with pytest.raises(JllamaError, match=r"a tool's name is '.*': give 1 to 64 letters, digits, _, - or"):
        Tool(name=name)


@pytest.mark.parametrize("parameters", [{}, {"type": "object"}, {"properties": {"x": {}}}])
def test_parameters_are_of_an_object(parameters):
    assert Tool(name="f", parameters=parameters).as_dict()["function"]["parameters"] == parameters


@pytest.mark.parametrize("parameters", [{"type": "string"}, {"type": ["object"]}, {"type": None}, [], None])
def test_parameters_of_something_else(parameters):
    with pytest.raises(JllamaError, match="the parameters of f must be a JSON Schema of type object"):
        Tool(name="f", parameters=parameters)


def test_tools_are_not_too_many_and_have_names_of_their_own():
    many = [Tool(name=f"f{at}") for at in range(MOST_TOOLS + 1)]
    assert check_tools(many[:-1]) == tuple(many[:-1])
    assert check_tools([]) == ()
    with pytest.raises(JllamaError, match="257 tools are too many: give at most 256"):
        check_tools(many)
    with pytest.raises(JllamaError, match="two tools are called 'f1': give each a name of its own"):
        check_tools([*many[:3], many[1], many[2]])


def test_a_call_as_a_message_has_it():
    function = {"name": "f", "arguments": "{}"}
    assert Call("i", "f", "{}").as_dict() == {"id": "i", "type": "function", "function": function}


ONE = '<tool_call>\n{"name": "NAME", "arguments": {"PARAMETER": VALUE}}\n</tool_call>'


@pytest.mark.parametrize(
    ("format", "two"),
    [
        ("hermes", "<tool_call>\n@\n</tool_call>\n<tool_call>\n@\n</tool_call>"),
        ("hermes-tight", "<tool_call>@</tool_call>\n<tool_call>@</tool_call>"),
        ("smollm2", "<tool_call>[@, @]</tool_call>"),
        ("llama", '{"name": "f", "parameters": {}}\n{"name": "f", "parameters": {}}'),
        ("mistral-list", "[TOOL_CALLS] [@, @]"),
        ("mistral-tight", "[TOOL_CALLS][@, @]"),
        ("mistral-args", "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]f[ARGS]{}"),
        ("phi", "<|tool_call|>[@, @]<|/tool_call|>"),
        ("phi-each", "<|tool_call|>@<|/tool_call|><|tool_call|>@<|/tool_call|>"),
        ("generic", "@\n@"),
    ],
)
def test_two_calls_as_each_format_writes_them(format, two):
    (one,) = (each for each in formats.ALL if each.name == format)
    written = one.written([Call("i", "f", "{}"), Call("j", "f", "{}")])
    assert str.__str__(written) == two.replace("@", '{"name": "f", "arguments": {}}')


@pytest.mark.parametrize(
    ("format", "how"),
    [
        (HERMES, f"{ONE}\nSeveral calls at once are written so:\n{ONE}\n{ONE}\n"),
        (LLAMA, '{"name": "NAME", "parameters": {"PARAMETER": VALUE}}\n'),
    ],
)
def test_a_model_is_told_in_words(format, how):
    tools = [Tool(name="f", description="Übt."), Tool(name="g", parameters={})]
    assert str.__str__(instructions(format, tools)) == (
        "You can call these functions, each given with the JSON Schema of its parameters:\n"
        '{"name": "f", "description": "Übt.", "parameters": {"type": "object", "properties": {}}}\n'
        '{"name": "g", "description": "", "parameters": {}}\n\n'
        f"To call one, answer with nothing but this:\n{how}"
        "What it returns comes back to you. If you need none of them, answer as usual."
    )


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("<tool_call><function=", []),
        ("<function_calls>", []),
        ("<|tool_call>", []),
        ("<tool▁calls▁begin>", []),
        ("[TOOL_CALLS] [ARGS] <tool_call>", ["mistral-args"]),
        ("[TOOL_CALLS]", ["mistral-list", "mistral-tight"]),
        ("<tool_call> <|tool_call|>", ["hermes", "hermes-tight", "smollm2"]),
        ("<|tool_call|>", ["phi", "phi-each"]),
        ("<|tool|>", ["phi", "phi-each"]),
        ("functools", ["phi", "phi-each"]),
        ("<|python_tag|>", ["llama"]),
        ("ipython <|eot_id|>", ["llama"]),
        ("I am named SmolLM", ["smollm2"]),
        ("ipython", None),
        ("<|eot_id|>", None),
        ("[ARGS]", None),
        ("", None),
    ],
)
def test_what_a_template_s_source_tells(source, names):
    found = formats_of(source)
    assert (found if found is None else [format.name for format in found]) == names


@pytest.mark.parametrize("format", formats.ALL, ids=lambda format: format.name)
def test_what_opens_a_call_is_a_mark_and_the_rest(format):
    mark, rest = format.opener
    assert mark + rest == format.begin + format.before
    assert mark in (*format.marks, "")
    assert bool(mark) == (format.name not in ("llama", "generic"))


IDS = {"<tool_call>": 1, "</tool_call>": 2, "[TOOL_CALLS]": 3, "[ARGS]": 4, "[CALL_ID]": 5}


@pytest.mark.parametrize(("format", "ids"), [(HERMES, (1, 2)), (MISTRAL_ARGS, (3, 4, 5)), (GENERIC, ())])
def test_special_tokens_that_a_reader_has_to_see(format, ids):
    assert format.special_ids(IDS.get) == ids
    assert format.special_ids(lambda text: 0 if text in IDS else None) == (0,) * len(ids)


def test_a_call_that_was_begun_is_amid_until_it_ends():
    parser = CallParser(HERMES, ["f"], itertools.count().__next__, sure=True)
    seen = []
    for piece in ("So <tool_call>", '{"name": "f", "arguments": {', '"a": 1', "}", "}", "</tool_call>"):
        parser.push(piece)
        seen.append((parser.is_amid, parser.count))
    assert seen == [(False, 0), (True, 1), (True, 1), (False, 1), (False, 1), (False, 1)]


def test_events_side_by_side_are_one_text_and_a_cut_call_has_what_came():
    events = ["a", "b", Begin(0, "i", "f"), Arguments(0, "{"), "c", "", "d"]
    assert joined(events) == ["ab", *events[2:4], "cd"]
    assert joined(iter([])) == []
    two = [Begin(0, "i", "f"), Arguments(0, "{"), Arguments(0, "}"), End(0), "x", Begin(1, "j", "g")]
    assert calls_of(two) == ("x", [Call("i", "f", "{}"), Call("j", "g", "")])


def test_where_no_user_speaks_the_words_stand_first():
    told = Manner.of(ChatTemplate(sources()["gemma"], bos_token="<s>", eos_token="</s>"))
    assert not told.has_system
    said = {"role": "assistant", "content": "Hello"}
    ready, variables = told.prepared([said], [Tool(name="f")])
    assert [one["role"] for one in ready] == ["user", "assistant"]
    assert ready[0]["content"] == instructions(told.format, [Tool(name="f")])
    assert (ready[1], variables) == (said, {})


@pytest.mark.parametrize(
    ("text", "data"),
    [("", {}), ('{"a": 1}', {"a": 1}), ("{half", "{half"), ("[" * 100_000, "[" * 100_000)],
)
def test_arguments_are_data_where_they_are_json(text, data):
    assert manner._data(text) == data


def test_a_system_message_keeps_its_text_before_the_tools():
    told = Manner.of(ChatTemplate(sources()["zephyr"], bos_token="<s>", eos_token="</s>"))
    user, tools = {"role": "user", "content": "?"}, [Tool(name="f")]
    words = instructions(told.format, tools)
    for role in ("system", "developer"):
        ready, _ = told.prepared([{"role": role, "content": "Be kind."}, user], tools)
        assert ready == [{"role": role, "content": f"Be kind.\n\n{words}"}, user]
    assert told.prepared([user], tools)[0] == [{"role": "system", "content": words}, user]
    assert json.loads(words.splitlines()[1])["name"] == "f"
