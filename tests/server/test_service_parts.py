"""What stands around a request, each by itself: bodies, limits, health, figures, the socket, signals."""

import asyncio
import errno
import json
import signal
import socket
import threading
from types import SimpleNamespace

import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from jllama import __version__
from jllama.errors import EngineFailedError, JllamaError
from jllama.server import bodies, connection, models, page, run, service, tokens
from jllama.server.app import create_app
from jllama.server.envelope import seeded, usage
from jllama.server.metrics import Metrics
from jllama.server.protocol.errors import ApiError
from jllama.server.service import Options, Service
from jllama.settings import GenerationSettings

JSON = {"content-type": "application/json"}


class Sent:
    """A request whose body comes in these parts."""

    def __init__(self, *parts, **headers):
        self.headers = Headers({name.replace("_", "-"): value for name, value in headers.items()})
        self._parts, self.read = parts, 0

    async def stream(self):
        for part in self._parts:
            self.read += 1
            yield part


def body(sent, most=4):
    return asyncio.run(bodies.body_of(sent, most))


@pytest.mark.parametrize("parts", [(b"",), (b"1234",), (b"12", b"34"), (b"12", b"", b"34")])
@pytest.mark.parametrize(
    "length",
    [{}, *({"content_length": each} for each in ("4", "x", "²", "-1", "9" * 20, "9" * 5000))],
    ids=lambda length: str(length.get("content_length"))[:20],
)
def test_a_body_up_to_the_limit_is_read(parts, length):
    assert body(Sent(*parts, content_type="application/json", **length)) == b"".join(parts)


@pytest.mark.parametrize(
    ("parts", "length", "read"),
    [((b"12345",), None, 1), ((b"123", b"45", b"6"), None, 2), ((b"1",), "5", 0), ((b"1",), "9" * 19, 0)],
)
def test_a_body_beyond_it_is_read_no_further(parts, length, read):
    sent = Sent(*parts, content_type="application/json", **({"content_length": length} if length else {}))
    with pytest.raises(ApiError, match="the body is larger than 0 KiB: send less") as error:
        body(sent)
    assert (error.value.status, error.value.headers, sent.read) == (413, {"Connection": "close"}, read)
    with pytest.raises(ApiError, match="larger than 3 KiB"):
        body(Sent(bytes(3073), content_type="application/json"), 3072)


@pytest.mark.parametrize(
    ("headers", "taken"),
    [
        (dict(content_type="application/json; charset=utf-8"), True),
        (dict(content_type=" Application/JSON "), True),
        (dict(content_type="application/json", content_encoding="identity"), True),
        (dict(content_type="application/json", content_encoding="gzip"), False),
        (dict(content_type="application/jsonl"), False),
        (dict(content_type="text/plain"), False),
        (dict(), False),
    ],
)
def test_what_kind_a_body_is(headers, taken):
    if taken:
        assert body(Sent(b"{}", **headers)) == b"{}"
        return
    with pytest.raises(ApiError, match="send JSON as it is") as error:
        body(Sent(b"{}", **headers))
    assert error.value.status == 415


def test_a_body_that_takes_too_long(monkeypatch):
    class Slow(Sent):
        async def stream(self):
            await asyncio.Event().wait()
            yield b""

    monkeypatch.setattr(bodies, "SECONDS", 0.01)
    with pytest.raises(ApiError, match=r"did not arrive within 0\.01 seconds") as error:
        body(Slow(content_type="application/json"))
    assert (error.value.status, error.value.headers) == (408, {"Connection": "close"})


@pytest.fixture
def made(engine):
    """A service of its own, on an engine that others share."""
    made = Service(engine, Options(names=("a", "b")))
    yield made
    made.close()


def test_as_many_answers_as_find_a_place(made, engine):
    most = engine.slots + engine.stats.max_queue
    made.check_count(most, "n")
    with pytest.raises(
        ApiError, match=rf"n: {most + 1} answers are more than the server holds, {most}"
    ) as error:
        made.check_count(most + 1, "n")
    assert (error.value.status, error.value.param) == (400, "n")


