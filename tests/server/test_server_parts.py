"""Parts of the server, each by itself: settings, hosts and keys, and what becomes of a client that leaves."""

import asyncio
import collections
import json
from types import SimpleNamespace

import pytest
from starlette.datastructures import Headers

from jllama.server.protocol.chat import ChatRequest
from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.parsing import parse
from jllama.server.reading import Answers, Mailbox, Piece
from jllama.server.running import GoneError, while_there
from jllama.server.security import HostCheck, KeyCheck, _key_of
from jllama.server.sse import Events, frame


def settings(defaults=(), **given):
    request = parse(json.dumps({"messages": [], **given}).encode(), ChatRequest)
    request.check()
    return request.settings(dict(defaults), vocab_size=10)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (dict(top_k=-1), dict(top_k=0)),
        (dict(top_k=0), dict(top_k=0)),
        (dict(top_k=1), dict(top_k=1)),
        (dict(top_p=0), dict(top_p=1e-9)),
        (dict(top_p=0.5), dict(top_p=0.5)),
        (dict(temperature=0), dict(temperature=0.0)),
        ({}, dict(temperature=0.75, top_k=7, min_new_tokens=0, max_new_tokens=10_000_000, stop=())),
        (dict(temperature=None), dict(temperature=0.75)),
        (dict(max_tokens=3, min_tokens=3), dict(max_new_tokens=3, min_new_tokens=3)),
        (dict(max_completion_tokens=3), dict(max_new_tokens=3)),
        (dict(max_tokens=3, max_completion_tokens=3), dict(max_new_tokens=3)),
        (dict(stop="a", stop_token_ids=[9, 0]), dict(stop=("a",), stop_token_ids=(9, 0))),
        (dict(logit_bias={"9": 100, "0": -100}, ignore_eos=True), dict(logit_bias={9: 100.0, 0: -100.0})),
        (dict(seed=5), dict(seed=5)),
        (dict(seed=0), dict(seed=0)),
        (dict(seed=2**63 - 1), dict(seed=2**63 - 1)),
    ],
)
def test_what_a_request_s_parameters_mean(given, meant):
    made = settings({"temperature": 0.75, "top_k": 7}, **given)
    assert {name: getattr(made, name) for name in meant} == meant
    assert made.seed is not None


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (dict(max_tokens=3, min_tokens=4), "min_tokens"),
        (dict(max_tokens=3, max_completion_tokens=4), "max_tokens"),
        (dict(max_tokens=0), "max_tokens"),
        (dict(max_completion_tokens=0), "max_completion_tokens"),
        (dict(top_k=-2), "top_k"),
        (dict(top_p=1.01), "top_p"),
        (dict(stop_token_ids=[10]), "stop_token_ids"),
        (dict(stop_token_ids=[-1]), "stop_token_ids"),
        (dict(logit_bias={"10": 1}), "logit_bias"),
        (dict(stop_token_ids=[9, 10, 9]), "stop_token_ids"),
        (dict(logit_bias={"9": 1, "10": 1}), "logit_bias"),
        (dict(repetition_penalty=0.001), "repetition_penalty"),
        (dict(stream_options={}), "stream_options"),
        (dict(top_logprobs=1), "top_logprobs"),
        (dict(n=129), "n"),
    ],
)
def test_a_parameter_that_can_not_be_is_named(given, param):
    with pytest.raises(ApiError) as error:
        settings(**given)
    assert (error.value.status, error.value.param) == (400, param)


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        *((name, True) for name in (None, "localhost", "LocalHost:80", "a.localhost", "a.localhost:1")),
        *((name, True) for name in ("127.0.0.1", "10.0.0.1:8000", "[::1]", "[::1]:8000", "Own.name:1")),
        *((name, False) for name in ("evillocalhost", "localhost.evil", "evil:80", "", "own.name.evil")),
        *((name, False) for name in ("sub.own.name", "1.2.3", "[evil]", "127.0.0.1.evil")),
    ],
)
def test_names_that_the_server_goes_by(host, ours):
    assert HostCheck(None, ["own.Name"])._is_ours(host) == ours
    assert HostCheck(None, ["*"])._is_ours(host)


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ({"Authorization": "Bearer one"}, True),
        ({"authorization": "bearer  two "}, True),
        ({"X-Api-Key": "two"}, True),
        ({"Authorization": "Basic one", "X-Api-Key": "two"}, True),
        ({"Authorization": "Bearer on"}, False),
        ({"Authorization": "Bearer one two"}, False),
        ({"Authorization": "one"}, False),
        ({"X-Api-Key": ""}, False),
        ({}, False),
        ({"Authorization": "Bearer "}, False),
    ],
)
def test_keys_that_open_it(headers, known):
    assert KeyCheck(None, ["one", "two"])._knows(_key_of(Headers(headers))) == known


