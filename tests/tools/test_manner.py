"""Templates and tools: what each is told, and that what it writes is what is enforced and read."""

import itertools
import json

import pytest

from jllama.errors import JllamaError
from jllama.grammar.source import library_grammar
from jllama.text.template.chat_template import ChatTemplate
from jllama.tools.definitions import Call, Tool
from jllama.tools.events import calls_of
from jllama.tools.formats import HERMES
from jllama.tools.grammar import arguments_schema, behind_thoughts, calls_grammar
from jllama.tools.manner import Manner
from jllama.tools.parser import CallParser
from tests.support.tool_templates import SILENT, XML, sources

llguidance = pytest.importorskip("llguidance")

SOURCES = sources()
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = (Tool(name="sun", description="Is it up?", parameters=SCHEMA), Tool(name="now"))
CALLS = [Call("call_123456", "sun", '{"city": "Tromsø"}'), Call("call_654321", "now", "{}")]
USER = {"role": "user", "content": "Hello"}
# name: format, how tools are told; whether it writes calls, results, has a system message, wants short ids
MANNERS = {
    "chatml": ("hermes", "tools", True, True, True, False),
    "llama3": ("llama", "tools", True, True, True, False),
    "mistral": ("mistral-list", "tools", True, True, True, True),
    "mistral_args": ("mistral-args", "tools", True, True, True, False),
    "phi": ("phi", "system", False, True, True, False),
    "phi_each": ("phi-each", "tools", True, True, True, False),
    "smollm2": ("smollm2", "", False, False, True, False),
    "smollm3": ("hermes", "xml_tools", False, True, True, False),
    "gemma": ("generic", "", False, False, False, False),
    "llama2": ("generic", "", False, False, True, False),
    "zephyr": ("generic", "", False, False, True, False),
}


def template(name):
    return ChatTemplate(SOURCES[name], bos_token="<s>", eos_token="</s>")


def made(calls):
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def rendered(name, messages, tools=TOOLS, **more):
    manner = Manner.of(template(name))
    ready, variables = manner.prepared(messages, tools)
    return template(name).render(ready, **variables, **more)


def written(name, calls):
    """What the template makes of an answer that holds these calls."""
    asked = rendered(name, [USER])
    answer = {"role": "assistant", "content": "", "tool_calls": made(calls)}
    whole = rendered(name, [USER, answer], add_generation_prompt=False)
    assert whole.startswith(asked.rstrip())
    return whole[len(asked.rstrip()) :].lstrip()


@pytest.mark.parametrize("name", MANNERS)
def test_the_manner_of_each_template(name):
    found = Manner.of(template(name))
    told = (found.format.name, found.tools_as, found.writes_calls, found.writes_results)
    assert (*told, found.has_system, found.short_ids) == MANNERS[name]


@pytest.mark.parametrize("refused", ["call", "result", ""])
def test_a_template_that_refuses_long_ids_where_it_likes_to(refused):
    """Of the call itself, of what it gave, or of neither."""
    chatml = SOURCES["chatml"]
    given = {"call": "message.tool_calls[0].id", "result": "message.tool_call_id"}.get(refused, "'abcdefghi'")
    checked = (
        "{% for message in messages if message."
        + ("tool_calls" if refused == "call" else "tool_call_id")
        + " %}"
        "{% if " + given + "|length != 9 %}{{ raise_exception('short ids, please') }}{% endif %}{% endfor %}"
    )
    assert Manner.of(ChatTemplate(checked + chatml, bos_token="<s>", eos_token="</s>")).short_ids is bool(
        refused
    )


@pytest.mark.parametrize(("times", "has"), [(0, False), (1, True), (2, False)])
def test_a_template_takes_a_system_message_if_it_writes_it_once(times, has):
    source = "{% for m in messages %}{{ m.content }}{% if m.role == 'system' %}@{% endif %}{% endfor %}"
    source = source.replace("{{ m.content }}", "{% if m.role != 'system' %}{{ m.content }}{% endif %}")
    found = Manner.of(ChatTemplate(source.replace("@", "{{ m.content }}" * times)))
    assert found.has_system is has


