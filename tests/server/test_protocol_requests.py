"""What requests may hold: ranges of parameters, tools, items of responses, what an answer must match."""

import json
from types import SimpleNamespace

import msgspec
import pytest

from jllama.server.calling import NO_RULES, Calling
from jllama.server.protocol import responses
from jllama.server.protocol.chat import ChatRequest
from jllama.server.protocol.completions import CompletionRequest
from jllama.server.protocol.constraints import constraint_of
from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.parsing import parse
from jllama.server.protocol.responses import FlatAllowed, FlatChoice, FlatTool, ResponsesRequest, echoed
from jllama.server.protocol.sampling import Sampled
from jllama.server.protocol.tokens import DetokenizeRequest
from jllama.server.protocol.tools import ToolUse, tool_use
from jllama.settings import GenerationSettings
from jllama.tools.definitions import Tool
from jllama.tools.formats import HERMES, LLAMA

NEEDED = {
    ChatRequest: {"messages": [{"role": "user", "content": "a"}]},
    CompletionRequest: {"prompt": "a"},
    ResponsesRequest: {"input": "a"},
    DetokenizeRequest: {"tokens": []},
}
CHANCE, SEED = ([0, 1, 0.5], [-0.01, 1.01]), ([0, 2**63 - 1], [-1, 2**63, 0.5])
PENALTY, TEMPERATURE = ([-2, 2], [-2.01, 2.01]), ([0, 2], [-0.01, 2.01])
TOKENS = ([[0, 2**31 - 1]], [[-1], [2**31], [0.5]])
COMMON = dict(temperature=TEMPERATURE, top_p=CHANCE, min_p=CHANCE, top_k=([-1, 0, 10**6], [-2]), seed=SEED)
SHARED = COMMON | dict(
    n=([1, 128], [0, 129]),
    presence_penalty=PENALTY,
    frequency_penalty=PENALTY,
    repetition_penalty=([0.01, 100], [0, 100.1]),
    min_tokens=([0, 9], [-1]),
    stop=(["x" * 1000, ["x"] * 64, []], ["", "x" * 1001, ["x"] * 65, [""]]),
    stop_token_ids=([[5] * 64], [[5] * 65]),
    logit_bias=([{"5": -100, "6": 100}], [{"5": -100.1}, {"5": 100.1}, {"x": 1}]),
    grammar=(["x"], [""]),
)
CHAT = SHARED | dict(
    max_tokens=([1], [-1]), max_completion_tokens=([1], [0]), top_logprobs=([0, 20], [-1, 21])
)
TEXT = SHARED | dict(max_tokens=([0], [-1]), logprobs=([0, 5], [-1, 6]), prompt=TOKENS)
RESPONSE = COMMON | dict(
    max_output_tokens=([1], [0]),
    background=([False], [True]),
    truncation=(["disabled"], ["auto"]),
    stream_options=(
        [{"include_obfuscation": False}],
        [{"include_obfuscation": True}, {"include_usage": True}],
    ),
)
RANGES = [
    (kind, name, *both)
    for kind, table in (
        (ChatRequest, CHAT),
        (CompletionRequest, TEXT),
        (ResponsesRequest, RESPONSE),
        (DetokenizeRequest, {"tokens": TOKENS}),
    )
    for name, both in table.items()
]


@pytest.mark.parametrize(("kind", "name", "good", "bad"), RANGES)
def test_each_parameter_has_its_range(kind, name, good, bad):
    def read(value):
        return parse(json.dumps(NEEDED[kind] | {name: value}).encode(), kind)

    for value in good:
        read(value)
    for value in bad:
        with pytest.raises(ApiError) as error:
            read(value)
        assert error.value.status == 400
        assert error.value.param.startswith(name), value


