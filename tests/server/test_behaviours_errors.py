"""Behaviours 51 to 57 of the protocol: errors, limits and ends."""

import contextlib
import json
import signal

import pytest

from tests.support.serving import (
    CHAT,
    HELLO,
    MAX_LEN,
    TEXT,
    WAIT,
    ask_and_leave,
    ask_and_stay,
    busy,
    connected,
    content,
    count_calls,
    held,
    in_process,
    on_a_port,
    raw_request,
    read_all,
    refusal,
    start_engine,
    until_refused,
)

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HELLO}),
        (TEXT, {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [1]}),
        ("/apply-template", {"messages": HELLO}),
    ],
)
def test_51_no_route_answers_for_another_model(client, path, body):
    error = refusal(client.http.post(path, json={**body, "model": "gpt-9"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


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
        assert error["param"] in body
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
        for _ in range(3):  # two of ten have a slot, the others wait for one
            with held(engine, "run"):
                for number in range(10):
                    ask_and_leave(
                        client, {"prompt": f"{number}", "ignore_eos": True, "stream": number % 2 == 0}
                    )
        assert content(client.text("x")) == wanted
        assert busy(engine) == 0
        assert not engine._loop._scheduler.waiting
        assert not client.server._service._live


def test_54_a_connection_without_a_request_ends(engine, monkeypatch):
    monkeypatch.setattr("jllama.server.connection.SECONDS", 0.05)
    with on_a_port(engine) as client:
        for begun in (b"", b"POST /v1/completions HTTP/1.1\r\nHost: local"):
            with connected(client) as connection:
                connection.sendall(begun)
                assert connection.recv(100) == b"", "the server closes it"


def test_54_headers_without_an_end_are_not_kept(live):
    """Whichever parser is installed."""
    with connected(live) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                connection.sendall(b"a" * 10_000)
            pytest.fail("ten megabytes were read")


def test_54_a_body_that_does_not_come_is_not_waited_for(engine, monkeypatch):
    monkeypatch.setattr("jllama.server.bodies.SECONDS", 0.05)
    with on_a_port(engine) as client, connected(client) as connection:
        connection.sendall(raw_request(TEXT, b'{"prompt": "x"}')[:-3])
        assert connection.recv(10_000).startswith(b"HTTP/1.1 408 ")


def test_54_what_is_no_http_is_told_so(live, caplog):
    for given in (b"\x00\x01\r\n\r\n", b"GET / HTTP/1.1\r\nno header\r\n\r\n", b"BREW\r\n\r\n"):
        with connected(live) as connection:
            connection.sendall(given)
            head, _, body = connection.recv(10_000).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ")
            assert json.loads(body)["error"]["type"] == "invalid_request_error"
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert live.http.get("/health", headers=upgrade).status_code == 200
    assert not caplog.records, "whoever sends that fills no log"


@pytest.mark.parametrize("streamed", [True, False])
def test_56_running_answers_end_before_the_server_does(served_model, streamed, caplog):
    with start_engine(served_model) as engine, on_a_port(engine, grace=WAIT) as client:
        with held(engine, "run") as go, connected(client) as connection:
            ask_and_stay(client, connection, {"prompt": "x", "stream": streamed, "ignore_eos": True})
            client.server.handle_exit(signal.SIGTERM, None)
            until_refused(client)
            go.set()
            answer = read_all(connection)
        assert b'"finish_reason":"length"' in answer
        assert client.server.signal == signal.SIGTERM
    assert f"running requests: 1; they have {WAIT} seconds, and a second signal" in caplog.text


@pytest.mark.parametrize("streamed", [True, False])
def test_56_answers_that_take_too_long_end_with_an_error(served_model, streamed):
    with start_engine(served_model) as engine, on_a_port(engine, grace=0) as client:
        with held(engine, "run"), connected(client) as connection:
            ask_and_stay(client, connection, {"prompt": "x", "stream": streamed, "ignore_eos": True})
            client.server.handle_exit(signal.SIGTERM, None)
            answer = read_all(connection)
        assert b'"code":"shutting_down"' in answer
        assert b"[DONE]" in answer if streamed else answer.startswith(b"HTTP/1.1 503 ")
        engine.submit("x", max_new_tokens=1).result(WAIT)
        assert busy(engine) == 0


def test_56_the_second_signal_ends_the_process(engine, monkeypatch):
    codes = []
    monkeypatch.setattr("jllama.server.run.os._exit", codes.append)
    with on_a_port(engine) as client:
        client.server.handle_exit(signal.SIGTERM, None)
        client.server.handle_exit(signal.SIGTERM, None)
    assert codes == [143]


def test_54_a_full_queue_says_when_to_come_again(served_model):
    with start_engine(served_model, slots=1, max_queue=1) as engine, in_process(engine) as client:
        with held(engine, "run"):
            kept = [engine.submit("x", max_new_tokens=3), engine.submit("y", max_new_tokens=3)]
            response = client.post(TEXT, prompt="x")
            error = refusal(response, 429)
            assert error["type"] == "rate_limit_error"
            assert int(response.headers["retry-after"]) >= 1
            refusal(client.post(TEXT, prompt=["x", "y"], stream=True), 429)
        for stream in kept:
            stream.result(WAIT)
        assert client.text(max_tokens=3)["choices"]
        assert client.error(TEXT, prompt=["x", "y", "z"])["param"] == "prompt", "they never fit"


def test_57_a_dead_engine_is_not_healthy_and_nothing_hangs(served_model, caplog):
    with start_engine(served_model) as engine, on_a_port(engine) as client:

        def fail(*_):
            raise RuntimeError("the device is gone")

        engine._loop._slots.run = fail
        assert client.http.get("/health").status_code == 200
        refusal(client.post(TEXT, prompt="x"), 503)
        refusal(client.http.get("/health"), 503)
        assert refusal(client.post(TEXT, prompt="x", stream=True), 503)["code"] == "engine_failed"
    assert [record.levelname for record in caplog.records if record.name == "jllama.server"] == ["CRITICAL"]
