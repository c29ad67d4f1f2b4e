"""Every way to an answer keeps what it must match: random weights would break it at once."""

import asyncio
import json
import re

import pytest

import jllama
from jllama.errors import JllamaError

WAIT = 300
NAME = {"type": "string", "maxLength": 6}
SCHEMA = {
    "type": "object",
    "properties": {"name": NAME, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
JSON = dict(json_schema=SCHEMA, temperature=1.0, max_new_tokens=100)


def is_person(text):
    value = json.loads(text)
    assert list(value) == ["name", "age"]
    assert len(value["name"]) <= 6
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 120
    return True


def token_of(model, letter):
    (token,) = model.tokenizer.encode(letter, add_special=False)
    return token


def with_session(model, **settings):
    session = jllama.Session(model, max_seq_len=256)
    return "".join(session.stream("Who?", **settings)), session.result


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        (dict(regex="[0-9]{3}-[a-z]{2}"), "[0-9]{3}-[a-z]{2}"),
        (dict(choice=("red", 'a "q"\n\x7f\\', "grün")), 'red|a "q"\n\x7f\\\\|grün'),
        (dict(choice=(" ", "\n\t")), " |\n\t"),
        (dict(grammar='start: "a" b\nb: "x" | "y"'), "a[xy]"),
        (dict(grammar='root ::= "a" b\nb ::= "x" | "y"'), "a[xy]"),
        (dict(grammar="start: a\na: a /x/ | /y/", max_new_tokens=9), "yx*"),  # left recursion is no trouble
    ],
)
def test_a_session_keeps_to_it_and_ends_with_it(model, given, pattern, temperature):
    text, result = with_session(model, temperature=temperature, seed=3, **given)
    assert re.fullmatch(pattern, text)
    if "max_new_tokens" not in given:
        assert (result.finish_reason, result.stop_token) == ("stop", 256)


@pytest.mark.parametrize(
    "more",
    [
        dict(),
        dict(repetition_penalty=100.0, presence_penalty=100.0, frequency_penalty=-100.0),
        dict(repetition_penalty=0.01),
        dict(logit_bias=dict.fromkeys(range(0, 256, 2), 1000000000.0)),
        dict(min_new_tokens=90),
        dict(top_k=1),
        dict(top_p=1e-9, min_p=1.0),
        dict(temperature=100.0),
    ],
    ids=str,
)
def test_no_setting_bends_it(model, more):
    for seed in range(3):
        text, result = with_session(model, **JSON | more, seed=seed)
        assert is_person(text)
        assert result.finish_reason == "stop"


def test_a_library_call_with_a_text_with_several_and_with_several_answers(model):
    assert is_person(jllama.generate(model, "Who?", seed=1, **JSON))
    assert all(map(is_person, jllama.generate(model, ["Who?", "And?"], seed=1, **JSON)))
    answers = [*jllama.complete(model, "Who?", n=2, seed=5, **JSON)]
    assert all(is_person(answer.text) for answer in answers)
    assert answers[0].text != answers[1].text
    assert answers[1].text == with_session(model, seed=6, **JSON)[0]


def test_log_probabilities_are_the_models_own(engine):
    """Before the mask: the first token is `{` whatever the model finds likely."""
    answer = engine.submit("Who?", logprobs=20, seed=1, **JSON).result(WAIT)
    assert len(answer.logprobs) == answer.generated_tokens
    free = engine.submit("Who?", logprobs=20, max_new_tokens=1).result(WAIT)
    assert answer.logprobs[0].likeliest == pytest.approx(free.logprobs[0].likeliest, abs=1e-5)
    assert answer.logprobs[0].logprob < -1


def test_rows_with_and_without_run_together_as_they_run_alone(model, engine):
    """In any mixture, in slots that others held before, with prefixes shared."""

    def settings(seed):
        if seed % 3 == 0:
            return dict(max_new_tokens=40, temperature=1.0, seed=seed)
        return JSON | dict(seed=seed, stop=["zzzz"] if seed == 4 else [], min_new_tokens=seed % 2)

    streams = [engine.submit("One day", **settings(seed)) for seed in range(7)]
    for seed, stream in enumerate(streams):
        text, alone = with_prompt(model, "One day", **settings(seed))
        assert stream.result(WAIT).text == text
        assert stream.result().finish_reason == alone.finish_reason
        assert seed % 3 == 0 or is_person(text)