def test_what_holds_where_nothing_is_said():
    chat, text, response = (
        parse(json.dumps(NEEDED[kind]).encode(), kind)
        for kind in (ChatRequest, CompletionRequest, ResponsesRequest)
    )
    for given in (chat, text):
        assert (given.n, given.stream, given.ignore_eos, given.min_tokens) == (1, False, False, 0)
    assert (chat.logprobs, chat.return_token_ids, text.echo) == (False, False, False)
    assert (response.stream, response.background) == (False, False)
    assert parse(b'{"tokens": []}', DetokenizeRequest).skip_special_tokens is False


# Tools.

F, G = (dict(type="function", function=dict(name=name)) for name in "fg")
STRICT = dict(
    type="function", function=dict(name="s", description="d", strict=True, parameters={"type": "object"})
)
NAMED = dict(type="function", function=dict(name="g"))


def allowed(mode, *names):
    tools = [dict(type="function", function=dict(name=name)) for name in names]
    return dict(type="allowed_tools", allowed_tools=dict(mode=mode, tools=tools))


@pytest.mark.parametrize(
    ("tools", "choice", "parallel", "offered", "callable", "told"),
    [  # told: several, required, enforced
        (None, None, None, "", "", (True, False, False)),
        ([], "auto", None, "", "", (True, False, False)),
        ([F, G], None, None, "fg", "fg", (True, False, False)),
        ([F, G], "auto", True, "fg", "fg", (True, False, False)),
        ([F, G], "auto", False, "fg", "fg", (False, False, False)),
        ([F, G], "none", None, "", "", (True, False, False)),
        ([F, G], "required", None, "fg", "fg", (True, True, True)),
        ([F, G], "required", False, "fg", "fg", (False, True, True)),
        ([F, G], NAMED, None, "fg", "g", (False, True, True)),
        ([F, STRICT], None, None, "fs", "fs", (True, False, True)),
        ([F, STRICT], "none", None, "", "", (True, False, False)),
        ([F, G], allowed("auto", "g"), None, "fg", "g", (True, False, True)),
        ([F, G], allowed("auto", "g", "f"), None, "fg", "fg", (True, False, False)),
        ([F, G], allowed("required", "f"), None, "fg", "f", (True, True, True)),
    ],
)
def test_what_of_its_tools_an_answer_may_use(tools, choice, parallel, offered, callable, told):
    use = tool_use(tools, choice, parallel)
    assert "".join(tool.name for tool in use.offered) == offered
    assert "".join(tool.name for tool in use.callable) == callable
    assert (use.several, use.required, use.enforced) == told


def test_a_tool_as_each_route_writes_it():
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    given = dict(name="f", description="d", parameters=parameters, strict=True)
    wanted = Tool(name="f", description="d", parameters=parameters, strict=True)
    assert tool_use([dict(type="function", function=given)], None, None).tools == (wanted,)
    flat = (FlatTool, FlatChoice, FlatAllowed)
    assert tool_use([dict(type="function", **given)], None, None, flat).tools == (wanted,)
    bare = tool_use(
        [dict(type=None, function=dict(name="f"))], dict(type="function", function=dict(name="f")), None
    )
    assert bare.tools == (Tool(name="f"),)
    (free,) = tool_use([dict(function=dict(name="f", parameters={}))], None, None).tools
    assert free.parameters == {}, "any, and not none"
    assert (bare.choice, bare.callable) == ("f", bare.tools)
    assert tool_use([dict(name="f")], dict(type="function", name="f"), None, flat).choice == "f"
    listed = dict(type="allowed_tools", mode="required", tools=[dict(type="function", name="f")])
    use = tool_use([dict(name="f")], listed, None, flat)
    assert (use.choice, use.allowed) == ("required", {"f"})


