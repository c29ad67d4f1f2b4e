"""What an answer is asked with and what is kept of it, each part by itself: no model."""

from types import SimpleNamespace

import pytest

from jllama.answer import Result
from jllama.chat import asking
from jllama.chat.branches import Message, Round
from jllama.chat.transcript import Transcript
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings
from jllama.tools.definitions import Call
from jllama.tools.formats import HERMES
from jllama.tools.parser import CallParser

CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


def shown(text, begun="", reader=True, closed=None):
    """What is shown of an answer that comes letter by letter."""

    def pieces():
        try:
            yield from text
        finally:
            if closed is not None:
                closed.append(True)

    parser = CallParser(HERMES, ["f"], lambda: "id") if reader else None
    return list(asking.without_calls(pieces(), parser, begun))


@pytest.mark.parametrize(
    ("text", "begun", "said"),
    [
        ("Hello.", "", "Hello."),
        (f"I look. {CALL}", "", "I look."),
        (f"{CALL} Done.", "", "Done."),
        ("3 <tool_ca", "", "3 <tool_ca"),  # what was held back is shown at the end
        ('So <tool_call>{"name"', "", 'So <tool_call>{"name"'),
        ("tool_call> no", "a <", " <tool_call> no"),  # begun before; a blank and a mark were held back
    ],
)
def test_calls_are_not_shown_and_nothing_else_is_lost(text, begun, said):
    assert "".join(shown(text, begun)) == said
    assert "".join(shown(text, begun, reader=False)) == text


def test_who_stops_reading_ends_the_answer():
    closed = []

    def pieces():
        try:
            yield from "abc"
        finally:
            closed.append(True)

    said = pieces()  # somebody else holds it: that nobody does is not what ends it
    told = asking.without_calls(said, CallParser(HERMES, ["f"], lambda: "id"), "")
    assert next(told) == "a"
    told.close()
    assert closed == [True]


@pytest.mark.parametrize(
    ("reason", "text", "begun", "kept"),
    [
        ("stop", "", "", True),
        ("length", "", "abc", True),
        ("interrupted", "", "", False),
        ("interrupted", " \n", "", False),
        ("interrupted", "a", "", True),
        ("interrupted", " abc", "abc ", False),
        ("interrupted", "abcd", "abc", True),
    ],
)
def test_an_interrupted_answer_is_kept_if_it_has_more_than_before(reason, text, begun, kept):
    assert asking.has_more(Result(text=text, finish_reason=reason), begun) == kept


@pytest.mark.parametrize("text", ["", " \n\t", []])
def test_an_empty_question(text):
    with pytest.raises(JllamaError, match="the message is empty: give a text"):
        asking.question(text)


def test_a_question_is_a_user_s_text_as_it_is():
    assert asking.question(" Why?\n") == Message("user", " Why?\n")
    assert asking.question([{"type": "text", "text": "a"}, "b"]).role == "user"


def test_settings_of_a_question():
    assert asking.settings_of(GenerationSettings(top_k=3), {"seed": 5}) == GenerationSettings(top_k=3, seed=5)
    with pytest.raises(JllamaError, match=r"is given to Conversation\(model, system="):
        asking.settings_of(None, {"system": "x", "no such": 1})


ONE, TWO = Call("a", "f", "{}"), Call("b", "g", "{}")


def test_results_make_a_round_behind_those_before():
    before = Round("x", (ONE,), ("1",))
    message = Message("assistant", "Hm", rounds=(before,), calls=(ONE, TWO))
    assert asking.answered(message, ("2", "3")) == (before, Round("Hm", (ONE, TWO), ("2", "3")))


@pytest.mark.parametrize(("calls", "results"), [((), ()), ((ONE,), ()), ((ONE,), ("1", "2")), ((), ("1",))])
def test_as_many_results_as_calls(calls, results):
    words = f"{len(calls)} calls wait for what they give, and {len(results)} results came"
    with pytest.raises(JllamaError, match=words):
        asking.answered(Message("assistant", "", calls=calls), results)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"messages": []}, "messages is not yours to set"),
        ("x", "must be names with values"),
        ({5: 1}, "must be"),
    ],
)
def test_a_transcript_s_variables_are_checked(variables, words):
    tokenizer = SimpleNamespace(chat_template="{{ x }}", compile_template=None, turn_ends=None)
    with pytest.raises(JllamaError, match=words):
        Transcript(tokenizer, None, variables)


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [(" \n a b ", "a b ", []), (f" I look. {CALL}", "I look.", ["f"]), (f" {CALL}", "", ["f"]), ("", "", [])],
)
def test_an_answer_is_kept_without_the_blanks_before_it(monkeypatch, text, said, calls):
    monkeypatch.setattr(asking, "kept_ids", lambda tokenizer, prompt, result: (7,))
    parser = CallParser(HERMES, ["f"], lambda: "id")
    transcript = SimpleNamespace(reader=lambda tools: parser, stops=("<end>",))
    result, rounds = Result(text=text, finish_reason="length"), (Round("", (), ()),)
    made = asking.kept(transcript, None, [1], result, (), rounds)
    assert (made.content, [call.name for call in made.calls], made.rounds) == (said, calls, rounds)
    assert (made.token_ids, made.cut) == ((None, False) if calls else ((7,), True))
