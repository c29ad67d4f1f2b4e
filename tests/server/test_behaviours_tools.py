"""Behaviours 37, 38, 47 and 48 of those that clients rely on: answers that obey, and calls of tools."""

import json
import sys

import pytest

import jllama
from jllama.grammar.constraint import constraint_for
from jllama.grammar.words import words_of
from jllama.server.calling import Calling
from jllama.server.protocol.chat import ChatRequest
from jllama.server.protocol.tools import ToolUse, tool_use
from jllama.settings import GenerationSettings
from tests.support.serving import CHAT, HELLO, TEXT, content, in_process, said, start_engine
from tests.support.tiny_checkpoint import write_tiny_model

pytest.importorskip("llguidance")

TEMPLATE = """{%- if tools -%}[tools]{{ tools | tojson }}<|end|>{%- endif -%}
{%- for m in messages -%}
[{{ m.role }}]{{ m.content }}
{%- for c in m.tool_calls or [] -%}
{{ '\n' if m.content or not loop.first }}{{ '<tool_call>\n{"name": "' ~ c.function.name }}
{{- '", "arguments": ' }}{{ c.function.arguments | tojson }}{{ '}\n</tool_call>' }}
{%- endfor -%}<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}[assistant]{{ '<think>' if thinking }}{%- endif -%}{#- </think> -#}"""
CITY = {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}
SCHEMA = {"type": "object", "properties": CITY, "required": ["city"], "additionalProperties": False}
SUN = {"type": "function", "function": {"name": "sun", "description": "Is it up?", "parameters": SCHEMA}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [SUN, NOW]
ONE_OF = {"oneOf": [{"type": "object"}, {"minProperties": 1, "type": "object"}]}
RESPONSES = "/v1/responses"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    place = tmp_path_factory.mktemp("tools") / "model"
    directory = write_tiny_model(place, template=TEMPLATE, max_position_embeddings=1024)
    model = jllama.load(str(directory), dtype="float32")
    with start_engine(model, max_seq_len=1024) as engine, in_process(engine) as client:
        yield client


def ask(client, **body):
    return client.chat(**dict(max_tokens=200, tools=TOOLS) | body)["choices"][0]


def calls(choice):
    return [call["function"] for call in choice["message"]["tool_calls"]]


def check(function):
    """A call of one of the tools, with arguments that fit."""
    arguments = json.loads(function["arguments"])
    if function["name"] == "now":
        return arguments == {}
    assert function["name"] == "sun"
    assert arguments.keys() <= CITY.keys()
    return arguments["city"] in ("Oslo", "Rome") and arguments.get("days", 1) in range(1, 10)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "sun"}}])
