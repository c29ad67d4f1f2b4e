"""Behaviour 62 of the protocol: `/v1/responses`, of which nothing is stored."""

import json

import pytest

from jllama.server.choice import Delta
from jllama.server.response_items import Items
from tests.support.serving import HELLO, content, in_process, start_engine

PATH = "/v1/responses"
ASKED = {"input": "Hello", "temperature": 0, "max_output_tokens": 12}
ORDER = [
    *(
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ),
    *("response.output_text.delta", "response.output_text.done", "response.content_part.done"),
    "response.output_item.done",
]


def streamed(client, **body):
    """The events of a stream, whose names stand in both places and whose numbers count."""
    response = client.post(PATH, stream=True, **body)
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        event, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert event == f"event: {found[-1]['type']}"
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    return found


def test_62_an_answer_is_that_of_the_conversation(client):
    response = client.ask(PATH, **ASKED)
    [item] = response["output"]
    text = content(client.chat())
    assert item["content"] == [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    assert (item["type"], item["role"]) == ("message", "assistant")
    assert item["id"].startswith("msg_")
    assert response["id"].startswith("resp_")
    assert response["object"] == "response"
    assert response["store"] is False
    usage, chat = response["usage"], client.chat()["usage"]
    assert usage["input_tokens"] == chat["prompt_tokens"]
    assert usage["output_tokens"] == chat["completion_tokens"]
    assert usage["total_tokens"] == chat["total_tokens"]


def test_62_it_is_told_whether_the_answer_is_complete(client):
    cut = client.ask(PATH, **ASKED)
    assert cut["status"] == cut["output"][0]["status"] == "incomplete"
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}
    assert streamed(client, **ASKED)[-1]["type"] == "response.incomplete"


@pytest.mark.parametrize(
    "given",
    [
        [{"role": "user", "content": "Hello"}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
        [{"type": "reasoning", "id": "rs_1", "summary": []}, {"role": "user", "content": "Hello", "id": "x"}],
    ],
)
def test_62_input_is_a_text_or_items(client, given):
    assert client.ask(PATH, **ASKED | {"input": given})["output"][0]["content"][0]["text"] == content(
        client.chat()
    )


def test_62_instructions_stand_before_and_answers_come_back(client):
    first = client.ask(PATH, **ASKED)["output"][0]
    again = [{"role": "user", "content": "Hello"}, first, {"role": "user", "content": "more"}]
    talk = [{"role": "system", "content": "Be brief"}, HELLO[0]]
    talk += [
        {"role": "assistant", "content": first["content"][0]["text"]},
        {"role": "user", "content": "more"},
    ]
    found = client.ask(PATH, **ASKED | {"input": again, "instructions": "Be brief"})
    assert found["instructions"] == "Be brief"
    assert found["output"][0]["content"][0]["text"] == content(client.chat(talk))


def test_62_events_come_in_their_order(client):
    found = streamed(client, **ASKED)
    kinds = [one["type"] for one in found]
    assert list(dict.fromkeys(kinds)) == [*ORDER, "response.incomplete"]
    assert {kind for kind in kinds if kinds.count(kind) > 1} <= {"response.output_text.delta"}
    text = "".join(one["delta"] for one in found if one["type"] == "response.output_text.delta")
    last = found[-1]["response"]
    whole = client.ask(PATH, **ASKED)
    assert text == whole["output"][0]["content"][0]["text"] == last["output"][0]["content"][0]["text"]
    assert len({one["response"]["id"] for one in found if "response" in one}) == 1
    assert len({one["item_id"] for one in found if "item_id" in one} | {last["output"][0]["id"]}) == 1
    assert found[0]["response"]["status"] == "in_progress"
    assert last["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_62_thoughts_are_an_item_before_the_message():
    items, events = Items(), []
    for delta in (Delta("", "hm"), Delta("", "."), Delta("yes", "!"), Delta("", "")):
        events += items.take(delta)
    events += items.end("completed")
    kinds = [kind.removeprefix("response.") for kind, _ in events]
    assert kinds == [
        *("output_item.added", "content_part.added", *["reasoning_text.delta"] * 3, "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
    ]
    thoughts, message = items.done
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "hm.!"}]
    assert message["content"][0]["text"] == "yes"
    assert [content["output_index"] for _, content in events] == [0] * 8 + [1] * 6


def test_62_an_empty_answer_is_a_message_too():
    items = Items()
    assert list(items.end("completed"))
    assert items.done[0]["content"][0]["text"] == ""


def test_62_an_error_inside_a_stream_is_an_event(served_model):
    with start_engine(served_model) as engine, in_process(engine) as client:

        def fail(*_):
            raise RuntimeError("the device is gone")

        engine._loop._slots.run = fail
        found = streamed(client, **ASKED)
    assert [one["type"] for one in found[-2:]] == ["error", "response.failed"]
    assert "the device is gone" in found[-2]["message"]
    assert found[-1]["response"]["status"] == "failed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("previous_response_id", "resp_1"),
            ("tools", [{"type": "web_search"}]),
            ("tool_choice", "x"),
            ("include", []),
        ),
        *(("text", {"format": {"type": "json_schema"}}), ("background", True), ("truncation", "auto")),
        *(
            ("max_output_tokens", 0),
            ("messages", []),
            ("reasoning", {"effort": "low"}),
            ("input", []),
            ("input", 3),
        ),
        *(("input", [{"type": "function_call_output"}]), ("input", [{"role": "user"}]), ("frobnicate", 1)),
    ],
)
def test_62_what_is_not_honoured_is_refused_by_name(client, name, value):
    error = client.error(PATH, **ASKED | {name: value})
    assert error["param"].startswith(name)