@pytest.mark.parametrize(
    ("tools", "choice", "words", "param"),
    [
        ([F, F], None, "two tools are called 'f'", "tools"),
        ([F, dict(type="web")], None, r"tools\[1\]: tools of type 'web' are not supported", "tools[1]"),
        ([dict(function=dict(name="a b"))], None, r"tools\[0\]: a tool's name is 'a b'", "tools[0]"),
        ([dict(function={})], None, r"tools\[0\].function: .*`name`", "tools[0].function"),
        (["x"], None, r"tools\[0\]: Expected `object`", "tools[0]"),
        ([F], "any", "tool_choice: 'any' is none of none, auto, required, nor a function", "tool_choice"),
        ([F], NAMED, "tool_choice: 'g' can't be called: there are f", "tool_choice"),
        ([F], allowed("auto", "f", "g"), "tool_choice: 'g' can't be called: there are f", "tool_choice"),
        (None, "required", "tool_choice: 'required' can't be called: there are no tools", "tool_choice"),
        (None, NAMED, "tool_choice: 'g' can't be called: there are no tools", "tool_choice"),
        ([F], dict(type="web"), "tool_choice of type 'web' is not supported", "tool_choice.type"),
        ([F], allowed("none", "f"), "tool_choice.allowed_tools.mode", "tool_choice.allowed_tools.mode"),
        ([F], allowed("auto"), "tool_choice.allowed_tools.tools", "tool_choice.allowed_tools.tools"),
    ],
)
def test_tools_that_can_not_be_used(tools, choice, words, param):
    with pytest.raises(ApiError, match=words) as error:
        tool_use(tools, choice, None)
    assert (error.value.status, error.value.param) == (400, param)


# What an answer must match.

SCHEMA = {"type": "integer"}


@pytest.mark.parametrize(
    ("asked", "fields", "param"),
    [
        ({}, {}, None),
        (dict(response_format={"type": "text"}), {}, None),
        (dict(response_format={"type": "json_object"}), {"json_object": True}, "response_format"),
        (
            dict(response_format={"type": "json_object", "schema": SCHEMA}),
            {"json_schema": SCHEMA},
            "response_format",
        ),
        *(
            (
                dict(response_format={"type": "json_object", "schema": anything}),
                {"json_schema": anything},
                "response_format",
            )
            for anything in ({}, True, False)
        ),
        (
            dict(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}),
            {"json_schema": SCHEMA},
            "response_format",
        ),
        (dict(structured_outputs={"json": SCHEMA}), {"json_schema": SCHEMA}, "structured_outputs"),
        (dict(structured_outputs={"json": False}), {"json_schema": False}, "structured_outputs"),
        (dict(structured_outputs={"regex": "a"}), {"regex": "a"}, "structured_outputs"),
        (dict(structured_outputs={"choice": ["a"]}), {"choice": ["a"]}, "structured_outputs"),
        (dict(structured_outputs={"json_object": True}), {"json_object": True}, "structured_outputs"),
        (dict(grammar="g"), {"grammar": "g"}, "grammar"),
        (dict(json_schema=False), {"json_schema": False}, "json_schema"),
        (dict(response_format={"type": "text"}, grammar="g"), {"grammar": "g"}, "grammar"),
    ],
)
def test_what_a_request_wants_its_answer_to_match(asked, fields, param):
    names = ("response_format", "structured_outputs", "grammar", "json_schema")
    assert constraint_of(*(asked.get(name) for name in names)) == (fields, param)
    chat = parse(json.dumps(NEEDED[ChatRequest] | asked).encode(), ChatRequest)
    assert chat.constraint() == (fields, param)


@pytest.mark.parametrize(
    ("asked", "words", "param"),
    [
        (dict(grammar="g", json_schema={}), "grammar and json_schema can't hold at once", "json_schema"),
        (
            dict(response_format={"type": "json_object"}, structured_outputs={"regex": "a"}),
            "response_format and structured_outputs can't hold at once: give one of them",
            "structured_outputs",
        ),
        (dict(structured_outputs={}), "give one of json, regex, choice, grammar", "structured_outputs"),
        (dict(structured_outputs={"regex": "a", "choice": ["b"]}), "give one of", "structured_outputs"),
        (dict(structured_outputs={"choice": []}), "choice", "structured_outputs.choice"),
        (dict(response_format={"type": "xml"}), "type", "response_format.type"),
    ],
)
def test_what_can_not_be_wanted(asked, words, param):
    with pytest.raises(ApiError, match=words) as error:
        parse(json.dumps(NEEDED[ChatRequest] | asked).encode(), ChatRequest).constraint()
    assert (error.value.status, error.value.param) == (400, param)