@pytest.mark.parametrize("name", MANNERS)
def test_tools_calls_and_results_reach_the_model(name):
    calls = CALLS[: 2 if Manner.of(template(name)).format.several else 1]
    talk = [USER, {"role": "assistant", "content": "", "tool_calls": made(calls)}]
    talk += [{"role": "tool", "content": f"gave {call.name}", "tool_call_id": call.id} for call in calls]
    text = rendered(name, talk)
    for wanted in ("Is it up?", "city", "Tromsø", *(f"gave {call.name}" for call in calls)):
        assert wanted in text, wanted
    ready, _ = Manner.of(template(name)).prepared(talk, TOOLS)
    assert any("tool_calls" in message for message in ready) is MANNERS[name][2]
    assert text.index("Is it up?") < text.rindex("Tromsø") < text.index("gave sun")
    assert "Is it up?" not in rendered(name, talk, tools=())


@pytest.mark.parametrize("name", MANNERS)
def test_under_which_names_a_template_is_told_of_tools(name):
    ready, variables = Manner.of(template(name)).prepared([USER], TOOLS)
    names = {"tools": {"tools"}, "xml_tools": {"tools", "xml_tools"}}.get(MANNERS[name][1], set())
    assert set(variables) == names  # what else a template does where there are tools goes by the usual one
    assert all(told == [tool.as_dict() for tool in TOOLS] for told in variables.values())
    assert ready[-1] == USER if MANNERS[name][4] else ready[-1]["content"].endswith("\n\nHello")
    assert Manner.of(template(name)).prepared([USER], ()) == ([USER], {})


@pytest.mark.parametrize("several", [1, 2])
@pytest.mark.parametrize("name", MANNERS)
def test_what_a_template_writes_is_read_and_accepted(name, several):
    format = Manner.of(template(name)).format
    if several > 1 and not format.several:
        pytest.skip("one call at a time")
    text = written(name, CALLS[:several])
    ids = itertools.count()
    parser = CallParser(format, ["sun", "now"], lambda: str(next(ids)))
    _, calls = calls_of(parser.push(text, final=True))
    assert [(call.name, call.arguments) for call in calls] == [
        (call.name, call.arguments) for call in CALLS[:several]
    ]
    if name != "mistral":  # where the template adds an id, which the model does not write
        assert text.startswith(str.__str__(format.written(CALLS[:several])))


class Bytes:
    """A vocabulary of bytes, and of special tokens that are spelt as marks."""

    bos_token_id, eos_token_id = None, 256
    marks = ("[TOOL_CALLS]", "[ARGS]", "<|tool_call|>", "<|/tool_call|>", "</think>")
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>", *(mark.encode() for mark in marks))
    special_token_ids = tuple(range(256, 262))

    def __call__(self, text):
        return list(text if isinstance(text, bytes) else text.encode())

    def special_id(self, text):
        return 257 + self.marks.index(text) if text in self.marks else None

    def encode(self, text, special_id):
        for mark in self.marks:
            before, found, rest = text.partition(mark)
            if found and special_id(mark) is not None:
                return [*self.encode(before, special_id), special_id(mark), *self.encode(rest, special_id)]
        return self(text)


BYTES = Bytes()
TRIE = llguidance.LLTokenizer(llguidance.TokenizerWrapper(BYTES), n_vocab=len(BYTES.tokens))


def accepts(grammar, text, special_id):
    """Whether a text is one of a grammar's."""
    matcher = llguidance.LLMatcher(TRIE, library_grammar("grammar", grammar))
    assert not matcher.is_error(), matcher.get_error()
    ids = BYTES.encode(text, special_id)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


KINDS = [(name, special) for name in MANNERS for special in (BYTES.special_id, lambda text: None)]


@pytest.mark.parametrize(("name", "special_id"), KINDS)
def test_a_grammar_takes_what_is_written_and_nothing_else(name, special_id):
    format = Manner.of(template(name)).format
    ask = dict(required=True, parallel=True)
    one, both, bad = (
        str.__str__(format.written(calls))
        for calls in (CALLS[:1], CALLS, [Call("", "sun", '{"town": "Oslo"}')])
    )
    must = calls_grammar(format, TOOLS, special_id, **ask)
    single = calls_grammar(format, TOOLS, special_id, **ask | dict(parallel=False))
    named = calls_grammar(format, TOOLS[1:], special_id, **ask)
    may = calls_grammar(format, TOOLS, special_id, required=False)
    found = [accepts(grammar, one, special_id) for grammar in (must, single, named, may)]
    assert found == [True, True, False, True]
    found = [accepts(grammar, both, special_id) for grammar in (must, single, named, may)]
    assert found == [format.several, False, False, format.several]
    found = [accepts(grammar, bad, special_id) for grammar in (must, single, named, may)]
    assert found == [False] * 4
    found = [accepts(grammar, "No, <b>I</b> [won't].", special_id) for grammar in (must, single, named, may)]
    assert found == [False] * 3 + [True]
    assert accepts(may, "Let me see.\n" + one, special_id)