def test_work_for_a_client_that_leaves_is_cancelled():
    async def leave():
        leaving, work = (asyncio.get_running_loop().create_future() for _ in range(2))
        waiting = asyncio.ensure_future(while_there(leaving, work))
        await asyncio.sleep(0)
        leaving.set_result(None)
        with pytest.raises(GoneError):
            await waiting
        assert work.cancelled()

    asyncio.run(leave())


def test_work_for_a_client_that_stays_is_done():
    async def stay():
        leaving, made, unmade = (asyncio.get_running_loop().create_future() for _ in range(3))
        made.set_result("made")
        assert await while_there(leaving, made) == "made"
        waiting = asyncio.ensure_future(while_there(leaving, unmade))
        await asyncio.sleep(0)
        waiting.cancel()  # the server's own will: nobody has left
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert unmade.cancelled()
        assert not leaving.done()

    asyncio.run(stay())


@pytest.mark.parametrize("quiet", [9.0, 10.0, 11.0])
def test_patience_ends_so_long_after_what_was_heard_last(quiet):
    """Time passes as the loop's clock says."""

    async def run():
        loop, now = asyncio.get_running_loop(), 1000.0
        answers = Answers(Mailbox(loop), lambda *told: None)
        loop.time = lambda: now  # type: ignore[method-assign]
        answers.be_patient(10.0)
        assert answers._timer.when() == 1010.0
        answers.take(SimpleNamespace(), Piece("x", 1, 0))
        now = 1003.0
        await answers.moment()
        assert not answers.is_quiet
        answers._items.clear()
        waiting = asyncio.ensure_future(answers.moment())
        await asyncio.sleep(0)
        answers._timer.cancel()
        now = 1003.0 + quiet
        answers.be_patient(10.0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert waiting.done() == (quiet >= 10)
        assert answers._timer.when() == (1013.0 if quiet < 10 else now + 10)
        if waiting.done():
            assert list(await waiting) == []
            assert answers.is_quiet
        waiting.cancel()
        answers.settle()
        assert answers._timer.cancelled()

    asyncio.run(run())


def test_what_was_not_submitted_yet_has_not_ended():
    async def run():
        return Answers(Mailbox(asyncio.get_running_loop()), lambda *told: None)

    answers = asyncio.run(run())
    assert (answers.left, answers.at_hand, answers.is_quiet) == (1, False, False)


def test_what_was_cancelled_while_it_was_submitted_is_cancelled_then():
    cancelled = []
    stream = type("Made", (), {"cancel": lambda self: cancelled.append(self)})()

    async def run():
        answers = Answers(Mailbox(asyncio.get_running_loop()), lambda *told: None)

        def submit_all(requests, hear):
            answers.cancel()
            assert cancelled == []
            return [stream]

        answers.start(SimpleNamespace(submit_all=submit_all), [{}])
        assert cancelled == [stream]

    asyncio.run(run())


def test_an_error_for_the_reader_ends_what_runs():
    async def run():
        cancelled, told = [], []
        answers = Answers(Mailbox(asyncio.get_running_loop()), lambda stream, reason: told.append(reason))
        streams = [SimpleNamespace(cancel=lambda at=at: cancelled.append(at)) for at in range(2)]
        answers.streams, answers.left = streams, 2
        answers.fail(GoneError())
        assert cancelled == [0, 1]
        with pytest.raises(GoneError):
            list(await answers.moment())
        return told

    assert asyncio.run(run()) == []


class Waker:
    """A loop that is woken from another thread, and goes on when a test says so."""

    def __init__(self):
        self.woken = []

    def call_soon_threadsafe(self, call):
        self.woken.append(call)

    def run(self):
        while self.woken:
            self.woken.pop(0)()


class Looked(collections.deque):
    """What a mailbox holds; another thread adds to it just when the loop has found it empty."""

    late = ()

    def __bool__(self):
        if not len(self) and self.late:
            late, self.late = self.late, ()
            late()
            return False
        return len(self) > 0


def test_one_wake_up_hands_out_all_that_lies_there_and_nothing_is_left_lying():
    loop, taken = Waker(), []
    box = Mailbox(loop)

    def take(stream, event):
        taken.append((stream, event))
        if event == 3:
            box.put(answers, "s", 4)  # while the loop hands out

    answers = SimpleNamespace(take=take)
    box.put(answers, "s", 1)
    box.put(answers, "t", 2)
    assert (len(loop.woken), taken) == (1, [])
    loop.run()
    assert taken == [("s", 1), ("t", 2)]
    box._items = Looked()
    box._items.late = lambda: box.put(answers, "t", 5)
    box.put(answers, "s", 3)
    loop.run()
    assert taken[2:] == [("s", 3), ("s", 4), ("t", 5)]


def test_nobody_listens_where_the_loop_is_closed():
    loop = asyncio.new_event_loop()
    loop.close()
    box = Mailbox(loop)
    for event in (1, 2):
        box.put(SimpleNamespace(take=None), "s", event)


class WireError(Exception):
    """The client has gone."""


@pytest.mark.parametrize("breaks_at", [None, 0, 1, 2])
def test_a_stream_that_ends_anyhow_is_closed_first_and_then_forgotten(breaks_at):
    order = []

    async def frames():
        try:
            yield b"a", True
            yield b"b", False
        finally:
            order.append("closed")

    async def send(message):
        if len(order) == breaks_at:
            raise WireError
        order.append(message)

    async def run():
        await Events(frames(), lambda: order.append("finished"))({}, None, send)

    if breaks_at is None:
        asyncio.run(run())
    else:
        with pytest.raises(WireError):
            asyncio.run(run())
    bodies = [
        {"type": "http.response.body", "body": b"a", "more_body": True},
        {"type": "http.response.body", "body": b"b", "more_body": False},
    ]
    ends = ["finished"] if breaks_at == 0 else ["closed", "finished"]  # what has not begun needs no end
    sent = order[: -len(ends)]
    assert (order[-len(ends) :], len(sent)) == (ends, 3 if breaks_at is None else breaks_at)
    assert sent[1:] == bodies[: max(len(sent) - 1, 0)]
    if sent:
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        assert (sent[0]["type"], sent[0]["status"]) == ("http.response.start", 200)
        assert headers == {
            "cache-control": "no-cache",
            "connection": "keep-alive",
            "x-accel-buffering": "no",
            "content-type": "text/event-stream; charset=utf-8",
        }


def test_a_frame_is_one_event_of_json():
    assert frame({"a": "x\ny"}) == b'data: {"a":"x\\ny"}\n\n'
    assert frame([1], event="e.f") == b"event: e.f\ndata: [1]\n\n"


def let_through(check, kind="http", **headers):
    """What the application sees of a request, or what is answered in its place."""
    seen, sent = [], []
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]

    async def app(scope, receive, send):
        seen.append((scope["type"], receive, send))

    async def send(message):
        sent.append(message)

    check.app = app
    asyncio.run(check({"type": kind, "headers": raw}, "receive", send))
    assert seen in ([], [(kind, "receive", send)])
    return sent if not seen else None


def test_who_calls_the_server_by_another_name_is_refused():
    check = HostCheck(None, ["own"])
    for headers in ({}, {"host": "own"}, {"host": "127.0.0.1:80"}):
        assert let_through(check, **headers) is None
    assert let_through(check, kind="websocket", host="evil") is None  # no route takes it
    start, body = let_through(check, host="evil")
    assert start["status"] == 403
    error = json.loads(body["body"])["error"]
    assert (error["type"], error["code"]) == ("permission_error", "host_not_allowed")
    assert "--allowed_host=NAME" in error["message"]


def test_who_has_no_key_is_refused_where_there_are_keys():
    assert let_through(KeyCheck(None, [])) is None
    check = KeyCheck(None, ["one", "schlüssel"])
    for key in ("one", "schlüssel"):
        assert let_through(check, authorization=f"Bearer {key}") is None
        assert let_through(check, x_api_key=key) is None
    for headers in ({}, {"authorization": "Bearer two"}, {"x_api_key": "schluessel"}):
        with pytest.raises(ApiError) as error:
            let_through(check, **headers)
        told = error.value
        assert (told.status, told.code) == (401, "invalid_api_key")
        assert told.headers == {"WWW-Authenticate": "Bearer"}