def test_the_model_s_names(made):
    for name in (None, "a", "b"):
        made.check_model(name)
    with pytest.raises(ApiError, match="the model 'c' does not exist; here is a, b") as error:
        made.check_model("c")
    with pytest.raises(ApiError, match="the model '' does not exist"):
        made.check_model("")
    assert (error.value.status, error.value.param, error.value.code) == (404, "model", "model_not_found")
    with pytest.raises(ApiError, match=rf"the model '{'x' * 200}' does"):
        made.check_model("x" * 201)


def test_a_server_that_ends_takes_nothing_more(made):
    async def run():
        answers = made.answers()
        assert made.answers()._mailbox is answers._mailbox  # one wake-up for all
        made.check_health()
        made.end_all()
        with pytest.raises(ApiError, match="the server is shutting down") as error:
            made.answers()
        assert (error.value.status, error.value.code) == (503, "shutting_down")
        with pytest.raises(ApiError, match="the server is shutting down"):
            made.check_health()
        with pytest.raises(ApiError, match="the server is shutting down"):
            next(await answers.moment())
        assert len(made._live) == 2
        made.forget(answers)
        assert answers not in made._live

    asyncio.run(run())


def test_who_forgets_a_request_ends_it_and_tells_of_what_was_not_read(made, monkeypatch):
    did = []

    async def run():
        answers = made.answers()
        for name in ("cancel", "settle"):
            monkeypatch.setattr(answers, name, lambda name=name: did.append((name, made.running)))
        made.forget(answers)
        made.forget(answers)  # the second time there is nothing to forget

    asyncio.run(run())
    assert did[:2] == [("cancel", 1), ("settle", 1)]
    assert made.running == 0


@pytest.mark.parametrize(
    ("template", "thinks"), [("<think>{{ x }}</think>", True), ("<think>", False), (None, False)]
)
def test_what_a_service_knows_of_its_model(monkeypatch, template, thinks):
    templates = {} if template is None else {"default": template, "other": "</think>"}
    tokenizer = SimpleNamespace(chat_templates=templates)
    monkeypatch.setattr(service, "_fingerprint", lambda engine: f"fp_{engine.slots}")
    monkeypatch.setattr(service.time, "time", lambda: 1234.9)
    model = SimpleNamespace(need_tokenizer=lambda: tokenizer, config=SimpleNamespace(vocab_size=77))
    made = Service(SimpleNamespace(model=model, slots=5), Options(names=("a", "b")))
    made.close()
    assert (made.has_thoughts, made.created, made.fingerprint) == (thinks, 1234, "fp_5")
    assert (made.vocab_size, made.tokenizer, made.running) == (77, tokenizer, 0)
    assert (made.stopping, made.metrics._model) == (False, "a")


def test_bodies_are_read_beside_each_other(made):
    """What takes its time in one keeps no other one waiting."""
    both = threading.Barrier(2, timeout=500)

    async def run():
        await asyncio.gather(made.in_thread(both.wait), made.in_thread(lambda which: both.wait(), 1))

    asyncio.run(run())


def test_each_event_loop_has_a_mailbox_of_its_own(made):
    async def mailbox():
        return made.answers()._mailbox

    first = asyncio.run(mailbox())
    assert asyncio.run(mailbox()) is not first


def test_a_dead_engine_is_told_of_once(made, monkeypatch, caplog):
    died = RuntimeError("gone")
    monkeypatch.setattr(made, "engine", SimpleNamespace(error=died))
    with pytest.raises(ApiError, match="the engine has failed: gone") as error:
        made.check_health()
    assert (error.value.status, error.value.code) == (503, "engine_failed")
    made.report(ValueError("another"))
    assert not caplog.records
    for _ in range(2):
        made.report(EngineFailedError("it has failed"))
    (record,) = caplog.records
    assert (record.levelname, record.exc_info[1]) == ("CRITICAL", died)