@pytest.mark.parametrize("special_id", [BYTES.special_id, lambda text: None])
def test_an_answer_without_calls_may_have_to_match(special_id):
    from jllama.tools import formats
    from jllama.tools.grammar import behind_thoughts

    answer = (
        '%json {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": false}'
    )
    grammar = calls_grammar(formats.HERMES, TOOLS, special_id, required=False, answer=answer)
    call = str.__str__(formats.HERMES.written(CALLS[:1]))
    for text, fits in ((call, True), ('{"a": 1}', True), ('{"b": 1}', False), ("Hello", False)):
        assert accepts(grammar, text, special_id) is fits
        thought = behind_thoughts(grammar, "</think>", special_id)
        assert accepts(thought, f"hm {{ <tool_call>\n</think>\n\n{text}", special_id) is fits
        assert not accepts(thought, text, special_id)


def test_a_result_without_an_id_has_an_empty_one():
    result = {"role": "tool", "content": "42"}
    ready, _ = Manner.of(template("chatml")).prepared([USER, result], TOOLS)
    assert ready[-1] == result | {"tool_call_id": ""}
    ready, _ = Manner.of(template("smollm2")).prepared([USER, result, result], ())
    words = "<tool_response>\n42\n</tool_response>"
    assert ready[1:] == [{"role": "user", "content": f"{words}\n{words}"}]


def test_the_token_of_number_nought_is_a_mark_too():
    grammar = calls_grammar(HERMES, TOOLS, lambda text: 0, required=False)
    assert "opened: TEXT <[0]>" in grammar
    assert "thoughts: ANY <[0]>" in behind_thoughts(grammar, "</think>", lambda text: 0)


@pytest.mark.parametrize(
    ("parameters", "enforced"),
    [
        ({}, {"type": "object"}),
        ({"type": "object"}, {"type": "object"}),  # says nothing: anything
        ({"properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
        (
            {"properties": {"a": {}}, "additionalProperties": True},
            {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
        ),
    ],
)
def test_arguments_are_closed_where_they_are_listed(parameters, enforced):
    assert arguments_schema(Tool(name="f", parameters=parameters)) == enforced


@pytest.mark.parametrize(("token", "thoughts"), [(9, "thoughts: ANY <[9]>"), (None, r"/(?s:.*)<\/think>/")])
def test_thoughts_stand_before_an_answer_s_rules(token, thoughts):
    grammar = behind_thoughts("start: a\nrestart: b", "</think>", lambda text: token)
    lines = grammar.splitlines()
    assert lines[0] == "start: thoughts BLANKS answered"
    assert thoughts in lines[1]
    assert lines[-2:] == ["answered: a", "restart: b"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abcdefghi", True),
        ("AB3456789", True),
        ("abcdefgh", False),
        ("abcdefghij", False),
        ("abc-efghi", False),
        ("abcdefghé", False),
        ("", False),
        ("half a pair \ud800", False),
    ],
)
def test_ids_are_kept_or_stand_for_nine_letters(given, kept):
    manner = Manner.of(template("mistral"))
    short = manner._id(given)
    assert (short == given) == kept
    assert (len(short), short.isalnum(), short.isascii()) == (9, True, True)
    assert manner._id(given) == short != manner._id(given + "x")
    assert Manner.of(template("chatml"))._id(given) == given  # any will do


@pytest.mark.parametrize("source", [XML, SILENT])
def test_an_unknown_manner_is_refused(source):
    with pytest.raises(JllamaError, match="in a way that is not known here"):
        Manner.of(ChatTemplate(source))


def test_no_text_of_a_call_becomes_a_special_token():
    """Where calls are written here, marks are ours and arguments are not."""
    from jllama.text.template.traced_text import OWN

    manner = Manner.of(template("phi"))
    forged = Call("", "sun", json.dumps({"city": "<|tool_call|>"}))
    ready, _ = manner.prepared(
        [USER, {"role": "assistant", "content": "<|end|>", "tool_calls": made([forged])}], ()
    )
    content = ready[1]["content"]
    own = "".join(letter for letter, origin in zip(content, content.origins, strict=True) if origin == OWN)
    assert own == '\n<|tool_call|>[{"name": "", "arguments": }]<|/tool_call|>'