def test_47_an_answer_that_must_call_does_and_its_stream_says_the_same(client, choice):
    asked = dict(tool_choice=choice, seed=3, temperature=1.0)
    whole = ask(client, **asked)
    assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", None)
    told = whole["message"]["tool_calls"]
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in told)
    assert len({call["id"] for call in told}) == len(told)
    assert all(map(check, calls(whole)))
    if isinstance(choice, dict):
        assert [call["name"] for call in calls(whole)] == ["sun"]
    chunks = client.chat_chunks(**asked, tools=TOOLS, max_tokens=200)
    deltas = [one for chunk in chunks for one in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert joined(deltas) == calls(whole)
    assert len([one for one in deltas if "id" in one]) == len(told)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert said(chunks) == ""


def joined(deltas):
    """Whole calls out of what a stream told: the name once, the arguments in pieces."""
    found = []
    for delta in deltas:
        if "id" in delta:
            assert delta["index"] == len(found)
            assert (delta["type"], delta["function"]["arguments"]) == ("function", "")
            found.append(dict(delta["function"]))
        else:
            assert delta.keys() == {"index", "function"}
            assert delta["function"].keys() == {"arguments"}
            found[delta["index"]]["arguments"] += delta["function"]["arguments"]
    return found


def test_47_each_choice_has_calls_and_scores_of_its_own(client):
    body = dict(tool_choice="required", n=3, temperature=1.0, logprobs=True, max_tokens=200, seed=5)
    choices = client.chat(tools=TOOLS, **body)["choices"]
    for choice in choices:
        assert all(map(check, calls(choice)))
        text = "".join(one["token"] for one in choice["logprobs"]["content"])
        assert text.startswith('<tool_call>\n{"name": "')
    chunks = client.chat_chunks(tools=TOOLS, **body)
    for choice in choices:
        mine = [one for chunk in chunks for one in chunk["choices"] if one["index"] == choice["index"]]
        assert joined([d for one in mine for d in one["delta"].get("tool_calls", [])]) == calls(choice)


def test_47_an_answer_that_may_call_is_a_text_or_sound(client):
    free = ask(client, max_tokens=20)
    assert free["finish_reason"] == "length"
    assert free["message"]["content"]
    strict = [{"type": "function", "function": SUN["function"] | {"strict": True}}]
    assert "tool_calls" not in ask(client, tools=strict, max_tokens=20)["message"]
    rules = Calling(client.http.app.state.service, tool_use(strict, None, None), ({}, None))
    assert "opened[lazy]" in rules.settings(GenerationSettings()).grammar


def test_47_no_tool_is_told_or_called_where_none_may_be(client):
    without = ask(client, tools=None, max_tokens=20)
    assert ask(client, tool_choice="none", max_tokens=20)["message"] == without["message"]
    prompt = client.ask("/apply-template", messages=HELLO, tools=TOOLS)["prompt"]
    assert prompt.startswith('[tools][{"type": "function", "function": {"name": "sun"')
    assert "[tools]" not in client.ask("/apply-template", messages=HELLO)["prompt"]


def test_47_a_call_that_was_cut_says_length(client):
    cut = ask(client, tool_choice={"type": "function", "function": {"name": "sun"}}, max_tokens=45)
    assert cut["finish_reason"] == "length"
    assert cut["message"]["tool_calls"][0]["function"]["name"] == "sun"


@pytest.mark.parametrize("tokens", [5, 14, 30])
def test_47_a_call_that_was_cut_before_its_arguments_shows_no_marks(client, tokens):
    body = dict(tool_choice="required", max_tokens=tokens, tools=[SUN])
    cut = ask(client, **body)
    assert (cut["finish_reason"], cut["message"]) == ("length", {"role": "assistant", "content": ""})
    assert said(client.chat_chunks(**body)) == ""
    whole = client.ask(RESPONSES, input="x", tools=FLAT, tool_choice="required", max_output_tokens=tokens)
    assert (whole["status"], whole["output"][0]["content"][0]["text"]) == ("incomplete", "")


def test_47_a_call_that_a_stop_string_cut_is_none_to_answer(client):
    cut = ask(client, tool_choice={"type": "function", "function": {"name": "sun"}}, stop=['city"'])
    assert cut["finish_reason"] == "stop"
    assert cut["message"]["tool_calls"][0]["function"]["arguments"] == '{"'


def test_48_one_call_where_only_one_may_be(client):
    body = dict(tool_choice="required", parallel_tool_calls=False, temperature=1.0)
    assert [len(calls(ask(client, seed=seed, **body))) for seed in range(4)] == [1] * 4


def test_49_an_answer_with_calls_goes_back_as_it_was_written(client):
    choice = ask(client, tool_choice="required", parallel_tool_calls=False, seed=1, temperature=1.0)
    call = choice["message"]["tool_calls"][0]
    result = {"role": "tool", "content": "yes", "tool_call_id": call["id"]}
    talk = dict(messages=[*HELLO, choice["message"], result], tools=TOOLS)
    prompt = client.ask("/apply-template", **talk)["prompt"]
    function = call["function"]
    written = (
        f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {function["arguments"]}}}\n</tool_call>'
    )
    assert f"[assistant]{written}<|end|>[tool]yes<|end|>[assistant]" in prompt
    answer = client.chat(**talk)
    details = answer["usage"]["prompt_tokens_details"]
    before = len(client.ask("/apply-template", messages=HELLO, tools=TOOLS)["tokens"])
    assert details["cached_tokens"] >= before + len(written) - 1  # its own tokens, found again


def allowed(mode, *names):
    listed = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": listed}}


def test_48_of_several_tools_those_that_are_allowed_are_called(client):
    for seed in range(3):
        told = ask(client, tool_choice=allowed("required", "now"), seed=seed, temperature=1.0)
        assert {call["name"] for call in calls(told)} == {"now"}
    flat = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}
    two = [*FLAT, {"type": "function", "name": "now"}]
    whole = client.ask(RESPONSES, input="Hello", tools=two, tool_choice=flat, max_output_tokens=200)
    assert {item["name"] for item in whole["output"]} == {"now"}


