"""A conversation of a request as a prompt, its parts alone: whose manner counts, where thoughts begin."""

import asyncio
from types import SimpleNamespace

import pytest
from starlette.datastructures import Headers

from jllama.server import conversation, tokens
from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.messages import read_messages
from jllama.server.protocol.tools import ToolUse
from jllama.tools.definitions import Tool

HELLO = [{"role": "user", "content": "Hello"}]
CALLED = [*HELLO, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]
RESULT = [*CALLED, {"role": "tool", "content": "1"}]
USE = ToolUse((Tool(name="f"),), "auto")


class Place:
    """A service whose manner is known, or not."""

    def __init__(self, manner=None, has_thoughts=True):
        self._manner, self.has_thoughts = manner, has_thoughts
        self.tokenizer = SimpleNamespace(decode=self.decode)

    @property
    def manner(self):
        if self._manner is None:
            raise ApiError(400, "no manner")
        return self._manner

    def decode(self, ids, skip_special=True):
        """Texts stand for ids; those in <> are special."""
        return "".join(text for text in ids if not (skip_special and text.startswith("<")))


@pytest.fixture
def encoded(monkeypatch):
    """What `encode_messages` is given."""
    given = {}

    def encode_messages(tokenizer, messages, **options):
        given.update(options, tokenizer=tokenizer, messages=messages)
        return [1], [2]

    monkeypatch.setattr(conversation, "encode_messages", encode_messages)
    return given


@pytest.mark.parametrize(
    ("messages", "use", "known", "manner"),
    [
        (HELLO, ToolUse(), True, None),
        (HELLO, USE, True, "M"),
        (CALLED, ToolUse(), True, "M"),
        (RESULT, ToolUse(), True, "M"),
        (RESULT, ToolUse(), False, None),  # the template writes them itself
        (RESULT, ToolUse((Tool(name="f"),), "none"), False, None),
        (HELLO, ToolUse((Tool(name="f"),), "none"), True, None),
    ],
)
def test_a_model_s_manner_counts_where_there_are_tools_or_calls(encoded, messages, use, known, manner):
    place = Place("M" if known else None)
    given = dict(begun=False, asks=False, variables={"x": 1}, name="input")
    assert conversation.encode_all(place, read_messages(messages), use, **given) == ([1], [2])
    assert (encoded["manner"], encoded["tools"]) == (manner, use.offered)
    assert {name: encoded[name] for name in given} == given
    assert encoded["tokenizer"] is place.tokenizer


def test_tools_of_an_unknown_manner_are_refused(encoded):
    with pytest.raises(ApiError, match="no manner"):
        conversation.encode_all(Place(), read_messages(HELLO), USE, begun=False)
    assert encoded == {}


@pytest.mark.parametrize(
    ("fields", "begun", "asks"),
    [
        ({}, False, True),
        ({"add_generation_prompt": True}, False, True),
        ({"add_generation_prompt": False}, False, False),
    ],
)
def test_what_a_request_says_of_the_answer_s_beginning(encoded, fields, begun, asks):
    names = ("continue_final_message", "add_generation_prompt", "chat_template_kwargs")
    given = SimpleNamespace(messages=HELLO, **(dict.fromkeys(names) | fields))
    conversation.encoded(Place("M"), given, ToolUse())
    assert (encoded["begun"], encoded["asks"], encoded["name"]) == (begun, asks, "messages")


@pytest.mark.parametrize(
    ("asking", "beginning", "amid", "past"),
    [
        (["a", "<think>"], [], True, False),
        (["a", "<think>", "\n"], ["Hm"], True, False),
        (
            ["<think>"],
            ["Hm", "</think>", " So"],
            True,
            False,
        ),  # tags that are special are no text of an answer
        (["<think>"], ["Hm ", "/think", "\n"], True, False),
        (["a"], [], False, False),
        (["a"], ["So"], False, True),
        (["<think>", *"x" * 16], ["So"], False, True),  # too far from the end
        (["<think>", *" " * 15], [], True, False),
        (["<think>", *" " * 16], [], False, False),
    ],
)
def test_whether_an_answer_begins_in_thoughts(asking, beginning, amid, past):
    place = Place()
    assert conversation.is_amid_thoughts(place, asking, beginning) is amid
    assert conversation.split_for(place, asking, beginning).past is past
    assert conversation.split_for(Place(has_thoughts=False), asking, beginning) is None
    assert not conversation.is_amid_thoughts(Place(has_thoughts=False), asking, beginning)


def test_texts_are_encoded_off_the_event_loop():
    """A long one would hold up all others."""
    threads = []

    async def in_thread(work, *arguments):
        threads.append(arguments)
        return work(*arguments)

    async def stream():
        yield b"{}"

    service = SimpleNamespace(options=SimpleNamespace(largest_body=9), in_thread=in_thread)
    app = SimpleNamespace(state=SimpleNamespace(service=service))
    request = SimpleNamespace(app=app, headers=Headers({"content-type": "application/json"}), stream=stream)
    response = asyncio.run(tokens._answered(request, lambda service, body: {"body": body.decode()}))
    assert (response.status_code, response.body) == (200, b'{"body":"{}"}')
    assert threads == [(service, b"{}")]