def test_a_fingerprint_is_of_weights_and_version(engine, monkeypatch):
    first = service._fingerprint(engine)
    assert first.startswith("fp_")
    assert len(first) == 19
    assert service._fingerprint(engine) == first
    monkeypatch.setattr(service, "__version__", "other")
    assert service._fingerprint(engine) != first


def test_a_server_for_one_user_on_one_machine():
    options = Options()
    assert (options.names, options.keys, options.hosts, options.origins) == (("model",), (), (), ())
    assert (options.sampling, options.largest_body) == ({"temperature": 1.0}, 16 * 2**20)
    assert options.heartbeat == 10.0


def test_figures_of_answers():
    stats = SimpleNamespace(running=3, waiting=4, used=0.5, asked_tokens=90, reused_tokens=60)
    metrics = Metrics("m", SimpleNamespace(stats=stats))

    def ended(tokens, reason, **seconds):
        result = SimpleNamespace(generated_tokens=tokens, prompt_tokens=30, **seconds)
        metrics.ended(SimpleNamespace(answer=SimpleNamespace(result=result), queued_seconds=0.25), reason)

    def value(name, **labels):
        return metrics.registry.get_sample_value(f"jllama:{name}", {"model_name": "m", **labels})

    ended(0, "abort", prefill_seconds=9.0, decode_seconds=9.0)  # not one token: it has no times
    assert value("request_success_total", finished_reason="abort") == 1
    assert value("prompt_tokens_total") == value("time_to_first_token_seconds_count") == 0
    ended(1, "length", prefill_seconds=1.0, decode_seconds=0.0)
    assert value("inter_token_latency_seconds_count") == 0  # between one token and none lies no time
    ended(5, "stop", prefill_seconds=2.0, decode_seconds=8.0)
    reasons = ("stop", "length", "error")
    assert [value("request_success_total", finished_reason=reason) for reason in reasons] == [1, 1, 0]
    sums = dict(
        time_to_first_token_seconds=3.0,
        e2e_request_latency_seconds=11.0,
        request_queue_time_seconds=0.5,
        request_prefill_time_seconds=2.5,
        request_decode_time_seconds=8.0,
        inter_token_latency_seconds=2.0,
        request_prompt_tokens=60,
        request_generation_tokens=6,
    )
    assert {name: value(f"{name}_sum") for name in sums} == sums
    assert (value("prompt_tokens_total"), value("generation_tokens_total")) == (60, 6)
    moment = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    assert [value(name) for name in moment] == [3, 4, 0.5]
    assert [value(f"prefix_cache_{name}_total") for name in ("queries", "hits")] == [90, 60]


def test_what_a_request_took():
    def choice(prompt, reused, tokens):
        result = SimpleNamespace(prompt_tokens=prompt, reused_tokens=reused)
        return SimpleNamespace(tokens=tokens, stream=SimpleNamespace(answer=SimpleNamespace(result=result)))

    choices = [choice(5, 0, 1), choice(5, 4, 2), choice(7, 3, 4), choice(7, 6, 8)]
    one = usage(choices[:2])
    assert one == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    two = usage(choices, 2)  # of each prompt what its first answer found
    assert (two["prompt_tokens"], two["completion_tokens"], two["total_tokens"]) == (12, 15, 27)
    assert two["prompt_tokens_details"] == {"cached_tokens": 3}


def test_seeds_of_choices():
    assert [one.seed for one in seeded(GenerationSettings(seed=2**63 - 2), 4)] == [2**63 - 2, 2**63 - 1, 0, 1]
    one = GenerationSettings(seed=7)
    assert seeded(one, 1) == [one]


def test_a_socket_that_can_not_have_its_address_is_closed(monkeypatch):
    made = []

    class Noted(socket.socket):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(run.socket, "socket", Noted)
        with pytest.raises(JllamaError, match="is in use"):
            run.bind("127.0.0.1", taken.getsockname()[1])
    assert [each.fileno() for each in made] == [-1]


def test_a_socket_listens_when_it_is_told_to():
    with run.bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        assert run.listen(bound) == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()


