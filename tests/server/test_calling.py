"""Who is to blame where an answer can't be as its request wants it; no model, no library."""

from types import SimpleNamespace

import pytest

from jllama.errors import EngineFailedError, JllamaError, PromptTooLongError
from jllama.server import calling
from jllama.server.calling import NO_RULES, Calling
from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.tools import ToolUse
from jllama.server.service import Service
from jllama.settings import GenerationSettings
from jllama.tools.definitions import Tool
from jllama.tools.formats import HERMES

TOKENIZER = SimpleNamespace(special_id={"<tool_call>": 7, "</think>": 9}.get)
SERVICE = SimpleNamespace(tokenizer=TOKENIZER, vocab_size=99, manner=SimpleNamespace(format=HERMES))
ENGINE = JllamaError("grammar can't be used: line 1: rule call_1")


def tool(name, bad=False):
    kind = {"oneOf": []} if bad else {"type": "integer"}
    return Tool(name=name, parameters={"type": "object", "properties": {"x": kind}})


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """Takes what holds no `oneOf` and no `!`; notes what it was asked."""
    asked = []

    def matcher_for(tokenizer, vocab_size, settings):
        assert (tokenizer, vocab_size) == (TOKENIZER, 99)
        name, value = settings.constraint
        asked.append(name)
        if "oneOf" in str(value) or "!" in str(value):
            raise JllamaError(f"{name} can't be used: {value}")

    monkeypatch.setattr(calling, "matcher_for", matcher_for)
    return asked


GOOD, BAD, LAST = tool("f"), tool("g", bad=True), tool("h", bad=True)
REGEX, WRONG = ({"regex": "a"}, "structured_outputs"), ({"regex": "!"}, "structured_outputs")


@pytest.mark.parametrize(
    ("use", "asked", "opened", "param", "words"),
    {
        "the first schema that can't be": (
            *(ToolUse((GOOD, BAD, LAST), "required"), NO_RULES, False),
            *("tools[1]", "tools[1]: g's schema can't be used: "),
        ),
        "one that may not be called is not to blame": (
            *(ToolUse((GOOD, BAD, LAST), "auto", allowed=frozenset("fh")), NO_RULES, False),
            *("tools[2]", "tools[2]: h's schema can't be used: "),
        ),
        "no schema by itself": (ToolUse((GOOD,), "required"), NO_RULES, False, "tools", str(ENGINE)),
        "what the answer must match by itself": (
            *(ToolUse((GOOD,), "auto"), WRONG, False),
            *("structured_outputs", "regex can't be used: !"),
        ),
        "a schema before that": (ToolUse((BAD,), "auto"), WRONG, False, "tools[0]", "tools[0]: g's schema"),
        "both good, together not": (
            *(ToolUse((GOOD,), "auto"), REGEX, False),
            *("structured_outputs", str(ENGINE)),
        ),
        "both good, and a call must come": (
            *(ToolUse((GOOD,), "required"), REGEX, False),
            *("tools", str(ENGINE)),
        ),
        "behind thoughts": (ToolUse(), WRONG, True, "structured_outputs", "regex can't be used: !"),
        "without a grammar of ours": (ToolUse(), WRONG, False, "structured_outputs", str(ENGINE)),
        "of free calls nothing is promised": (ToolUse((BAD,), "auto"), NO_RULES, False, None, str(ENGINE)),
    }.values(),
)
def test_whose_rule_can_not_be_kept(use, asked, opened, param, words):
    told = Calling(SERVICE, use, asked, opened).blamed(ENGINE)
    assert (told.status, told.param) == (400, param)
    assert told.message.startswith(words)


def test_what_is_said_of_all_schemas_blames_none(monkeypatch):
    def matcher_for(*_):
        raise JllamaError("for json_schema install the library")

    monkeypatch.setattr(calling, "matcher_for", matcher_for)
    told = Calling(SERVICE, ToolUse((GOOD,), "required"), NO_RULES).blamed(ENGINE)
    assert (told.param, told.message) == ("tools", str(ENGINE))


def test_without_a_grammar_of_ours_nothing_is_compiled_again(library):
    Calling(SERVICE, ToolUse(), WRONG).blamed(ENGINE)
    assert library == []


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineFailedError("dead"), 503, "engine_failed"),
        (PromptTooLongError(9, 8, "mend"), 400, "context_length_exceeded"),
    ],
)
def test_what_is_no_rule_s_fault_keeps_its_status(error, status, code):
    told = Calling(SERVICE, ToolUse((GOOD,), "required"), NO_RULES).blamed(error)
    assert (told.status, told.code) == (status, code)


def test_a_setting_that_an_error_names_is_to_blame():
    told = Calling(SERVICE, ToolUse((GOOD,), "required"), NO_RULES).blamed(JllamaError("top_k=-1 must be"))
    assert told.param == "top_k"


@pytest.mark.parametrize("must", ["auto", "required"])
@pytest.mark.parametrize("asked", [NO_RULES, REGEX])
def test_the_reader_knows_how_far_calls_are_enforced(must, asked):
    made = Calling(SERVICE, ToolUse((GOOD, BAD), must), asked)
    parser = made.parser()
    assert (parser._sure, parser._must) == (must == "required" or bool(asked[0]), must == "required")
    assert parser._names == ["f", "g"]
    assert parser._new_id().startswith("call_")
    assert parser._new_id() != parser._new_id()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (({"json_schema": "{"}, "response_format"), "json_schema"),
        (({"regex": 3}, "structured_outputs"), "regex"),
    ],
)
def test_what_is_no_rule_at_all_is_blamed_on_who_gave_it(asked, message):
    with pytest.raises(ApiError, match=message) as error:
        Calling(SERVICE, ToolUse(), asked).settings(GenerationSettings())
    assert (error.value.status, error.value.param) == (400, asked[1])


@pytest.mark.parametrize(
    ("regex", "rule"), [("a/b", r"/a\/b/"), (r"a\/b", r"/a\/b/"), (r"\d+/\d", r"/\d+\/\d/"), ("a", "/a/")]
)
def test_a_regex_beside_tools_is_a_rule_of_a_grammar(regex, rule):
    """Where a slash ends it, whether it was written so or not."""
    made = Calling(SERVICE, ToolUse((GOOD,), "auto"), ({"regex": regex}, "structured_outputs"))
    assert made._body() == rule


def service_with(template):
    made = Service.__new__(Service)
    made._manner, made.asked = None, []
    made.tokenizer = SimpleNamespace(template_for_tools=lambda: made.asked.append(1) or template)
    return made


def test_tools_of_a_model_without_a_template():
    made = service_with(None)
    for _ in range(2):
        with pytest.raises(ApiError, match="tools: the model has no chat template") as error:
            _ = made.manner
        assert (error.value.status, error.value.param, error.value.code) == (400, "tools", None)


def test_tools_of_a_template_whose_calls_are_not_known(monkeypatch):
    def of(template):
        raise JllamaError(f"no calls in {template}")

    monkeypatch.setattr("jllama.server.service.Manner.of", of)
    with pytest.raises(ApiError, match="tools: no calls in T") as error:
        _ = service_with("T").manner
    assert (error.value.status, error.value.param, error.value.code) == (400, "tools", "unsupported")


def test_a_template_is_asked_once(monkeypatch):
    monkeypatch.setattr("jllama.server.service.Manner.of", lambda template: f"manner of {template}")
    made = service_with("T")
    assert [made.manner, made.manner] == ["manner of T"] * 2
    assert made.asked == [1]
