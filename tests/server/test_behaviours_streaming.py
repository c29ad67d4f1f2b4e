"""Behaviours 11 to 20 of the protocol: streams."""

import json

import pytest

from tests.support.serving import (
    ASCII,
    CHAT,
    HELLO,
    TEXT,
    Client,
    content,
    events,
    held,
    in_process,
    on_a_port,
    refusal,
    said,
    start_engine,
)

ASKED = {"messages": HELLO, "max_tokens": 12, "temperature": 0, "stream": True, "ignore_eos": True}


def test_11_a_stream_is_events_that_nobody_buffers(client):
    response = client.post(CHAT, **ASKED)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    for line in response.text.split("\n"):
        assert line == "" or line.startswith("data: ")
    assert "\r" not in response.text


def test_12_the_role_comes_first_and_once(client):
    first, *rest = client.chat_chunks()
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert not [chunk for chunk in rest if "role" in chunk["choices"][0]["delta"]]


def test_13_the_finish_chunk_has_an_empty_delta(client):
    last = client.chat_chunks()[-1]["choices"][0]
    assert last["delta"] == {}
    assert last["finish_reason"]


def test_14_usage_comes_in_a_chunk_without_choices_where_it_is_asked_for(client):
    assert not [chunk for chunk in client.chat_chunks() if "usage" in chunk]
    for chunks in (
        client.chat_chunks(stream_options={"include_usage": True}),
        client.text_chunks(stream_options={"include_usage": True}),
    ):
        *rest, last = chunks
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] > 0
        assert all(chunk["choices"] and chunk["usage"] is None for chunk in rest)
    running = client.chat_chunks(stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [chunk["usage"]["completion_tokens"] for chunk in running]
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[-1]


def test_15_the_end_is_said(client):
    text = client.post(CHAT, **ASKED).text
    assert text.endswith("data: [DONE]\n\n")
    assert text.count("[DONE]") == 1


@pytest.mark.parametrize("seed", range(4))
def test_16_streamed_text_is_the_text(client, seed):
    """The model's random bytes are often the parts of a character, and blanks."""
    asked = dict(temperature=1.5, seed=seed, max_tokens=60, ignore_eos=True, stop=["e", "ab"][: seed % 3])
    for whole, chunks in (
        (client.chat(**asked), client.chat_chunks(**asked)),
        (client.text(**asked), client.text_chunks(**asked)),
    ):
        assert said(chunks).encode() == content(whole).encode()
        assert len(chunks) > 3
        last = chunks[-1]["choices"][0]
        for name in ("finish_reason", "stop_reason", "seed"):
            assert last[name] == whole["choices"][0][name]


def test_17_comments_keep_a_connection_alive_while_a_prompt_is_read(served_model):
    with (
        start_engine(served_model) as engine,
        on_a_port(engine, heartbeat=0.02) as client,
        held(engine, "read_together") as go,
        client.http.stream("POST", CHAT, json=ASKED) as response,
    ):
        lines = response.iter_lines()
        comments = 0
        while comments < 3:
            comments += next(lines).startswith(":")
        go.set()
        rest = list(lines)
    assert rest[-2:] == ["data: [DONE]", ""]
    assert [line for line in rest if '"finish_reason":"length"' in line]


def test_18_an_error_inside_a_stream_is_an_object_and_the_stream_ends(served_model):
    with start_engine(served_model) as engine, in_process(engine) as client:

        def fail(*_):
            raise RuntimeError("the device is gone")

        engine._loop._slots.run = fail
        response = client.post(CHAT, **ASKED)
        assert response.status_code == 200
        *_, error, end = events(response.text)
        assert set(error) == {"error"}
        assert error["error"]["type"] == "service_unavailable_error"
        assert "the device is gone" in error["error"]["message"]
        assert end == "[DONE]"


def test_19_choices_come_as_they_are_made(client):
    chunks = client.chat_chunks(n=3, max_tokens=40, ignore_eos=True)
    order = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["delta"].get("content")]
    assert set(order) == {0, 1, 2}
    assert order != sorted(order), "one after the other would be in order"
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)


def test_20_a_frame_is_sent_with_its_burst(live: Client):
    """The engine is a burst ahead of what it hands out: a first one is there while the third one waits."""
    asked = {"prompt": "x", "stream": True, "logit_bias": ASCII, "max_tokens": 100}
    with held(live.engine, "run", passing=2) as go, live.http.stream("POST", TEXT, json=asked) as response:
        lines, text = response.iter_lines(), ""
        while len(text) < 2:  # the first token, and some of the first burst
            line = next(lines)
            text += json.loads(line.removeprefix("data: "))["choices"][0]["text"] if line else ""
        assert len(text) < 100
        go.set()
        assert [*lines][-2:] == ["data: [DONE]", ""]


def test_an_error_before_a_stream_has_its_status(client):
    refusal(client.post(CHAT, **ASKED | {"temperature": 3}), 400)