def test_an_address_of_the_newer_kind_stands_in_brackets():
    waiting = []
    bound = SimpleNamespace(getsockname=lambda: ("::1", 8000, 0, 0), listen=waiting.append)
    assert run.listen(bound) == "http://[::1]:8000"
    assert waiting[0] > 1000  # many may come at once, and none is sent away


@pytest.fixture
def server(engine):
    app = create_app(engine)
    yield run.Server(app, 0.5)
    app.state.service.close()


def test_signals_are_ours_while_it_serves(server):
    before = {number: signal.getsignal(number) for number in run.SIGNALS}
    with server.capture_signals():
        assert {signal.getsignal(number) for number in run.SIGNALS} == {server.handle_exit}
        signal.raise_signal(signal.SIGTERM)
    assert (server.signal, server.should_exit) == (signal.SIGTERM, True)
    assert {number: signal.getsignal(number) for number in run.SIGNALS} == before


def test_what_strangers_send_is_neither_believed_nor_written_down(server):
    config = server.config
    assert (config.proxy_headers, config.server_header, config.access_log) == (False, False, False)
    assert (config.lifespan, config.ws, config.log_level, config.http) == (
        "off",
        "none",
        "error",
        run.Connection,
    )
    assert (config.timeout_keep_alive, config.log_config) == (75, None)


@pytest.mark.parametrize("running", [0, 2])
def test_running_requests_are_told_of_at_the_end(server, monkeypatch, caplog, running):
    async def shutdown(*_):
        pass

    monkeypatch.setattr(run.uvicorn.Server, "shutdown", shutdown)
    server._service._live = set(range(running))
    asyncio.run(server.shutdown())
    server._service._live = set()
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "running requests: 2; they have 0.5 seconds, and a second signal or Ctrl-C ends them at once"
    ] * bool(running)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EADDRINUSE, "port 7 is in use: choose another one with --port, or end what listens there"),
        (errno.EACCES, "cannot listen on h:7: no"),
    ],
)
def test_why_an_address_can_not_be_taken(number, words):
    with pytest.raises(JllamaError) as error, run._explained("h", 7):
        raise OSError(number, "no")
    assert str(error.value) == words


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_the_process(server, monkeypatch, number, code):
    left = []
    monkeypatch.setattr(run.os, "_exit", left.append)
    server.handle_exit(signal.SIGTERM, None)
    assert (left, server.signal) == ([], signal.SIGTERM)
    server.handle_exit(number, None)
    assert left == [code]


def test_its_end_waits_for_no_reader(made, monkeypatch):
    ended = []
    monkeypatch.setattr(made._threads, "shutdown", lambda **how: ended.append(how))
    made.close()
    assert ended == [dict(wait=False, cancel_futures=True)]
    monkeypatch.undo()


def test_another_thread_leaves_signals_alone(server):
    seen = []

    def serve():
        with server.capture_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert seen == [before]


def test_at_its_end_answers_have_their_time_and_then_what_is_left_is_sent(server, monkeypatch):
    """Time passes as the loop's clock says; uvicorn's part is left out."""
    ended = []
    monkeypatch.setattr(server._service, "end_all", lambda: ended.append(True))

    async def shutdown(*_):
        assert server._service.stopping
        assert server.config.timeout_graceful_shutdown == 0.5 + 5.0
        handles = [one for one in asyncio.get_running_loop()._scheduled if not one.cancelled()]
        assert [round(one.when() - asyncio.get_running_loop().time(), 1) for one in handles] == [0.5]
        handles[0]._run()
        assert ended == [True]

    async def end():
        await server.shutdown()
        assert all(one.cancelled() for one in asyncio.get_running_loop()._scheduled)

    monkeypatch.setattr(run.uvicorn.Server, "shutdown", shutdown)
    asyncio.run(end())