def with_prompt(model, prompt, **settings):
    session = jllama.Session(model, max_seq_len=256)
    return "".join(session.stream(prompt, **settings)), session.result


def test_a_stream_for_asyncio(engine):
    async def read():
        return "".join([piece async for piece in engine.stream("Who?", seed=2, **JSON)])

    assert is_person(asyncio.run(read()))


def test_a_conversation_keeps_to_it_and_goes_on_with_a_cut_answer(model):
    conversation = jllama.Conversation(model, max_seq_len=256)
    begun = "".join(conversation.ask("Who?", **JSON | dict(max_new_tokens=12, seed=1)))
    assert conversation.result.finish_reason == "length"
    rest = "".join(conversation.resume(**JSON | dict(seed=1)))
    assert is_person(begun + rest)
    assert is_person(conversation.messages[-1].content)
    assert is_person("".join(conversation.retry(seed=4, **JSON)))


def test_a_blank_at_the_beginning_is_part_of_it(model):
    pattern = dict(regex="  a", max_new_tokens=9)
    assert with_session(model, **pattern)[0] == "  a"
    assert "".join(jllama.Conversation(model).ask("Who?", **pattern)) == "  a"


def test_an_answer_that_begins_otherwise_does_not_go_on(model):
    session = jllama.Session(model, max_seq_len=64)
    with pytest.raises(JllamaError, match="can't go on as it must"):
        session.stream("Who?", begun=[ord("x")], **JSON)


def test_the_token_limit_cuts_it_and_says_so(model, engine):
    short = JSON | dict(max_new_tokens=7, seed=1)
    _, result = with_session(model, **short)
    assert (result.finish_reason, result.generated_tokens) == ("length", 7)
    assert engine.submit("Who?", **short).result(WAIT).finish_reason == "length"


def test_a_stop_string_ends_it_as_any_answer(engine):
    result = engine.submit("Who?", stop='", "age', seed=1, **JSON).result(WAIT)
    assert (result.finish_reason, result.stop_string) == ("stop", '", "age')
    assert result.text.startswith('{"name": "')


BAN_ALL = dict.fromkeys(range(257), -1000.0)


def test_a_bias_that_leaves_nothing_is_an_error_of_that_row_alone(model, engine):
    colon = {token_of(model, ":"): -1000.0}
    bad = [
        engine.submit("Who?", logit_bias=BAN_ALL, seed=1, **JSON),
        engine.submit("Who?", logit_bias=colon, seed=1, **JSON),
    ]
    good = [engine.submit("Who?", seed=1, **JSON), engine.submit("Who?", max_new_tokens=30)]
    for stream in bad:
        with pytest.raises(JllamaError, match="logit_bias does not ban"):
            stream.result(WAIT)
    assert "".join(bad[0].answer.result.text) == ""
    assert bad[1].answer.result.text == '{"name"'
    assert is_person(good[0].result(WAIT).text)
    assert good[1].result(WAIT).generated_tokens > 0
    session = jllama.Session(model, max_seq_len=256)
    came = ""
    with pytest.raises(JllamaError, match="logit_bias does not ban"):  # noqa: PT012
        for piece in session.stream("Who?", logit_bias=colon, seed=1, **JSON):
            came += piece
    assert came == '{"name"'
    assert is_person("".join(session.stream("Who?", seed=1, **JSON)))


@pytest.mark.parametrize("path", ["session", "engine"])
def test_no_heat_leaves_what_may_come(model, engine, path):
    pattern = dict(regex="[ab]{40}", temperature=50.0, max_new_tokens=64)
    for seed in range(4):
        if path == "session":
            text = with_session(model, seed=seed, **pattern)[0]
        else:
            text = engine.submit("Who?", seed=seed, **pattern).result(WAIT).text
        assert re.fullmatch("[ab]{40}", text)


def test_a_cancelled_row_frees_its_slot(engine):
    streams = [engine.submit("Who?", seed=seed, **JSON) for seed in range(4)]
    for stream in streams[:2]:
        stream.cancel()
    assert all(stream.result(WAIT).finish_reason == "interrupted" for stream in streams[:2])
    assert all(is_person(stream.result(WAIT).text) for stream in streams[2:])
