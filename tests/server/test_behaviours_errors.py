"""Behaviours 51 to 57 of the protocol: errors, limits and ends."""

import pytest

from tests.support.serving import (
    CHAT,
    HELLO,
    MAX_LEN,
    TEXT,
    ask_and_leave,
    busy,
    content,
    count_calls,
    held,
    on_a_port,
    refusal,
    start_engine,
)

JSON = {"content-type": "application/json"}


def test_51_errors_have_one_shape_and_their_status(client):
    http = client.http
    assert refusal(http.post(CHAT, json={}), 400)["type"] == "invalid_request_error"
    assert (
        refusal(http.post(CHAT, json={"model": "gpt-9", "messages": HELLO}), 404)["code"] == "model_not_found"
    )
    refusal(http.get("/v1/models/gpt-9"), 404)
    refusal(http.post("/v1/embeddings", json={}), 404)
    wrong_method = http.get(CHAT)
    assert wrong_method.headers["allow"] == "POST"
    refusal(wrong_method, 405)
    refusal(http.delete("/health"), 405)
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        refusal(http.post(CHAT, content=b"{}", headers={"content-type": kind}), 415)
    refusal(http.post(CHAT, content=b"{}", headers={**JSON, "content-encoding": "gzip"}), 415)
    assert http.post(
        TEXT, content=b'{"prompt":"x"}', headers={"content-type": "application/json; charset=utf-8"}
    )


def test_51_a_mistake_of_ours_is_500_without_a_word_of_it(client, monkeypatch):
    def broken(*_):
        raise RuntimeError("a secret")

    monkeypatch.setattr("jllama.server.completions.CompletionTask.__init__", broken)
    error = refusal(client.post(TEXT, prompt="x"), 500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]


def test_52_a_prompt_that_is_too_long_is_told_both_numbers(client):
    for path, body in (
        (TEXT, {"prompt": "x" * 300}),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 300}]}),
    ):
        error = client.error(path, **body)
        assert error["code"] == "context_length_exceeded"
        assert str(MAX_LEN) in error["message"]
        assert str(300 if path == TEXT else 300 + 18) in error["message"]
    assert client.text("x" * (MAX_LEN - 1))["usage"]["completion_tokens"] == 1
    assert client.error(TEXT, prompt="x" * MAX_LEN)["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"text"', b"3", b"\xff\xfe", b'{"prompt": "x"', b'{"prompt": "x"}}'),
        *(b'{"prompt": "x", "temperature": NaN}', b'{"prompt": "x", "temperature": Infinity}'),
        *(b'{"prompt": "x", "temperature": 1e999}', b'{"prompt": "x", "temperature": -Infinity}'),
        *(b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}", b'{"prompt": "\\ud800"}', b"[" * 100_000),
        b'{"prompt": ' + b"[" * 5000,
    ],
)
def test_53_a_body_that_is_no_json_object_is_refused(client, body):
    refusal(client.http.post(TEXT, content=body, headers=JSON), 400)
    assert client.text()["choices"]


def test_54_a_body_is_not_read_beyond_its_limit(engine):
    with on_a_port(engine, largest_body=10_000) as client:
        refusal(client.http.post(TEXT, content=b"x" * 10_001, headers=JSON), 413)
        refusal(client.http.post(TEXT, content=iter([b"x" * 6000] * 2), headers=JSON), 413)
        assert client.text()["choices"]


@pytest.mark.parametrize("streamed", [True, False])
def test_55_a_client_that_goes_away_frees_its_slot_within_a_block(served_model, streamed):
    with start_engine(served_model, slots=1) as engine, on_a_port(engine) as client:
        asked = {"prompt": "x", "max_tokens": 250, "ignore_eos": True, "stream": streamed}
        blocks = count_calls(engine, "run")
        with held(engine, "run"):
            ask_and_leave(client, asked)
        assert client.text("x", max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3
        assert len(blocks) <= 4, "one that was held, two of the second request; 250 tokens take 16"
        assert busy(engine) == 0


def test_55_many_that_go_away_leave_nothing_behind(served_model):
    with start_engine(served_model, slots=2) as engine, on_a_port(engine) as client:
        wanted = content(client.text("x"))
        for number in range(30):
            asked = {"prompt": f"{number}", "max_tokens": 200, "ignore_eos": True, "stream": number % 2 == 0}
            ask_and_leave(client, asked)
        assert content(client.text("x")) == wanted
        assert busy(engine) == 0
        assert not engine._loop._scheduler.waiting
        assert not client.server._service._live