def test_a_client_has_its_time_until_its_request_is_there(monkeypatch):
    timers = []

    def call_later(seconds, what):
        timers.append(SimpleNamespace(seconds=seconds, what=what, cancelled=False))
        timers[-1].cancel = lambda timer=timers[-1]: setattr(timer, "cancelled", True)
        return timers[-1]

    for name in ("connection_made", "data_received", "connection_lost"):
        monkeypatch.setattr(connection.H11Protocol, name, lambda *_: None)
    one = connection.Connection.__new__(connection.Connection)
    one.loop, one.cycle = SimpleNamespace(call_later=call_later), None
    one.transport = SimpleNamespace(close=lambda: None)

    def state():
        return [timer.cancelled for timer in timers], one._timer is not None

    one.connection_made(one.transport)
    assert (timers[0].seconds, timers[0].what) == (20.0, one.transport.close)
    one.data_received(b"a part")
    assert state() == ([False], True)  # the same time
    one.cycle = SimpleNamespace(response_complete=False)
    one.data_received(b"the rest")
    assert state() == ([True], False)  # it is answered, however long that takes
    one.cycle.response_complete = True
    one.data_received(b"the next one")
    assert state() == ([True, False], True)
    one.connection_lost(None)
    assert state() == ([True, True], False)
    one.connection_lost(None)


def test_what_is_no_http_is_told_so_in_json_and_that_is_the_end():
    one, sent = connection.Connection.__new__(connection.Connection), []
    one.transport = SimpleNamespace(write=sent.append, close=lambda: sent.append("closed"))
    one.send_400_response("Ünread")
    head, _, body = sent[0].partition(b"\r\n\r\n")
    assert head.decode().split("\r\n") == [
        *("HTTP/1.1 400 Bad Request", "content-type: application/json"),
        *(f"content-length: {len(body)}", "connection: close"),
    ]
    told = {"message": "Ünread", "type": "invalid_request_error", "param": None, "code": None}
    assert json.loads(body) == {"error": told}
    assert sent[1:] == ["closed"]