def test_48_what_is_allowed_limits_free_calls_and_the_model_is_told_of_all(client):
    service, some = client.http.app.state.service, tool_use(TOOLS, allowed("auto", "now"), None)
    assert [tool.name for tool in some.offered] == ["sun", "now"]
    settings = Calling(service, some, ({}, None)).settings(GenerationSettings())
    for name, sound in (("now", True), ("sun", False)):
        rules = constraint_for(service.tokenizer, service.vocab_size, settings, [])
        text = f'So. <tool_call>\n{{"name": "{name}", "arguments": {{'
        rules.follow(service.tokenizer.encode(text, add_special=False))
        assert (rules.error is None) is sound
    assert not tool_use(TOOLS, allowed("auto", "now", "sun"), None).enforced


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (dict(tools=[{"type": "retrieval"}]), "tools[0]"),
        (dict(tools=[{"type": "function"}]), "tools[0]"),
        (dict(tools=[{"function": {"name": "a b"}}]), "tools[0]"),
        (dict(tools=[{"function": {"name": "f", "parameters": {"type": "string"}}}]), "tools[0]"),
        (dict(tools=[NOW, NOW]), "tools"),
        (dict(tools=[NOW | {"name": "x"}]), "tools[0]"),
        (dict(tools=TOOLS, tool_choice="sun"), "tool_choice"),
        (dict(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "moon"}}), "tool_choice"),
        (dict(tool_choice="required"), "tool_choice"),
        (dict(tools=TOOLS, tool_choice=3), "tool_choice"),
        (dict(tools=TOOLS, tool_choice={"type": "custom", "custom": {"name": "sun"}}), "tool_choice.type"),
        (dict(tools=TOOLS, parallel_tool_calls="yes"), "parallel_tool_calls"),
        (dict(functions=[]), "functions"),
        (dict(tools=TOOLS, tool_choice=allowed("auto")), "tool_choice"),
        (dict(tools=TOOLS, tool_choice=allowed("auto", "moon")), "tool_choice"),
        (dict(tools=TOOLS, tool_choice=allowed("none", "sun")), "tool_choice.allowed_tools.mode"),
    ],
)
def test_47_what_can_not_be_called_is_refused(client, body, param):
    assert client.error(CHAT, messages=HELLO, **body)["param"].startswith(param)


@pytest.mark.parametrize("strict", [True, False])
def test_47_a_schema_that_can_not_be_kept_is_refused_in_the_librarys_words(client, strict):
    parameters = {"type": "object", "properties": {"x": ONE_OF}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters, "strict": strict}}
    body = dict(tools=[NOW, tool], tool_choice="auto" if strict else "required")
    error = client.error(CHAT, messages=HELLO, **body)
    assert error["param"] == "tools[1]"
    assert error["message"].startswith("tools[1]: f's schema can't be used: ")
    assert "oneOf" in error["message"]
    assert "call_1" not in error["message"]
    own = dict(response_format={"type": "json_object", "schema": ONE_OF}, tools=TOOLS)
    assert client.error(CHAT, messages=HELLO, **own)["param"] == "response_format"
    if not strict:
        assert client.chat(tools=[tool])["choices"], "nothing is promised of it"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (dict(tools=TOOLS[:1], tool_choice={"type": "function", "function": {"name": "sun"}}), "tools"),
        (dict(structured_outputs={"regex": "never asked before"}), "structured_outputs"),
    ],
)
def test_47_without_the_library_nothing_is_promised(client, monkeypatch, body, param):
    words_of(client.http.app.state.service.tokenizer, client.engine.model.config.vocab_size).compiled.clear()
    monkeypatch.setitem(sys.modules, "llguidance", None)
    error = client.error(CHAT, messages=HELLO, **body)
    assert (error["param"], "pip install jllama[grammar]" in error["message"]) == (param, True)
    assert client.chat(tools=TOOLS, max_tokens=3)["choices"], "nothing is enforced where it may call"


FORMS = [
    (dict(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}), "sun"),
    (dict(response_format={"type": "json_object", "schema": SCHEMA}), "sun"),
    (dict(structured_outputs={"json": SCHEMA}), "sun"),
    (dict(structured_outputs={"json": json.dumps(SCHEMA)}), "sun"),
    (dict(json_schema=SCHEMA), "sun"),
    (dict(structured_outputs={"regex": "ja{2,4}!"}), ["jaa!", "jaaa!", "jaaaa!"]),
    (dict(structured_outputs={"choice": ["left", "right"]}), ["left", "right"]),
    (dict(structured_outputs={"grammar": 'start: "a" | "b"'}), ["a", "b"]),
    (dict(grammar='root ::= "yes" | "no"'), ["yes", "no"]),
]


def fits(text, wanted):
    if wanted == "sun":
        return check({"name": "sun", "arguments": text})
    return text in wanted


@pytest.mark.parametrize(("body", "wanted"), FORMS)
def test_37_38_an_answer_matches_and_its_stream_says_the_same(client, body, wanted):
    body = body | dict(max_tokens=100, temperature=1.0, seed=2)
    for way, stream in ((client.chat, client.chat_chunks), (client.text, client.text_chunks)):
        whole = way(**body)
        assert fits(content(whole), wanted), content(whole)
        assert whole["choices"][0]["finish_reason"] == "stop"
        assert said(stream(**body)) == content(whole)


def test_37_a_json_object(client):
    """Random weights hardly ever end one; what comes begins one."""
    body = dict(response_format={"type": "json_object"}, temperature=0)
    assert content(client.chat(**body)).startswith("{")
    assert client.text(**body)["choices"][0]["text"].startswith("{")