SERVICE = SimpleNamespace(
    tokenizer=SimpleNamespace(special_id={"<tool_call>": 7, "</think>": 9}.get), vocab_size=99
)
USE = ToolUse(tools=(Tool(name="f"),), choice="auto")
MUST = ToolUse(tools=(Tool(name="f"),), choice="required")
REGEX = ({"regex": r"a\/b/c"}, "structured_outputs")


def calling(use, asked, opened=False, format=HERMES):
    service = SimpleNamespace(**vars(SERVICE), manner=SimpleNamespace(format=format))
    return Calling(service, use, asked, opened)


@pytest.mark.parametrize(
    ("use", "asked", "opened", "holds"),
    [
        (ToolUse(), NO_RULES, False, None),
        (ToolUse(), NO_RULES, True, None),  # thoughts may be anything, and so may the rest
        (ToolUse(), REGEX, False, None),  # a setting by itself
        (USE, NO_RULES, False, None),  # free calls
        (ToolUse(), REGEX, True, ["<[9]>", "answered: answer", r"answer: /a\/b\/c/"]),
        (USE, REGEX, False, ["<[7]>", r"answer: /a\/b\/c/", "call_0"]),
        (USE, REGEX, True, ["<[9]>", "<[7]>", r"answer: /a\/b\/c/"]),
        (MUST, NO_RULES, False, ["<[7]>", "call_0"]),
        (MUST, REGEX, False, ["<[7]>", "call_0"]),
        (USE, ({"choice": ["a", 'b"']}, "p"), False, [r'answer: "a" | "b\""']),
        (USE, ({"json_object": True}, "p"), False, ['answer: %json {"type": "object"}']),
        (USE, ({"json_schema": SCHEMA}, "p"), False, ['answer: %json {"type": "integer"}']),
    ],
)
def test_the_grammar_of_an_answer(use, asked, opened, holds):
    made = calling(use, asked, opened)
    settings = made.settings(GenerationSettings(max_new_tokens=3))
    assert settings.max_new_tokens == 3
    if holds is None:
        assert settings == GenerationSettings(max_new_tokens=3, **asked[0])
    else:
        assert [part for part in holds if part not in settings.grammar] == []
        assert ("answer:" in settings.grammar) == (bool(asked[0]) and not use.required)
    assert made.shown == ((7,) if use.offered else ())
    assert (made.parser() is None) == (not use.offered)


@pytest.mark.parametrize(
    ("use", "asked", "format", "words"),
    [
        (
            USE,
            REGEX,
            LLAMA,
            "structured_outputs can't hold beside tools: this model writes calls as plain JSON",
        ),
        (USE, ({"grammar": "start: A"}, "grammar"), HERMES, "a grammar of your own can't hold beside tools"),
        (USE, ({"json_schema": True}, "json_schema"), HERMES, "a grammar of your own can't hold"),
    ],
)
def test_rules_that_can_not_be_kept_together(use, asked, format, words):
    with pytest.raises(ApiError, match=words) as error:
        calling(use, asked, format=format)
    assert (error.value.status, error.value.param) == (400, asked[1])


@pytest.mark.parametrize(
    ("use", "asked", "param"),
    [
        (ToolUse(), REGEX, "structured_outputs"),
        (USE, NO_RULES, None),
        (USE, REGEX, "structured_outputs"),
        (MUST, NO_RULES, "tools"),
        (MUST, REGEX, "tools"),
    ],
)
def test_which_parameter_is_to_blame(use, asked, param):
    assert calling(use, asked)._constrained_by == param


# Responses.