def test_who_has_left_with_half_a_body_is_told_nothing(engine):
    app = create_app(engine)
    app.state.service.close()
    handle = app.exception_handlers[ClientDisconnect]
    assert asyncio.run(handle(None, ClientDisconnect())).status_code == 499


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
@pytest.mark.parametrize("present", [True, False])
def test_the_page_is_read_alone_and_may_be_absent(tmp_path, method, present):
    sent = []

    async def send(message):
        sent.append(message)

    (tmp_path / "index.html").write_text("the page")
    made = page.Page(tmp_path if present else tmp_path / "absent")
    assert asyncio.run(made({"type": "websocket"}, None, send)) is None
    scope = {"type": "http", "method": method, "path": "/", "headers": [], "asgi": {"spec_version": "2.4"}}
    if method in ("POST", "PUT") or not present:
        with pytest.raises(HTTPException) as error:
            asyncio.run(made(scope, None, send))
        assert (error.value.status_code, sent) == (404, [])
        return
    asyncio.run(made(scope, None, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    assert sent[0]["status"] == 200
    assert {name.lower(): value for name, value in page.HEADERS.items()}.items() <= headers.items()
    assert b"".join(message.get("body", b"") for message in sent) == b"the page" * (method == "GET")


class Spelling:
    """A tokenizer whose tokens are letters; 0 is special."""

    chat_template = "made"

    def encode(self, text, *, add_special=True, parse_special=False, begins=True):
        return [0] * add_special + [0 if parse_special and letter == "^" else ord(letter) for letter in text]

    def encode_chat(self, messages, add_generation_prompt, **variables):
        return [1, *(ord(letter) for one in messages for letter in one["content"]), 2 + add_generation_prompt]

    def decode(self, ids, *, skip_special=True):
        return "".join("" if skip_special and token == 0 else chr(token) for token in ids)

    def token_bytes(self, token, skip_special=True):
        return bytes([token])


def asked_of_tokens(work, **given):
    checked = []
    place = SimpleNamespace(tokenizer=Spelling(), engine=SimpleNamespace(max_seq_len=77))
    place.check_model = checked.append
    told = work(place, json.dumps(given).encode())
    assert checked == [given.get("model")]
    return told


HELLO = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("given", "ids", "told"),
    [
        (dict(prompt="a^"), [0, 97, 94], None),
        (dict(prompt=""), [0], None),
        (dict(prompt="a^", model="m", add_special_tokens=False), [97, 94], None),
        (dict(prompt="a^", parse_special=True, return_token_strs=True), [0, 97, 0], ["\0", "a", "\0"]),
        (dict(messages=HELLO), [1, 97, 3], None),
        (dict(messages=HELLO, add_generation_prompt=False, model="m"), [1, 97, 2], None),
        (
            dict(messages=[*HELLO, {"role": "assistant", "content": "b"}], return_token_strs=True),
            [1, 97, 3, 98],
            ["\1", "a", "\3", "b"],
        ),
    ],
)
def test_tokens_of_texts_and_conversations(given, ids, told):
    found = asked_of_tokens(tokens._tokenized, **given)
    assert found == {"count": len(ids), "max_model_len": 77, "tokens": ids, "token_strs": told}
    given.pop("return_token_strs", None)
    if "messages" in given:
        found = asked_of_tokens(tokens._templated, **given)
        assert found == {"prompt": "".join(map(chr, ids)), "tokens": ids}


def test_texts_of_tokens():
    for given, text in ((dict(skip_special_tokens=True), "ab"), (dict(model="m"), "a\0b")):
        told = asked_of_tokens(tokens._detokenized, tokens=[97, 0, 98], **given)
        assert told == {"prompt": text}


def test_the_version_is_told():
    assert json.loads(asyncio.run(models.version(None)).body) == {"version": __version__}


def asked_of(app, method, path, *headers):
    """Status, headers and JSON of an answer."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {
        "headers": [(b"host", b"localhost"), *headers],
        "asgi": {"spec_version": "2.4"},
        "root_path": "",
    }
    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, json.loads(body)


@pytest.fixture
def app(engine, tmp_path):
    """With keys, and without the page."""
    made = create_app(engine, Options(names=("m", "other"), keys=("k",)), tmp_path / "absent")
    yield made
    made.state.service.close()


KEY = (b"x-api-key", b"k")


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/health/", 404, "there is nothing at this address: /health/"),
        ("GET", "/v2/models", 404, "there is nothing at this address: /v2/models"),
        ("GET", "/" + "x" * 500, 404, f"there is nothing at this address: /{'x' * 199}"),
        ("POST", "/health", 405, "this address takes another method: /health"),
        ("GET", "/v1/completions", 405, "this address takes another method: /v1/completions"),
        ("POST", "/v1/models", 405, "this address takes another method: /v1/models"),
        ("GET", "/v1/models/x", 404, "the model 'x' does not exist; here is m, other"),
    ],
)
def test_what_is_at_no_address_is_told(app, method, path, status, words):
    found, headers, told = asked_of(app, method, path, KEY)
    assert (found, told["error"]["message"]) == (status, words)
    allowed = {"GET", "HEAD"} if path in ("/health", "/v1/models") else {"POST"}
    assert {*filter(None, headers.get("allow", "").split(", "))} == (allowed if status == 405 else set())


def test_a_key_opens_all_but_what_holds_no_secret(app):
    assert asked_of(app, "GET", "/health")[::2] == (200, {"status": "ok"})
    assert asked_of(app, "GET", "/nothing")[0] == 404  # as of the page, which is absent
    assert asked_of(app, "GET", "/v1/models")[0] == asked_of(app, "GET", "/version")[0] == 401
    assert asked_of(app, "GET", "/version", KEY)[::2] == (200, {"version": __version__})


def test_each_name_of_a_model_is_told(app, engine, monkeypatch):
    monkeypatch.setattr(app.state.service, "created", 1234)
    cards = [
        {"id": name, "object": "model", "created": 1234, "owned_by": "jllama", "root": "m"}
        | {"max_model_len": engine.max_seq_len}
        for name in ("m", "other")
    ]
    assert asked_of(app, "GET", "/v1/models", KEY)[2] == {"object": "list", "data": cards}
    assert asked_of(app, "GET", "/v1/models/other", KEY)[2] == cards[1]
