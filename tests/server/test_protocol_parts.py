"""What clients send and get, without a server: messages, prompts, limits, and errors in their one shape."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from jllama.answer import TokenScore
from jllama.errors import EngineFailedError, JllamaError, PromptTooLongError, QueueFullError
from jllama.server import scores, tokens
from jllama.server.chat_completions import ChatTask
from jllama.server.choice import Choice, Delta
from jllama.server.completions import CompletionTask
from jllama.server.envelope import Envelope
from jllama.server.protocol import completions, drawing, errors, messages
from jllama.server.protocol.chat import ChatRequest
from jllama.server.protocol.completions import CompletionRequest
from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.parsing import parse
from jllama.server.protocol.sampling import StreamOptions
from jllama.server.protocol.tokens import TokenizeRequest
from jllama.server.protocol.tools import tool_use
from jllama.server.reading import Piece
from jllama.server.reasoning import Split
from jllama.tools.definitions import Call
from jllama.tools.events import Arguments, Begin, End, calls_of
from jllama.tools.formats import HERMES
from jllama.tools.parser import CallParser


def made(kind, **given):
    request = parse(json.dumps(given).encode(), kind)
    request.check()
    return request


# Errors.


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", None),
        (408, "invalid_request_error", "408"),
        (413, "invalid_request_error", "413"),
        (401, "authentication_error", "401"),
        (403, "permission_error", "403"),
        (404, "not_found_error", "404"),
        (429, "rate_limit_error", "429"),
        (500, "server_error", "500"),
        (503, "service_unavailable_error", "503"),
    ],
)
def test_the_shape_of_an_error(status, kind, code):
    error = {"message": "a\\x1b", "type": kind, "param": "p", "code": code}
    assert ApiError(status, "a\x1b", param="p").body == {"error": error}
    assert ApiError(status, "a", code="own").body["error"]["code"] == "own"
    assert ApiError(status, "a").headers == {}


@pytest.mark.parametrize(
    ("error", "status", "param", "code", "words"),
    [
        (ApiError(418, "tea"), 418, None, None, "tea"),
        (QueueFullError("full"), 429, None, "queue_full", "too many requests wait already"),
        (EngineFailedError("dead"), 503, None, "engine_failed", "dead"),
        (
            PromptTooLongError(9, 8, "mend"),
            400,
            None,
            "context_length_exceeded",
            "this server's context has 8 tokens, and the prompt has 9: shorten it, or start the server with",
        ),
        (
            PromptTooLongError(9, 8, "mend", 8),
            400,
            None,
            "context_length_exceeded",
            "the model's context has 8 tokens, and the prompt has 9: shorten it",
        ),
        (JllamaError("top_k=-3 must be"), 400, "top_k", None, "top_k=-3 must be"),
        (JllamaError("top_k=-3 goes with top_p=1"), 400, "top_k", None, "top_k=-3 goes with top_p=1"),
        (JllamaError("no such thing"), 400, None, None, "no such thing"),
        (ValueError("a secret"), 500, None, None, "the server made a mistake; its log says which"),
    ],
)
def test_what_a_client_is_told_of_an_exception(error, status, param, code, words):
    told = errors.translated(error)
    assert (told.status, told.param, told.code) == (status, param, code)
    assert words in told.message
    assert told.headers == ({"Retry-After": "1"} if status == 429 else {})


def test_whose_mistake_an_error_of_the_engine_is():
    told = errors.failed(JllamaError("not finite"))
    assert (told.status, told.code, told.message) == (500, "engine_error", "not finite")
    for error in (EngineFailedError("dead"), ValueError("x"), ApiError(400, "x")):
        assert errors.failed(error) is error


# Parameters.


def test_a_null_is_as_good_as_absent_and_bookkeeping_is_passed_over():
    request = parse(
        b'{"prompt": "a", "model": null, "user": "me", "store": true, "n": null}', CompletionRequest
    )
    assert (request.prompt, request.model, request.n) == ("a", None, 1)


@pytest.mark.parametrize(
    ("given", "limit"), [({}, 16), ({"max_tokens": 5}, 5), ({"max_tokens": 0, "echo": True}, 0)]
)
def test_the_limit_of_a_continuation(given, limit):
    assert made(CompletionRequest, prompt="a", **given).limit == limit


@pytest.mark.parametrize(
    ("kind", "given", "param"),
    [
        (CompletionRequest, dict(prompt="a", max_tokens=0), "max_tokens"),
        (CompletionRequest, dict(prompt="a", logprobs=6), "logprobs"),
        (CompletionRequest, dict(prompt="a", n=0), "n"),
        (ChatRequest, dict(messages=[], logprobs=True, top_logprobs=21), "top_logprobs"),
        (ChatRequest, dict(messages=[], return_token_ids=True), "return_token_ids"),
        (ChatRequest, dict(messages=[], top_logprobs=0), "top_logprobs"),
        (ChatRequest, dict(messages=[], temperature=2.1), "temperature"),
        (ChatRequest, dict(messages=[], stop=[""]), "stop[0]"),
        (TokenizeRequest, dict(), "prompt"),
        (TokenizeRequest, dict(prompt="", messages=[{}]), "prompt"),
    ],
)
def test_what_does_not_go_together(kind, given, param):
    with pytest.raises(ApiError) as error:
        made(kind, **given)
    assert (error.value.status, error.value.param) == (400, param)


@pytest.mark.parametrize(
    ("given", "likeliest"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
        ({"logprobs": True, "return_token_ids": True}, 0),
    ],
)
def test_how_many_tokens_are_told_beside_each(given, likeliest):
    assert made(ChatRequest, messages=[], **given).likeliest == likeliest


def test_of_no_token_at_all_none_can_be_the_least():
    asked = made(CompletionRequest, prompt="a", max_tokens=0, echo=True, min_tokens=1)
    with pytest.raises(ApiError, match="min_tokens=1 is more than the limit of 0") as error:
        asked.settings({}, 128)
    assert (error.value.status, error.value.param) == (400, "min_tokens")


def test_a_request_to_tokenize():
    plain = made(TokenizeRequest, prompt="")
    assert (plain.add_special_tokens, plain.parse_special, plain.return_token_strs) == (True, False, False)
    assert made(TokenizeRequest, messages=[{}]).prompt is None


# Prompts.

LETTERS = SimpleNamespace(encode=lambda text: [ord(letter) for letter in text])


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([5, 0], [[5, 0]]),
        ([[5], [6, 127]], [[5], [6, 127]]),
        ([7] * completions.MOST_PROMPTS, [[7] * completions.MOST_PROMPTS]),
        ([[7]] * completions.MOST_PROMPTS, [[7]] * completions.MOST_PROMPTS),
    ],
)
def test_prompts_of_each_kind(prompt, ids):
    assert made(CompletionRequest, prompt=prompt).prompts(LETTERS, 128) == ids


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "prompt is empty"),
        (["a", ""], "prompt is empty"),
        ([[1], []], "prompt is empty"),
        ([], "give from 1 to 1024 of them"),
        ([[7]] * 1025, "give from 1 to 1024 of them"),
        (["a", 1], "a list holds texts, token ids or lists of token ids"),
        ([128], "prompt: token 128 is unknown; they go from 0 to 127"),
        ([[1], [128]], "prompt: token 128 is unknown"),
        ([[128], [1]], "prompt: token 128 is unknown"),
    ],
)
def test_what_is_no_prompt(prompt, words):
    with pytest.raises(ApiError, match=words) as error:
        made(CompletionRequest, prompt=prompt).prompts(LETTERS, 128)
    assert (error.value.status, error.value.param) == (400, "prompt")


# Messages.


def read(*given):
    return messages.read_messages(given)


USER, ASSISTANT = dict(role="user", content="a"), dict(role="assistant", content="b")
CALL = dict(function=dict(name="f", arguments='{"x": 1}'))


@pytest.mark.parametrize(
    ("given", "words", "param"),
    [
        ([], "messages: give at least one", "messages"),
        ([USER, dict(role="user")], r"messages\[1\]\.content is missing", "messages[1].content"),
        ([dict(role="user", content=None)], "content is missing", "messages[0].content"),
        ([dict(role="user", content=[])], "content is an empty list", "messages[0].content"),
        ([USER | dict(x=1)], r"messages\[0\]\.x is not supported", "messages[0].x"),
        ([USER | dict(token_ids=[1])], "only an assistant's message has them", "messages[0]"),
        ([dict(role="robot", content="a")], "role", "messages[0].role"),
        ([dict(role="assistant", tool_calls=[])], "content is missing", "messages[0].content"),
    ],
)
def test_messages_that_can_not_be_used(given, words, param):
    with pytest.raises(ApiError, match=words) as error:
        read(*given)
    assert (error.value.status, error.value.param) == (400, param)


def test_what_is_empty_is_absent():
    (message,) = read(USER | dict(name=None, tool_calls=[], x=None))
    assert (message.content, message.name, message.tool_calls) == ("a", None, None)
    (called,) = read(dict(role="assistant", tool_calls=[CALL]))
    assert called.content is None
    (silent,) = read(USER | dict(content=""))
    assert silent.content == ""
    (kept,) = read(ASSISTANT | dict(token_ids=[1, 2]))
    assert kept.token_ids == [1, 2]


@pytest.mark.parametrize(
    ("talk", "holds"),
    [
        ([USER], False),
        ([USER, ASSISTANT, USER], False),
        ([USER, dict(role="assistant", tool_calls=[CALL])], True),
        ([USER, ASSISTANT | dict(tool_calls=[CALL]), USER], True),
        ([USER, dict(role="tool", content="42"), USER], True),
    ],
)
def test_whether_there_are_calls_or_results(talk, holds):
    assert messages.holds_calls(read(*talk)) == holds


@pytest.mark.parametrize(
    ("last", "continues", "asks", "begun"),
    [
        (USER, None, None, False),
        (USER, False, True, False),
        (ASSISTANT, None, None, True),
        (ASSISTANT, True, None, True),
        (ASSISTANT, True, False, True),
        (ASSISTANT, None, False, True),
        (ASSISTANT, False, None, False),
        (ASSISTANT, None, True, False),
        (ASSISTANT | dict(tool_calls=[CALL]), None, None, False),
        (ASSISTANT, True, True, None),
        (USER, True, None, None),
        (ASSISTANT | dict(tool_calls=[CALL]), True, None, None),
    ],
)
def test_whether_the_answer_has_begun(last, continues, asks, begun):
    if begun is None:
        with pytest.raises(ApiError, match="continue_final_message needs an assistant's text") as error:
            messages.is_begun(read(USER, last), continues, asks)
        assert error.value.param == "continue_final_message"
    else:
        assert messages.is_begun(read(USER, last), continues, asks) is begun


class Template:
    """Notes what it is given."""

    chat_template = "x"

    def encode_chat(self, given, *, add_generation_prompt, **variables):
        self.given, self.asks, self.variables = given, add_generation_prompt, variables
        if variables.get("refuse"):
            raise JllamaError("the template refuses")
        return [1, 2]

    def encode(self, text, *, add_special, begins):
        assert (add_special, begins) == (False, False)
        return [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("begun", "asks", "asked"),
    [(False, True, True), (False, False, False), (True, False, True), (True, True, True)],
)
def test_what_a_template_is_given(begun, asks, asked):
    template = Template()
    talk = read(dict(role="developer", content="be brief"), USER, ASSISTANT)
    found = messages.encode_messages(template, talk, begun=begun, asks=asks, variables={"y": 1})
    assert found == ([1, 2], [98] if begun else [])
    assert template.given == [dict(role="system", content="be brief"), USER, ASSISTANT][: 2 if begun else 3]
    assert (template.asks, template.variables) == (asked, {"y": 1})


def test_tools_and_calls_go_into_the_template_that_knows_them():
    class Manner:
        def prepared(self, given, tools):
            return [*given, "prepared"], {"tools": [*tools]}

    template = Template()
    template.template_for_tools = lambda: "the tools' own"
    messages.encode_messages(template, read(USER), begun=False, manner=Manner(), tools=["f"])
    assert template.given == [USER, "prepared"]
    assert template.variables == {"tools": ["f"], "template": "the tools' own"}


def test_each_of_several_calls_is_data_for_a_template():
    template, second = Template(), dict(function=dict(name="g", arguments="[2]"))
    talk = read(USER, dict(role="assistant", tool_calls=[CALL, second]), dict(role="tool", content="7"))
    messages.encode_messages(template, talk, begun=False)
    assert [one["function"]["arguments"] for one in template.given[1]["tool_calls"]] == [{"x": 1}, [2]]


def test_an_answer_s_own_tokens_come_before_its_text():
    talk = read(USER, ASSISTANT | dict(token_ids=[7, 8]))
    assert messages.encode_messages(Template(), talk, begun=True) == ([1, 2], [7, 8])


@pytest.mark.parametrize(
    ("arguments", "data"), [('{"x": 1}', {"x": 1}), ({"x": 1}, {"x": 1}), ("no JSON", "no JSON"), ("5", 5)]
)
def test_a_call_s_arguments_are_data(arguments, data):
    template = Template()
    call = dict(function=dict(name="f", arguments=arguments))
    messages.encode_messages(template, read(dict(role="assistant", tool_calls=[call])), begun=False)
    (given,) = template.given
    assert given["content"] == ""
    assert given["tool_calls"][0]["function"] == {"name": "f", "arguments": data}


def test_what_a_conversation_is_refused_for():
    bare = SimpleNamespace(chat_template=None)
    for tokenizer, variables, words, param in (
        (bare, {}, "the model has no chat template", "input"),
        (Template(), {"messages": 1}, "messages is not yours to set", "chat_template_kwargs"),
        (Template(), {"refuse": True}, "the template refuses", "input"),
    ):
        with pytest.raises(ApiError, match=words) as error:
            messages.encode_messages(tokenizer, read(USER), begun=False, variables=variables, name="input")
        assert (error.value.status, error.value.param) == (400, param)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (dict(), dict(logprobs=None, prompt_logprobs=None)),
        (dict(logprobs=2), dict(logprobs=2, prompt_logprobs=None)),
        (dict(logprobs=0, echo=True), dict(logprobs=0, prompt_logprobs=0)),
        (dict(echo=True), dict(logprobs=None, prompt_logprobs=None)),
    ],
)
def test_a_prompt_is_scored_where_it_is_said_alone(given, told):
    """To score it costs all of it, whatever a slot holds."""
    service = SimpleNamespace(check_model=print, check_count=print, vocab_size=9, tokenizer=None)
    service.options, service.fingerprint = SimpleNamespace(sampling={}, names=("m",)), "f"
    task = CompletionTask(service, json.dumps(dict(prompt=[[1, 2], [3]], n=2, seed=5, **given)).encode())
    assert [(each.pop("prompt"), each.pop("settings").seed) for each in task.requests] == [
        *(([1, 2], 5), ([1, 2], 6), ([3], 5), ([3], 6))
    ]
    assert task.requests == [told] * 4


# Choices.

BYTES = SimpleNamespace(
    token_bytes=lambda token, skip_special=True: b"" if skip_special and token == 0 else bytes([token]),
    stream=lambda prompt, shown: SimpleNamespace(push=lambda token: chr(token), pending=lambda: ""),
)


def choice(text="", *, logprobs=None, row_stops=(), **options):
    ids = [ord(letter) for letter in text]
    result = SimpleNamespace(
        text=text,
        token_ids=ids,
        logprobs=logprobs,
        finish_reason="stop",
        stop_string=None,
        stop_token=None,
        seed=3,
    )
    stream = SimpleNamespace(answer=SimpleNamespace(result=result), row=SimpleNamespace(stop_ids=row_stops))
    return Choice(0, stream, BYTES, [], **options), result


@pytest.mark.parametrize(
    ("stop_string", "stop_token", "own", "silent", "told"),
    [
        (None, None, (), False, ("stop", None)),
        ("x", None, (), False, ("stop", "x")),
        ("x", 5, (5,), False, ("stop", "x")),
        (None, 5, (5,), False, ("stop", 5)),
        (None, 5, (), False, ("stop", None)),  # the model's own end
        ("x", 5, (5,), True, ("length", None)),
    ],
)
def test_why_an_answer_ended(stop_string, stop_token, own, silent, told):
    made, result = choice(stop_ids=own, silent=silent)
    result.stop_string, result.stop_token = stop_string, stop_token
    assert made.ending == {"finish_reason": told[0], "stop_reason": told[1], "seed": 3}


@pytest.mark.parametrize(
    ("count", "amid", "reason", "told"),
    [
        (0, False, "stop", "stop"),
        (1, False, "stop", "tool_calls"),
        (2, False, "stop", "tool_calls"),
        (2, True, "stop", "stop"),  # a stop string ended it in the middle of a call
        (1, False, "length", "length"),
        (1, True, "length", "length"),
    ],
)
def test_calls_that_are_whole_are_why_an_answer_ended(count, amid, reason, told):
    calling = SimpleNamespace(shown=(), parser=lambda: SimpleNamespace(count=count, is_amid=amid))
    made, result = choice(calling=calling)
    result.finish_reason = reason
    assert made.ending == {"finish_reason": told, "stop_reason": None, "seed": 3}


ENDED = ("chunk", {}, {"finish_reason": "stop"})


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(
    ("delta", "frames"),
    [
        (Delta(), []),
        (Delta(text="a"), [({"content": "a"}, {"logprobs": 0})]),
        (Delta(thoughts="b"), [({"reasoning_content": "b"}, {"logprobs": 0})]),
        (Delta("a", "b", ("s",)), [({"reasoning_content": "b", "content": "a"}, {"logprobs": 1})]),
        (Delta(scores=("s", "t")), [({"content": ""}, {"logprobs": 2})]),  # of a token without text yet
        (
            Delta("a", calls=(Begin(0, "id", "f"), Arguments(0, "{}"), End(0))),
            [
                ({"content": "a"}, {"logprobs": 0}),
                ({"tool_calls": [{"index": 0, **Call("id", "f", "").as_dict()}]}, {}),
                ({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}, {}),
            ],
        ),
    ],
)
def test_what_a_chat_s_stream_tells_of_a_delta(delta, frames, ended):
    task = SimpleNamespace(
        _chunk=lambda choice, said, **more: ("chunk", said, more), _logprobs=lambda delta: len(delta.scores)
    )
    one = SimpleNamespace(ending={"finish_reason": "stop"})
    found = [*ChatTask.frames(task, one, delta, ended)]
    assert found == [*(("chunk", *each) for each in frames), *([ENDED] if ended else [])]


CALLS = (Begin(0, "id", "f"), Arguments(0, "{}"), End(0))


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        (Delta(), {"content": ""}),
        (Delta("a"), {"content": "a"}),
        (Delta("a", "b"), {"content": "a", "reasoning_content": "b"}),
        (Delta("a", calls=CALLS), {"content": "a", "tool_calls": [Call("id", "f", "{}").as_dict()]}),
        (Delta(calls=CALLS), {"content": None, "tool_calls": [Call("id", "f", "{}").as_dict()]}),
        (
            Delta(calls=(*CALLS, Begin(1, "id2", "g"), Arguments(1, "[]"), End(1))),
            {
                "content": None,
                "tool_calls": [Call(*call).as_dict() for call in (("id", "f", "{}"), ("id2", "g", "[]"))],
            },
        ),
    ],
)
@pytest.mark.parametrize(("asked", "with_ids"), [(False, False), (True, False), (True, True)])
def test_an_answer_of_a_chat_and_how_its_stream_begins(delta, message, asked, with_ids):
    task, chunks = ChatTask.__new__(ChatTask), []
    task._given = SimpleNamespace(logprobs=asked, return_token_ids=with_ids)
    task._service = SimpleNamespace(tokenizer=BYTES)
    task.choices = [
        SimpleNamespace(index=at, ending={"finish_reason": "stop", "seed": at}) for at in range(2)
    ]
    task._envelope = SimpleNamespace(
        whole=lambda entries, choices: (entries, choices),
        chunk=lambda entry, choices: chunks.append((entry, choices)) or b"chunk",
    )
    score = scores.Placed(0, TokenScore(97, -1.0, {}))
    entries, choices = task.whole([Delta("x"), dataclasses.replace(delta, scores=(score,))])
    told = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []} | (
        {"token_id": 97} if with_ids else {}
    )
    logprobs = {"content": [told], "refusal": None} if asked else None
    assert choices is task.choices
    assert entries[1] == {
        "index": 1,
        "message": {"role": "assistant", **message},
        "logprobs": logprobs,
        "finish_reason": "stop",
        "seed": 1,
    }
    assert entries[0]["message"]["content"] == "x"
    assert [*task.opening()] == [b"chunk"] * 2
    first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    assert chunks == [({"index": at, **first}, task.choices) for at in range(2)]


@pytest.mark.parametrize(
    ("text", "said", "calls", "finish"),
    [
        ('Wait.\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', "Wait.", ["f"], "tool_calls"),
        ('<tool_call>{"name": "f", "arguments": {broken}}</tool_call>', None, [], "stop"),
        ("no call", None, [], "stop"),
    ],
)
def test_calls_that_no_grammar_enforced(text, said, calls, finish):
    """Told when they are complete; what is none is the text that it was."""
    calling = SimpleNamespace(shown=(), parser=lambda: CallParser(HERMES, ["f"], lambda: "call_1"))
    for size in (1, 7, len(text)):
        made, _ = choice(text, calling=calling)
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        deltas = [made.push(Piece(piece, 1, 0)) for piece in pieces] + [made.end()]
        assert "".join(delta.text for delta in deltas) == (text if said is None else said)
        events = [event for delta in deltas for event in delta.calls]
        assert [call.name for call in calls_of(events)[1]] == calls
        assert made.ending["finish_reason"] == finish


@pytest.mark.parametrize(
    ("text", "thoughts", "said"),
    [
        ("abc <tool", "", "abc <tool"),
        ("<think>a </thi", "a </thi", ""),
        ("<thi", "", "<thi"),
        ("<think>a</think> b <tool", "a", "b <tool"),
    ],
)
def test_what_was_held_back_comes_at_the_end(text, thoughts, said):
    calling = SimpleNamespace(shown=(), parser=lambda: CallParser(HERMES, ["f"], lambda: "call_1"))
    made, _ = choice(text, calling=calling, split=Split())
    first = made.push(Piece(text, len(text), 0))
    last = made.end()
    assert (first.thoughts + last.thoughts, first.text + last.text) == (thoughts, said)
    assert made.ending["finish_reason"] == "stop"
    assert last
    assert first.text != said or first.thoughts != thoughts


def test_what_is_silent_says_nothing():
    made, _ = choice("abc", silent=True)
    assert not made.push(Piece("abc", 3, 0))
    assert not made.end()
    assert made.tokens == 0


@pytest.mark.parametrize(
    ("reason", "stop_string", "shown"),
    [("stop", "c", "ab"), ("stop", None, "abc"), ("length", "c", "abc")],
)
def test_scores_stand_with_their_text_and_no_further_than_a_stop_string(reason, stop_string, shown):
    told = [TokenScore(ord(letter), -1.0, {}) for letter in "abc"]
    made, result = choice("abc", logprobs=told)
    result.finish_reason, result.stop_string = reason, stop_string
    first = made.push(Piece("a", 2, 2))
    assert [placed.score.token for placed in first.scores] == [97]
    more = made.push(Piece("b", 2, 2))
    end = made.end()
    found = (*first.scores, *more.scores, *end.scores)
    assert "".join(chr(placed.score.token) for placed in found) == shown
    assert [placed.start for placed in found] == [*range(len(shown))]
    assert made.tokens == 3


@pytest.mark.parametrize(
    ("text", "before", "count"),
    [
        ("<think>ab</think>c", "", 17),
        ("ab</think>c", "<think>\n", 10),
        ("<think>ab", "", 9),
        ("abc", "", 0),
        ("abc", None, 0),
    ],
)
def test_tokens_of_thoughts(text, before, count):
    made, _ = choice(text, split=None if before is None else Split(before))
    made.push(Piece(text, len(text), 0))
    made.end()
    assert made.thought_tokens == count


@pytest.mark.parametrize(
    ("options", "in_chunks", "last"),
    [
        (None, None, False),
        (StreamOptions(include_usage=True), "null", True),
        (StreamOptions(include_usage=True, continuous_usage_stats=True), "counts", True),
        (StreamOptions(continuous_usage_stats=True), None, False),
        (StreamOptions(include_usage=False), None, False),
    ],
)
def test_where_a_stream_tells_its_usage(options, in_chunks, last):
    service = SimpleNamespace(options=SimpleNamespace(names=("m",)), fingerprint="fp")
    envelope = Envelope(service, "x", "kind", options)
    result = SimpleNamespace(prompt_tokens=2, reused_tokens=0)
    one = SimpleNamespace(
        tokens=3, thought_tokens=0, stream=SimpleNamespace(answer=SimpleNamespace(result=result))
    )
    chunk = json.loads(envelope.chunk({"index": 0}, [one]).removeprefix(b"data: "))
    assert ("usage" in chunk) == (in_chunks is not None)
    assert (chunk.get("usage") is not None) == (in_chunks == "counts")
    frames = [json.loads(frame.removeprefix(b"data: ")) for frame in envelope.last([one])]
    assert [(frame["choices"], frame["usage"]["total_tokens"]) for frame in frames] == (
        [([], 5)] if last else []
    )
    assert "completion_tokens_details" not in envelope.whole([], [one])["usage"]
    one.thought_tokens = 1
    assert envelope.whole([], [one])["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}


def test_an_envelope_tells_of_each_prompt_once_and_of_all_thoughts():
    def one(prompt, tokens, thoughts):
        result = SimpleNamespace(prompt_tokens=prompt, reused_tokens=prompt - 1)
        stream = SimpleNamespace(answer=SimpleNamespace(result=result))
        return SimpleNamespace(tokens=tokens, thought_tokens=thoughts, stream=stream)

    service = SimpleNamespace(options=SimpleNamespace(names=("m", "alias")), fingerprint="fp")
    options = StreamOptions(include_usage=True, continuous_usage_stats=True)
    envelope = Envelope(service, "x", "kind", options, prompts=2)
    choices = [one(2, 3, 1), one(2, 4, 0), one(5, 5, 2), one(5, 6, 0)]
    counts = {"prompt_tokens": 7, "completion_tokens": 18, "total_tokens": 25}
    counts |= {"prompt_tokens_details": {"cached_tokens": 5}}
    whole = envelope.whole([{"index": 0}], choices)
    assert (whole["model"], whole["system_fingerprint"], whole["object"]) == ("m", "fp", "kind")
    assert whole["usage"] == counts | {"completion_tokens_details": {"reasoning_tokens": 3}}
    (last,) = envelope.last(choices)
    assert json.loads(last.removeprefix(b"data: "))["usage"] == whole["usage"]
    chunk = json.loads(envelope.chunk({"index": 0}, choices).removeprefix(b"data: "))
    assert chunk["usage"] == counts
    assert chunk["id"] == whole["id"]
    assert chunk["id"].startswith("x-")


# Log-probabilities.


def test_a_score_as_both_routes_tell_it():
    placed = scores.Placed(4, TokenScore(97, -1.0, {97: -1.0, 0: float("-inf")}))
    told = scores.as_chat(BYTES, [placed], False)["content"]
    special = {"token": "\0", "logprob": -9999.0, "bytes": None}
    plain = {"token": "a", "logprob": -1.0, "bytes": [97]}
    assert told == [plain | {"top_logprobs": [plain, special]}]
    (entry,) = scores.as_chat(BYTES, [placed], True)["content"]
    assert (entry["token_id"], [one["token_id"] for one in entry["top_logprobs"]]) == (97, [97, 0])
    text = scores.as_completion(BYTES, [placed], 10)
    assert (text["tokens"], text["token_logprobs"], text["text_offset"]) == (["a"], [-1.0], [14])
    assert text["top_logprobs"] == [{"a": -1.0, "\0": -9999.0}]


def test_of_tokens_that_are_spelt_alike_the_likelier_one_is_told():
    texts = {1: b"a", 2: b"a", 3: b"\xc3"}
    spelt = SimpleNamespace(token_bytes=lambda token, skip_special=True: texts[token])
    for likeliest in ({1: -1.0, 2: -2.0, 3: -3.0}, {2: -1.0, 3: -1.5, 1: -2.0}):
        told = scores.as_completion(spelt, [scores.Placed(0, TokenScore(1, -1.0, likeliest))])
        assert told["top_logprobs"] == [{"a": -1.0, "\ufffd": likeliest[3]}]


def test_two_stretches_of_a_text_and_a_prompt_s_scores():
    told = scores.prompt_as_completion(BYTES, (97, 98), (None, TokenScore(98, -2.0, {98: -2.0, 0: -3.0})))
    assert told == {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -2.0],
        "top_logprobs": [None, {"b": -2.0, "\0": -3.0}],
        "text_offset": [0, 1],
    }
    more = scores.as_completion(BYTES, [scores.Placed(0, TokenScore(99, float("-inf"), {}))], 2)
    whole = scores.joined(told, more)
    assert (whole["tokens"], whole["text_offset"]) == (["a", "b", "c"], [0, 1, 2])
    assert whole["token_logprobs"] == [None, -2.0, -9999.0]


def test_what_is_shown_decides_which_scores_are():
    placing = scores.Placing(BYTES, [], hidden={0})
    placing.push([TokenScore(token, -1.0, {}) for token in (97, 98, 0, 99)])
    assert [one.start for one in placing.within(0)] == []
    assert [one.start for one in placing.within(1)] == [0]
    assert [one.start for one in placing.within(2)] == [1]
    assert [(one.start, one.score.token) for one in placing.within(None)] == [(2, 99)]


@pytest.mark.parametrize(("byte", "start"), [(0x7F, 1), (0x80, 0), (0xBF, 0), (0xC0, 1), (0xF0, 1)])
def test_a_token_that_does_not_go_on_with_a_character_begins_behind_it(byte, start):
    begun = SimpleNamespace(push=lambda token: "", pending=lambda: "\ufffd")
    tokenizer = SimpleNamespace(stream=lambda prompt, shown: begun, token_bytes=lambda token: bytes([token]))
    placing = scores.Placing(tokenizer, [], hidden=())
    placing.push([TokenScore(byte, -1.0, {})])
    assert [one.start for one in placing.within(None)] == [start]


@pytest.mark.parametrize("given", [dict(), dict(add_special_tokens=False), dict(parse_special=True)])
def test_how_a_text_is_tokenized(given):
    asked = []
    tokenizer = SimpleNamespace(encode=lambda text, **how: asked.append((text, how)) or [3, 4])
    service = SimpleNamespace(tokenizer=tokenizer, check_model=print, engine=SimpleNamespace(max_seq_len=7))
    told = tokens._tokenized(service, json.dumps(dict(prompt="a", **given)).encode())
    assert told == dict(count=2, max_model_len=7, tokens=[3, 4], token_strs=None)
    add, parse_special = given.get("add_special_tokens", True), given.get("parse_special", False)
    assert asked == [("a", dict(add_special=add, parse_special=parse_special))]


# Continuations of two prompts, two of each.


def continuations(**given):
    """A task whose engine has taken its four requests."""
    tokenizer = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)), stream=BYTES.stream)
    tokenizer.token_bytes = BYTES.token_bytes
    counted = []
    service = SimpleNamespace(check_model=print, check_count=lambda *asked: counted.append(asked))
    service.vocab_size, service.tokenizer, service.fingerprint = 128, tokenizer, "f"
    service.options = SimpleNamespace(sampling={}, names=("m",))
    task = CompletionTask(service, json.dumps(dict(prompt=[[65, 66], [67]], n=2, **given)).encode())
    assert counted == [(4, "prompt")]
    scored = {65: [None, TokenScore(66, -1.0, {})], 67: [None]}
    task.choices = []
    for place, request in enumerate(task.requests):
        result = SimpleNamespace(prompt_logprobs=None, finish_reason="stop", stop_string=None, stop_token=5)
        result.seed, result.logprobs = place, [] if "logprobs" in given else None
        result.text, result.prompt_tokens, result.reused_tokens = "", len(request["prompt"]), 0
        if "echo" in given and "logprobs" in given:
            result.prompt_logprobs = scored[request["prompt"][0]]
        stream = SimpleNamespace(answer=SimpleNamespace(result=result), row=SimpleNamespace(stop_ids=()))
        task.choices.append(task.choose(place, stream))
    return task


def told(task, place, delta, ended=False):
    """The choice of each frame, without what all have."""
    frames = [
        json.loads(one.removeprefix(b"data: ")) for one in task.frames(task.choices[place], delta, ended)
    ]
    entries = [frame["choices"][0] for frame in frames]
    assert all(entry.pop("index") == place for entry in entries)
    return entries


def said(text, logprobs=None, reason=None):
    return {"text": text, "logprobs": logprobs, "finish_reason": reason}


X = Delta("x", scores=(scores.Placed(0, TokenScore(120, -2.0, {})),))


def test_a_prompt_is_said_once_before_each_of_its_continuations():
    task = continuations(echo=True)
    assert [*task.opening()] == []
    assert told(task, 2, Delta("x")) == [said("Cx")]
    assert told(task, 2, Delta()) == []
    assert told(task, 0, Delta()) == [said("AB")]  # at once, whatever comes
    assert told(task, 1, Delta("y"), ended=True) == [
        said("ABy"),
        said("", reason="stop") | {"stop_reason": None, "seed": 1},
    ]
    assert told(task, 2, Delta("y")) == [said("y")]
    plain = continuations()
    assert told(plain, 0, Delta("x")) == [said("x")]
    assert told(plain, 0, Delta(), ended=True) == [said("", reason="stop") | {"stop_reason": None, "seed": 0}]


def test_continuations_stand_side_by_side_each_behind_its_prompt():
    task = continuations(echo=True, stop_token_ids=[5])
    assert [choice._prompt for choice in task.choices] == [[65, 66], [65, 66], [67], [67]]
    whole = task.whole([Delta(letter) for letter in "wxyz"])
    assert [(one["index"], one["text"]) for one in whole["choices"]] == [
        *((0, "ABw"), (1, "ABx"), (2, "Cy"), (3, "Cz"))
    ]
    ends = [(one["finish_reason"], one["stop_reason"], one["seed"]) for one in whole["choices"]]
    assert ends == [("stop", 5, place) for place in range(4)]
    assert (whole["object"], whole["usage"]["prompt_tokens"]) == ("text_completion", 2 + 1)


def test_scores_of_a_prompt_come_with_its_first_words_alone():
    task = continuations(echo=True, logprobs=1)
    both = dict(tokens=["A", "B", "x"], token_logprobs=[None, -1.0, -2.0], top_logprobs=[None, {}, {}])
    assert told(task, 1, X) == [said("ABx", both | dict(text_offset=[0, 1, 2]))]
    own = dict(tokens=["x"], token_logprobs=[-2.0], top_logprobs=[{}])
    assert told(task, 1, X) == [
        said("x", own | dict(text_offset=[2]))
    ]  # the prompt's characters stand before
    assert told(continuations(logprobs=0), 1, X) == [said("x", own | dict(text_offset=[0]))]


def test_only_a_prompt_is_said_where_no_token_is_wanted():
    task = continuations(echo=True, max_tokens=0)
    assert {request["settings"].max_new_tokens for request in task.requests} == {1}  # an engine's least
    assert not task.choices[0].push(Piece("x", 1, 0))
    assert told(task, 0, Delta(), ended=True)[-1] == said("", reason="length") | {
        "stop_reason": None,
        "seed": 0,
    }
    assert continuations(max_tokens=1).choices[0].push(Piece("x", 1, 0)) == Delta("x")


def test_where_nothing_is_shown_no_score_is():
    """A stop string may stand at the very beginning."""
    placing = scores.Placing(BYTES, [], ())
    placing.push([TokenScore(97, -1.0, {}), TokenScore(98, -1.0, {})])
    assert [*placing.within(0)] == []
    assert [one.start for one in placing.within(None)] == [0, 1]


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_without_tools_none_is_called(choice):
    assert tool_use(None, choice, None).choice == tool_use([], choice, True).choice == "none"


def test_what_is_drawn_has_its_size():
    ids, seeds = ([draw() for _ in range(60)] for draw in (drawing.drawn_id, drawing.drawn_seed))
    assert len({*ids}) == len({*seeds}) == 60
    assert all(len(one) == 24 and one.isalnum() and one == one.lower() for one in ids)
    assert any(one[0] > "7" for one in ids)  # no bit is left out
    assert 2**31 < max(seeds) < 2**32