@pytest.mark.parametrize(("body", "wanted"), [FORMS[0], FORMS[5], FORMS[6]])
def test_37_an_answer_matches_behind_its_thoughts(client, body, wanted):
    """Where the template has opened them. Random weights never close them: the rules are tried alone."""
    service = client.http.app.state.service
    fields = ChatRequest(messages=HELLO, **body).constraint()
    settings = Calling(service, ToolUse(), fields, opened=True).settings(GenerationSettings())
    text = {"sun": '{"city": "Oslo"}'}.get(str(wanted), wanted[0])
    for told, sound in ((f"hm {{</think>\n\n{text}", True), (text, False), ("hm</think>no", False)):
        rules = constraint_for(service.tokenizer, service.vocab_size, settings, [])
        rules.follow(service.tokenizer.encode(told))
        assert (rules.error is None and rules.matcher.is_accepting()) is sound, told
    thinking = dict(chat_template_kwargs={"thinking": True})
    choice = client.chat(**body, **thinking)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    error = client.error(CHAT, messages=HELLO, grammar='start: "a"', **thinking)
    assert error["param"] == "grammar"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (dict(json_schema=ONE_OF), "json_schema", "oneOf"),
        (
            dict(response_format={"type": "json_schema", "json_schema": {"schema": ONE_OF}}),
            "response_format",
            "oneOf",
        ),
        (dict(structured_outputs={"json": ONE_OF}), "structured_outputs", "oneOf"),
        (dict(structured_outputs={"json": "{"}), "structured_outputs", "json_schema"),
        (dict(structured_outputs={"regex": "("}), "structured_outputs", "regex"),
        (dict(structured_outputs={}), "structured_outputs", "give one of"),
        (dict(structured_outputs={"regex": "a", "json": {}}), "structured_outputs", "give one of"),
        (dict(structured_outputs={"structural_tag": "a"}), "structured_outputs", "structural_tag"),
        (dict(grammar="start: nowhere"), "grammar", "nowhere"),
        (dict(grammar='start: "a"', json_schema={}), "json_schema", "can't hold at once"),
        (dict(guided_json={}), "guided_json", "structured_outputs"),
    ],
)
def test_38_what_can_not_be_matched_is_refused_in_the_librarys_words(client, body, param, words):
    for path, more in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "x"})):
        error = client.error(path, **more, **body)
        assert error["param"].startswith(param)
        assert words in error["message"]


def test_37_47_calls_or_an_answer_that_matches(client):
    body = dict(response_format={"type": "json_object", "schema": SCHEMA}, temperature=1.0)
    for seed in range(4):
        choice = ask(client, seed=seed, **body)
        if choice["finish_reason"] == "tool_calls":
            assert all(map(check, calls(choice)))
        else:
            assert fits(choice["message"]["content"], "sun")


FLAT = [{"type": "function", "name": "sun", "parameters": SCHEMA, "strict": True}]


def test_62_responses_call_and_take_results(client):
    body = dict(
        input="Hello", tools=FLAT, tool_choice="required", max_output_tokens=200, seed=1, temperature=1.0
    )
    whole = client.ask(RESPONSES, **body)
    assert whole["status"] == "completed"
    found = [item for item in whole["output"] if item["type"] == "function_call"]
    assert found == whole["output"]
    assert all(check(item) and item["call_id"].startswith("call_") for item in found)
    events = streamed(client, **body)
    deltas = [one for one in events if one["type"] == "response.function_call_arguments.delta"]
    for place, item in enumerate(found):
        mine = [one["delta"] for one in deltas if one["output_index"] == place]
        assert "".join(mine) == item["arguments"]
    done = [one for one in events if one["type"] == "response.function_call_arguments.done"]
    assert [one["arguments"] for one in done] == [item["arguments"] for item in found]
    assert [item["name"] for item in events[-1]["response"]["output"]] == [item["name"] for item in found]
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "yes"} for item in found
    ]
    talk = [{"role": "user", "content": "Hello"}, *found, *results]
    more = dict(input=talk, tools=FLAT, max_output_tokens=5, seed=1)
    assert client.ask(RESPONSES, **more)["status"] == "incomplete"
    assert client.error(RESPONSES, input="x", tools=FLAT, tool_choice={"type": "function", "name": "y"})


def streamed(client, **body):
    text = client.post(RESPONSES, stream=True, **body).text
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]


def test_62_responses_match(client):
    schema = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    whole = client.ask(RESPONSES, input="Hello", text=schema, max_output_tokens=100)
    assert fits(whole["output"][0]["content"][0]["text"], "sun")
    bad = {"format": {"type": "json_schema", "name": "x", "schema": ONE_OF}}
    assert client.error(RESPONSES, input="Hello", text=bad)["param"] == "text.format"