def response(**given):
    return parse(json.dumps({"input": "a"} | given).encode(), ResponsesRequest, responses.REFUSED)


CALLED = dict(type="function_call", call_id="c1", name="f", arguments='{"a": 1}')
CALLED_TOO = dict(type="function_call", call_id="c2", name="g")
GAVE = dict(type="function_call_output", call_id="c1", output="42")


def test_items_become_messages():
    items = [
        dict(type="reasoning", id="rs_1", summary=[]),
        dict(role="user", content="Hello"),
        dict(type="message", role="assistant", content="Wait.", id="msg_1", status="completed"),
        CALLED,
        CALLED_TOO,
        GAVE,
        CALLED,
    ]
    found = response(input=items, instructions="Be brief.").messages()
    told = [
        (one.role, one.content, [(c.id, c.function.name, c.function.arguments) for c in one.tool_calls or ()])
        for one in found
    ]
    first, second = ("c1", "f", '{"a": 1}'), ("c2", "g", "")
    assert told == [
        ("system", "Be brief.", []),
        ("user", "Hello", []),
        ("assistant", "Wait.", [first, second]),
        ("tool", "42", []),
        ("assistant", None, [first]),
    ]
    assert found[3].tool_call_id == "c1"
    (message,) = response(input="Hello").messages()
    assert (message.role, message.content) == ("user", "Hello")


@pytest.mark.parametrize(
    ("items", "words", "param"),
    [
        ([], "input: give at least one", "input"),
        ([dict(role="user", content="a"), dict(type="web")], r"input\[1\]: items of type 'web'", "input[1]"),
        ([dict(role="user")], r"input\[0\].content is missing", "input[0].content"),
    ],
)
def test_items_that_can_not_be_used(items, words, param):
    with pytest.raises(ApiError, match=words) as error:
        response(input=items).messages()
    assert (error.value.status, error.value.param) == (400, param)


def test_how_a_response_is_drawn():
    given = dict(temperature=0.5, top_p=0.6, top_k=7, min_p=0.1, seed=3)
    made = response(max_output_tokens=9, **given).sampled()
    assert made == Sampled(max_tokens=9, **given)
    assert response().sampled() == Sampled()


def test_what_a_response_must_match():
    assert response().constraint() == ({}, None)
    assert response(text={}).constraint() == ({}, None)
    text = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}
    assert response(text=text).constraint() == ({"json_schema": SCHEMA}, "text.format")
    with pytest.raises(ApiError) as error:
        response(text={"format": {"type": "json_schema", "json_schema": {}}}).constraint()
    assert error.value.param.startswith("text.format")


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({}, {}),
        (
            dict(instructions="i", max_output_tokens=5, parallel_tool_calls=False, tool_choice="none"),
            dict(instructions="i", max_output_tokens=5, parallel_tool_calls=False, tool_choice="none"),
        ),
        (dict(parallel_tool_calls=True), {}),
        (dict(tools=[dict(type="function", name="f")]), dict(tools=[dict(type="function", name="f")])),
        (dict(text={"format": {"type": "json_object"}}), dict(text={"format": {"type": "json_object"}})),
    ],
)
def test_what_a_response_repeats(given, changes):
    usual = dict(instructions=None, max_output_tokens=None, metadata={}, parallel_tool_calls=True, tools=[])
    usual |= dict(previous_response_id=None, store=False, text={"format": {"type": "text"}}, temperature=0.5)
    usual |= dict(tool_choice="auto", truncation="disabled")
    assert echoed(response(**given), temperature=0.5) == usual | changes
    assert msgspec.json.encode(echoed(response(**given)))


@pytest.mark.parametrize("name", sorted(responses.REFUSED))
def test_what_a_response_does_not_honour_is_refused_by_name(name):
    with pytest.raises(ApiError, match=f"^{name} is not supported: ") as error:
        response(**{name: "x"})
    assert (error.value.status, error.value.param, error.value.code) == (400, name, "unsupported")
