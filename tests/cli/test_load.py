"""The load client's parts: the arithmetic of recorded events, what comes in pieces, prompts, many at once."""

import asyncio
import contextlib
import itertools
import json
import random
import socket
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.cli.load import idle, prompts, target
from jllama.cli.load.figures import distribution, figures
from jllama.cli.load.idle import Crowd
from jllama.cli.load.models import served_model
from jllama.cli.load.prompts import OPENING, WORDS, Prompts, calibrated, refused
from jllama.cli.load.reply import Answer, RequestError, UnreachableError, message_of
from jllama.cli.load.report import as_text
from jllama.cli.load.target import Target, allow_files, opened
from jllama.cli.load.traffic import Record, Traffic
from jllama.cli.load.workload import Workload, parse_range
from jllama.errors import JllamaError
from tests.support.fake_load_server import FIXED, MODEL, FakeLoadServer


@pytest.fixture
def fake():
    server = FakeLoadServer()
    yield server
    server.close()


def test_percentiles_lie_on_the_line_between_two_values():
    assert distribution([]) is None
    assert distribution([3.0]) == {"mean": 3.0, "p50": 3.0, "p90": 3.0, "p99": 3.0}
    found = distribution([5.0, 1.0, 2.0, 4.0, 3.0])
    assert found == pytest.approx({"mean": 3.0, "p50": 3.0, "p90": 4.6, "p99": 4.96})
    values = np.random.default_rng(0).exponential(size=357)
    found = distribution(values)
    assert [found[p] for p in ("p50", "p90", "p99")] == pytest.approx(np.percentile(values, [50, 90, 99]))


def test_figures_of_recorded_events():
    records = [
        Record(sent=10.0, ended=13.0, arrivals=[11.0, 12.0, 12.5], prompt_tokens=5, completion_tokens=4),
        Record(sent=10.5, ended=14.0, arrivals=[13.5], prompt_tokens=7, completion_tokens=3, cached_tokens=2),
        Record(sent=9.0, ended=90.0, failure="HTTP 429: full"),
        Record(sent=11.0, ended=11.5, failure="HTTP 429: full"),
        Record(sent=11.0, ended=11.5, failure="other"),
    ]
    found = figures(records)
    assert (found["done"], found["failed"], found["seconds"]) == (2, 3, 5.0)  # from 9 to 14
    assert found["failures"] == [{"kind": "HTTP 429: full", "count": 2}, {"kind": "other", "count": 1}]
    assert (found["completion_tokens_per_second"], found["prompt_tokens_per_second"]) == (7 / 5, 12 / 5)
    assert (found["requests_per_second"], found["cached_prompt_tokens"]) == (2 / 5, 2)
    assert found["prompt_lengths"] == {"shortest": 5, "mean": 6.0, "longest": 7}
    assert (found["time_to_first_token_seconds"]["mean"], found["chunks"]) == (2.0, 4)  # 1 and 3
    assert found["time_per_token_seconds"]["p50"] == 0.5  # 1.5 for 3; a lone chunk tells nothing
    assert found["inter_chunk_seconds"] == pytest.approx(
        {"mean": 0.75, "p50": 0.75, "p90": 0.95, "p99": 0.995}
    )
    assert found["end_to_end_seconds"]["p50"] == 3.25


@pytest.mark.parametrize(("cached", "told"), [((None, None), None), ((None, 0), 0), ((0, 0), 0), ((3, 4), 7)])
def test_a_server_that_found_nothing_is_not_one_that_does_not_tell(cached, told):
    records = [Record(sent=0.0, ended=1.0, cached_tokens=count) for count in cached]
    assert figures(records)["cached_prompt_tokens"] == told


def test_the_commonest_failure_is_told_first():
    records = [Record(sent=0.0, ended=1.0, failure=kind) for kind in "abbccc"]
    assert [(one["kind"], one["count"]) for one in figures(records)["failures"]] == [
        ("c", 3),
        ("b", 2),
        ("a", 1),
    ]


def test_a_lone_token_in_several_chunks_has_no_time_per_token():
    one = Record(sent=0.0, ended=2.0, arrivals=[1.0, 2.0], prompt_tokens=1, completion_tokens=1)
    assert figures([one])["time_per_token_seconds"] is None
    assert figures([one])["inter_chunk_seconds"]["mean"] == 1.0


def test_figures_of_nothing_are_none_and_no_error():
    found = figures([Record(sent=1.0, ended=2.0, failure="lost")])
    assert (found["done"], found["failed"], found["completion_tokens_per_second"]) == (0, 1, 0.0)
    assert (found["end_to_end_seconds"], found["prompt_lengths"]) == (None, None)
    assert figures([])["seconds"] == 0.0


def answer_of(*parts, streamed=True, status=200):
    async def fed():
        answer = Answer(streamed)
        answer.status = status
        for moment, part in enumerate(parts):
            answer.body(part, float(moment))
        return answer

    return asyncio.run(fed())


def event(content):
    return b"data: " + json.dumps(content).encode() + b"\n\n"


USED = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
DONE = b"data: [DONE]\n\n"


def said(**delta):
    return event({"choices": [{"index": 0, "delta": delta}]})


def test_only_chunks_with_text_count_as_arrivals():
    parts = [b": still here\n\n", said(role="assistant", content=""), said(reasoning_content="Hm"), said()]
    parts += [event({"choices": [{"text": "x"}]}), said(content=None), said(content="y"), USED, DONE]
    parts += [said(reasoning="Hm"), event({"choices": []}), said(tool_calls=[])]
    answer = answer_of(*parts)
    assert answer.arrivals == [2.0, 4.0, 6.0, 9.0]
    assert (answer.usage().prompt_tokens, answer.usage().cached_tokens) == (3, None)


def test_a_prompt_s_tokens_that_were_known_are_told():
    used = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 7}}
    streamed = answer_of(event({"choices": [], "usage": used}), event({"choices": []}), DONE).usage()
    whole = answer_of(
        json.dumps({"choices": [{"text": "x"}], "usage": used}).encode(), streamed=False
    ).usage()
    for usage in (streamed, whole):
        told = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
        assert told == (9, 2, 7)
    nothing = used | {"prompt_tokens_details": {}}
    assert answer_of(event({"choices": [], "usage": nothing}), DONE).usage().cached_tokens is None


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_events_may_come_in_any_pieces(end):
    stream = b"".join([said(content="Grüße"), said(content="y"), USED, DONE]).replace(b"\n", end)
    for size in range(1, 40):
        answer = answer_of(*(stream[at : at + size] for at in range(0, len(stream), size)))
        assert len(answer.arrivals) == 2
        assert answer.usage().completion_tokens == 2


@pytest.mark.parametrize(
    ("parts", "words"),
    {
        "no usage": ([said(content="x"), DONE], "tells no usage"),
        "no end": ([said(content="x"), USED], r"without \[DONE\]"),
        "an error": (
            [said(content="x"), event({"error": {"message": "dead"}}), DONE],
            "rest of the answer: dead",
        ),
        "no JSON": ([b"data: {\n\n", USED, DONE], "none of OpenAI's API"),
        "another shape": ([event({"choices": 5}), USED, DONE], "none of OpenAI's API"),
        "no UTF-8": ([b'data: {"choices": [{"text": "\xff"}]}\n\n', USED, DONE], "none of OpenAI's API"),
    }.values(),
)
def test_a_stream_that_went_wrong_is_a_failure(parts, words):
    with pytest.raises(RequestError, match=words):
        answer_of(*parts).usage()


def test_errors_are_read_in_all_their_forms():
    for body in (
        {"error": {"message": "full"}},
        {"error": "full"},
        {"object": "error", "message": "full"},
        {"detail": "full"},
    ):
        assert message_of(json.dumps(body).encode()) == "full"
    assert message_of(b"\xff<html>\n") == "�<html>"
    assert message_of(b"") == "(no message)"
    assert message_of(b'{"detail": [1]}') == "[1]"
    assert len(message_of(b"x" * 5000)) == 300
    with pytest.raises(RequestError, match="HTTP 503: away"):
        answer_of(b'{"error": "away"}', status=503).usage()


def test_lengths():
    assert parse_range("128", "--x") == (128, 128)
    assert parse_range(" 64-256 ", "--x") == (64, 256)
    for wrong in ("", "0", "0-5", "9-3", "-5", "a", "1-2-3", "99999999"):
        with pytest.raises(JllamaError, match=r"--x=.*: give a number of tokens or a range"):
            parse_range(wrong, "--x")


def test_the_seed_decides_lengths_and_moments():
    def drawn(kind="run", **changes):
        work = Workload(model="m", prompt_tokens=(9, 99), answer_tokens=(1, 50), request_rate=20.0, **changes)
        lengths = [found[1:] for found in itertools.islice(work.lengths(kind), 200)]
        return lengths, list(work.moments())

    assert drawn(seed=1) == drawn(seed=1)
    assert drawn(seed=1)[0] != drawn(seed=2)[0]
    assert drawn(seed=1)[1] != drawn(seed=2)[1]
    assert drawn("warm-up")[0] != drawn()[0]
    prompts, answers = zip(*drawn()[0], strict=True)
    assert 9 <= min(prompts) < 20
    assert 90 < max(prompts) <= 99
    assert (min(answers) >= 1, max(answers) <= 50) == (True, True)
    moments = drawn(requests=20_000)[1]
    assert (len(moments), moments[0]) == (20_000, 0.0)
    assert moments[-1] == pytest.approx(1000, rel=0.03)  # 20 a second
    gaps = np.diff(moments)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as a Poisson process has them


def test_bodies_hold_what_servers_take():
    chat = json.loads(Workload(model="m").body("Hello", 9))
    assert chat == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.0,
        "messages": [{"role": "user", "content": "Hello"}],
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    plain = Workload(model="m", endpoint="completions", streamed=False, ignore_eos=False)
    assert json.loads(plain.body("Hello", 9)) == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.0,
        "prompt": "Hello",
    }


def test_prompts_are_as_long_as_wanted():
    exact = Prompts(FIXED, dict.fromkeys(WORDS, 1))
    assert exact.text(random.Random(0), FIXED) == OPENING
    for tokens in (FIXED + 1, 20, 500):
        assert len(exact.text(random.Random(0), tokens).split()) - 1 == tokens - FIXED
    assert exact.text(random.Random(0), 50) != exact.text(random.Random(1), 50)
    uneven = {"a": 2, "bb": 3, "ccc": 7}
    for tokens in range(9, 40):
        words = Prompts(4, uneven).text(random.Random(tokens), tokens).split()[1:]
        assert 4 + sum(uneven[word] for word in words) in (tokens, tokens - 1)


@pytest.mark.parametrize("counts", ["prompt", "content", ""])
def test_prompts_are_measured_by_the_server_itself(fake, counts):
    fake.counts = counts

    async def made(**changes):
        async with opened(fake.url, "", 60) as target:
            return await calibrated(target, Workload(model=MODEL, **changes))

    measured = asyncio.run(made())
    assert measured.fixed == FIXED
    assert len(measured.text(random.Random(0), 100).split()) - 1 == 100 - FIXED
    with pytest.raises(JllamaError, match=f"--prompt_tokens=3: .* takes {FIXED} tokens: give more"):
        asyncio.run(made(prompt_tokens=(3, 9)))


def test_a_prompt_is_counted_by_an_answer_of_one_token():
    class Asked:
        async def exchange(self, method, path, body, answer):
            given.append((method, path, json.loads(body)))
            answer.status, answer.data = 200, b'{"usage": {"prompt_tokens": 9}}'
            if len(given) > 1:
                answer.status, answer.data = 401, b'{"error": "who?"}'

    async def count():
        return await prompts._prompt_tokens(Asked(), Workload(model="m"), "Hello")

    given = []
    assert asyncio.run(count()) == 9
    ((method, path, body),) = given
    assert (method, path) == ("POST", "/v1/chat/completions")
    assert (body["max_tokens"], body["messages"][0]["content"]) == (1, "Hello")
    assert "stream" not in body
    with pytest.raises(JllamaError, match=r"^the server wants another key: .* \(HTTP 401: who\?\)$"):
        asyncio.run(count())


@pytest.mark.parametrize(
    ("knows", "costs"),
    [("prompt", True), ("content", True), ("", False)],
)
def test_what_each_word_costs_is_asked(knows, costs):
    """A word of five letters takes five tokens here, and what stands before takes nine."""

    class Asked:
        async def ask(self, method, path, asked):
            given.append((method, path, {**asked}))
            if knows not in asked:
                return (200, b"{}") if "prompt" in asked else (404, b"[]")
            text = asked[knows].removeprefix(OPENING)
            return 200, json.dumps({"tokens": [0] * (9 + len(text.strip()))}).encode()

    given = []
    found = asyncio.run(prompts._costs(Asked(), Workload(model="m")))
    assert found == ({word: len(word) for word in WORDS} if costs else {})
    model = {"model": "m"} if knows != "content" else {}
    first = {"prompt": OPENING, "model": "m"} if knows != "content" else {"content": OPENING}
    assert ("POST", "/tokenize", first) in given
    if costs:
        assert given[-1] == ("POST", "/tokenize", {knows: f"{OPENING} {WORDS[-1]}", **model})


@contextlib.asynccontextmanager
async def traffic_to(fake, **changes):
    async with opened(fake.url, fake.key or "", 60) as target:
        work = Workload(model=MODEL, **{"prompt_tokens": (20, 30), "answer_tokens": (5, 5), **changes})
        yield Traffic(target, work, Prompts(FIXED, dict.fromkeys(WORDS, 1)))


def ran(fake, **changes):
    async def run():
        async with traffic_to(fake, **changes) as traffic:
            await traffic.run()
            return traffic

    return asyncio.run(run())


def test_so_many_requests_run_at_once_and_no_more(fake):
    fake.answers = lambda number, body: ("held",)

    async def run():
        async with traffic_to(fake, requests=30, concurrency=4) as traffic:
            running = asyncio.create_task(traffic.run())
            for _ in range(4):
                await asyncio.to_thread(fake.reached.acquire)
            assert (fake.running, len(fake.bodies), traffic.sent) == (4, 4, 4)
            fake.gate.set()
            await running
            return traffic

    traffic = asyncio.run(run())
    assert figures(traffic.records)["done"] == traffic.sent == len(fake.bodies) == 30
    assert (fake.most_running, fake.connections) == (4, 4)


def test_what_came_is_recorded(fake):
    traffic = ran(fake, requests=30, concurrency=4)
    found = figures(traffic.records)
    assert (found["done"], found["completion_tokens"], found["chunks"]) == (30, 150, 150)
    assert 20 <= found["prompt_lengths"]["shortest"] < found["prompt_lengths"]["longest"] <= 30
    for record in traffic.records:
        moments = [record.sent, *record.arrivals, record.ended]
        assert moments == sorted(moments)
    assert len({body["messages"][0]["content"] for body in fake.bodies}) == 30


def test_requests_come_at_a_rate_without_waiting_for_each_other(fake):
    fake.answers = lambda number, body: ("held",) if number < 5 else ("tokens", 2)

    async def run():
        async with traffic_to(fake, requests=12, concurrency=None, request_rate=500.0) as traffic:
            running = asyncio.create_task(traffic.run())
            while len(traffic.records) < 7:
                await asyncio.sleep(0.001)
            fake.gate.set()
            await running
            return traffic

    assert figures(asyncio.run(run()).records)["done"] == 12
    assert fake.most_running >= 6


def test_failures_are_counted_by_kind_and_do_not_end_the_run(fake):
    kinds = [("tokens", 3), ("refuse", 429, "full"), ("breaks",), ("drops",), ("errs", "dead"), ("tokens", 3)]
    fake.answers = lambda number, body: kinds[number % 6]
    traffic = ran(fake, requests=12, concurrency=1)
    found = figures(traffic.records)
    assert (found["done"], found["failed"], traffic.sent) == (4, 8, 12)
    assert {each["kind"]: each["count"] for each in found["failures"]} == {
        "HTTP 429: full": 2,
        "the connection broke in the middle of an answer": 2,
        "an error instead of the rest of the answer: dead": 2,
        "the server closed the connection before it answered": 2,
    }


def test_a_connection_that_the_server_closed_while_it_waited_is_replaced(fake):
    fake.answers = lambda number, body: ("drops",) if number == 1 else ("tokens", 3)
    traffic = ran(fake, requests=3, concurrency=1)
    assert figures(traffic.records)["done"] == 3
    assert len(fake.bodies) == 4  # one was sent again


def test_a_server_that_is_gone_is_not_asked_again(fake):
    def answers(number, body):
        if number == 3:
            fake.stop_listening()
        return ("breaks",) if number >= 3 else ("tokens", 2)

    fake.answers = answers
    traffic = ran(fake, requests=1000, concurrency=2)
    assert traffic.is_gone
    assert traffic.sent < 20
    assert any(record.failure.startswith("cannot connect to") for record in traffic.records)


def test_a_server_that_is_gone_is_not_asked_again_at_a_rate(monkeypatch):
    """Nothing waits: all moments are now."""
    asked = []

    async def exchange(method, path, body, reply):
        asked.append(path)
        raise UnreachableError("cannot connect")

    async def run():
        work = Workload(model=MODEL, requests=50, concurrency=None, request_rate=1e9)
        traffic = Traffic(Target("http://x", "", 60), work, Prompts(FIXED, dict.fromkeys(WORDS, 1)))
        traffic.target.exchange = exchange
        await traffic.run()
        return traffic

    traffic = asyncio.run(run())
    assert traffic.is_gone
    assert len(asked) == traffic.sent == len(traffic.records) < 5


def test_an_answer_that_does_not_end_is_given_up(fake):
    fake.answers = lambda number, body: ("held",)

    async def run():
        async with opened(fake.url, "", 0.2) as target:
            traffic = Traffic(target, Workload(model=MODEL, requests=1), Prompts(FIXED, {"a": 1}))
            await traffic.run()
            return traffic.records

    assert [record.failure for record in asyncio.run(run())] == ["no end of the answer within 0.2 s"]


def test_idle_connections_stay_beside_the_others(fake):
    async def run():
        async with traffic_to(fake, requests=8, concurrency=2) as traffic:
            crowd = Crowd(traffic.target, 20)
            async with crowd.around():
                assert (crowd.open, crowd.closed) == (20, 0)
                await traffic.run()
                assert crowd.open == 20
            assert crowd.open == 0
            return traffic

    assert figures(asyncio.run(run()).records)["done"] == 8
    assert fake.connections == 22


def test_idle_connections_that_are_closed_come_again():
    async def run():
        came = asyncio.Event()
        seen = []

        async def close(_, writer):
            seen.append(writer)
            if len(seen) <= 6:
                if len(seen) % 2:  # closed by a reset
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.close()
            elif len(seen) == 9:
                came.set()

        server = await asyncio.start_server(close, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            crowd = Crowd(Target(f"http://127.0.0.1:{port}", "", 60), 3)
            async with crowd.around():
                await came.wait()
            for writer in seen:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in seen), return_exceptions=True)
            return crowd.closed

    assert asyncio.run(run()) == 6


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://x", "http://", "http://x:99999", "http://[1", "//x", "http://é"]
)
def test_what_is_no_address_is_explained(url):
    with pytest.raises(JllamaError, match="give an address such as"):
        Target(url, "", 1)


def test_addresses():
    assert (Target("https://x", "", 1).port, Target("http://x/", "", 1).port) == (443, 80)
    target = Target("http://[::1]:5/llm/v1/", "", 1)
    assert (target.host, target.port, target.url) == ("::1", 5, "http://[::1]:5/llm")


def test_a_request_as_it_is_sent():
    def sent(url, key, body):
        request = Target(url, key, 1)._request("POST", "/v1/x", body)
        return request.method, request.target, {name.decode(): text for name, text in request.headers}

    usual = {b"user-agent": b"jllama-bench", b"accept": b"*/*", b"host": b"h:5"}
    usual = {name.decode(): text for name, text in usual.items()}
    assert sent("http://h:5/llm/v1/", "", b"") == (b"POST", b"/llm/v1/x", usual)
    more = {"authorization": b"Bearer k", "content-type": b"application/json", "content-length": b"2"}
    assert sent("http://h:5", "k", b"{}") == (b"POST", b"/v1/x", usual | more)


@pytest.mark.parametrize(
    ("lost", "kept", "left"), [([], None, 0), ([0], 0, 0), ([1], None, 0), ([0, 0, 1], 1, 1)]
)
def test_of_what_waits_the_last_that_is_not_lost_is_taken(lost, kept, left):
    target = Target("http://x", "", 1)
    target._waiting = [SimpleNamespace(is_lost=bool(each)) for each in lost]
    waiting = [*target._waiting, None]
    assert target._kept() is waiting[-1 if kept is None else kept]
    assert len(target._waiting) == left


@pytest.mark.parametrize(("count", "allowed"), [(7, True), (8, False)])
def test_more_connections_than_the_system_allows_are_refused(monkeypatch, count, allowed):
    monkeypatch.setattr(target, "raise_limit", lambda: 7.0)
    if allowed:
        return allow_files(count)
    with pytest.raises(JllamaError, match=r"8 connections are more than the 7 that this .*: raise `ulimit"):
        allow_files(count)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(111, "anything"), "Connection refused"),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
        (OSError("all of them failed"), "all of them failed"),
        (OSError(0, "odd"), "odd"),
    ],
)
def test_why_a_connection_can_not_be_opened(error, words):
    assert target._reason(error) == words


LISTED = b'{"data": [{"id": "one"}, {"id": "two"}]}'


@pytest.mark.parametrize(
    ("answer", "wanted", "name", "words"),
    [
        ((200, LISTED), None, "one", ""),
        ((200, LISTED), "two", "two", ""),
        (
            (200, LISTED),
            "tow",
            None,
            r"--served_model=tow: unknown there \(did .*'two'\?\); there is one, ",
        ),
        ((404, b"{}"), None, None, "http://h/v1/models lists no model: give --served_model=NAME"),
        ((404, LISTED), "any", "any", ""),
        ((200, b"no JSON"), "any", "any", ""),
        ((200, b'{"data": [1]}'), None, None, "lists no model"),
        ((200, b'{"models": []}'), None, None, "lists no model"),
        ((200, b"\xff"), None, None, "lists no model"),
        ((401, b'{"error": "no"}'), "two", None, r"--api_key=KEY \(HTTP 401: no\)"),
        ((403, b'{"error": "no"}'), None, None, r"--api_key=KEY \(HTTP 403: no\)"),
        (UnreachableError("gone"), None, None, "^gone: start a server, as in jllama serve smollm2"),
        (RequestError("broken"), "two", None, "does not answer a first request: broken"),
    ],
)
def test_under_which_name_a_server_is_asked(answer, wanted, name, words):
    class Asked:
        url = "http://h"

        async def ask(self, method, path):
            assert (method, path) == ("GET", "/v1/models")
            if isinstance(answer, Exception):
                raise answer
            return answer

    if name:
        assert asyncio.run(served_model(Asked(), wanted)) == name
    else:
        with pytest.raises(JllamaError, match=words):
            asyncio.run(served_model(Asked(), wanted))


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("HTTP 400: no ignore_eos here", "the server does not know ignore_eos: give --noignore_eos"),
        ("HTTP 401: no", "the server wants another key: give --api_key=KEY"),
        ("HTTP 403: no", "the server wants another key: give --api_key=KEY"),
        ("HTTP 400: no chat template", "hold conversations: give --endpoint=completions"),
        ("HTTP 500: no chat template", "the server does not answer a first request"),
        ("told HTTP 401", "the server does not answer a first request"),
    ],
)
def test_what_to_do_where_a_server_refuses(words, advice):
    told = str(refused(RequestError(words)))
    assert advice in told
    assert words in told


def test_every_other_idle_connection_sends_a_beginning_byte_by_byte(monkeypatch):
    monkeypatch.setattr(idle, "SECONDS", 0.0)
    wanted = idle.BEGINNING + b"aaa"

    async def run():
        came, writers, whole = [], [], asyncio.Event()

        async def read(reader, writer):
            writers.append(writer)
            place, data = len(came), b""
            came.append(data)
            while part := await reader.read(1000):
                data += part
                came[place] = data
                if len(data) >= len(wanted):
                    whole.set()

        server = await asyncio.start_server(read, "127.0.0.1", 0)
        async with server:
            crowd = Crowd(Target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "", 60), 2)
            async with crowd.around():
                await whole.wait()
            for writer in writers:
                writer.close()
        return sorted(came)

    silent, slow = asyncio.run(run())
    assert (silent, slow[: len(wanted)]) == (b"", wanted)


def test_a_crowd_is_there_when_each_was_tried_once_and_not_one_of_them_twice(monkeypatch):
    monkeypatch.setattr(idle, "SECONDS", 0.0)
    crowd, turns = Crowd(Target("http://h", "", 60), 2), [0, 0]

    async def once(is_slow, is_first):
        turns[is_slow] += 1
        assert is_first == (turns[is_slow] == 1)
        if is_slow:
            while turns[0] < 5:
                assert not crowd._all_tried.is_set()
                await asyncio.sleep(0)
        raise OSError(111, "refused")

    async def run():
        monkeypatch.setattr(crowd, "_once", once)
        async with crowd.around():
            assert turns[0] >= 5
            assert crowd._tried == 2

    asyncio.run(run())


def test_who_is_refused_once_is_not_waited_for_again(monkeypatch):
    monkeypatch.setattr(idle, "SECONDS", 3600.0)

    async def refused(*_, **__):
        raise OSError(111, "refused")

    async def run():
        monkeypatch.setattr(asyncio, "open_connection", refused)
        crowd = Crowd(Target("http://127.0.0.1:9", "", 60), 2)
        async with crowd.around():
            return crowd.open, crowd.closed

    assert asyncio.run(run()) == (0, 0)


def test_idle_connections_that_are_refused_are_tried_again(monkeypatch):
    monkeypatch.setattr(idle, "SECONDS", 0.0)
    tried = []

    class Writer:
        def write(self, data):
            pass

        transport = type("", (), {"abort": lambda self: None})()

    class Reader:
        async def read(self):
            await asyncio.Event().wait()

    async def open_connection(*where, ssl):
        tried.append((*where, ssl))
        if len(tried) < 3:
            raise OSError(111, "refused")
        return Reader(), Writer()

    async def run():
        crowd = Crowd(Target("https://h", "", 60), 1)
        async with crowd.around():
            assert (crowd.open, len(tried)) == (0, 1)  # once is enough to begin
            while not crowd.open:
                await asyncio.sleep(0)
        return crowd

    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    crowd = asyncio.run(run())
    assert (crowd.open, crowd.closed, tried) == (0, 0, [("h", 443, True)] * 3)


def test_a_warm_up_is_not_counted_and_tells_what_is_refused(fake):
    fake.answers = lambda number, body: ("tokens", 2) if number < 3 else ("refuse", 429, "full")

    async def run():
        async with traffic_to(fake, requests=5) as traffic:
            await traffic.warm_up(3)
            assert (traffic.records, traffic.sent, len(fake.bodies)) == ([], 0, 3)
            traffic.is_gone = True
            await traffic.warm_up(0)
            assert not traffic.is_gone
            with pytest.raises(JllamaError, match="does not answer a first request: HTTP 429: full"):
                await traffic.warm_up(1)
            return [body["messages"][0]["content"] for body in fake.bodies[:3]], traffic._drawn

    warm, drawn = asyncio.run(run())
    assert {json.loads(body)["messages"][0]["content"] for body in drawn}.isdisjoint(warm)


ASKED = dict(model="m\x1b", url="http://x", seed=3, date="2026-01-01", endpoint="chat")
FULL = """m\\x1b at http://x · chat · streamed · 4 at once · seed 3 · 2026-01-01
2 requests done, 0 failed, 1 not sent, in 5.00 s
2.0 tok/s · 0.40 requests/s · prompts 2,002.0 tok/s
prompts of 10 to 10,000 tokens (mean 5,005.0), 20 of them cached, answers of 5 tokens, by the server's count

ms                             mean        p50        p90        p99
time to first token        1,500.00   1,500.00   1,900.00   1,990.00
time per token after it      375.00     375.00     475.00     497.50
between two chunks         1,500.00   1,500.00   1,900.00   1,990.00
whole answer               4,000.00   4,000.00   4,000.00   4,000.00

the client itself took 25% of a core, 1,500 µs a chunk"""


def test_a_whole_report_word_for_word():
    records = [
        Record(sent=0.0, ended=4.0, arrivals=[1.0, 2.0], prompt_tokens=10, completion_tokens=5),
        Record(sent=1.0, ended=5.0, arrivals=[3.0, 5.0], prompt_tokens=10_000, completion_tokens=5),
    ]
    records[1].cached_tokens = 20
    base = ASKED | dict(streamed=True, concurrency=4, request_rate=None, cut_off=0, not_sent=1)
    base |= dict(client={"cpu_share": 0.25, "cpu_microseconds_per_chunk": 1500.0})
    base |= dict(idle_connections={"wanted": 0, "open": 0, "closed": 0})
    assert as_text(base | figures(records)) == FULL
    nothing = base | dict(concurrency=None, request_rate=2.5, streamed=False) | figures([])
    assert as_text(nothing).splitlines() == [
        "m\\x1b at http://x · chat · not streamed · 2.5 a second · seed 3 · 2026-01-01",
        "0 requests done, 0 failed, 1 not sent, in 0.00 s",
    ]


@pytest.mark.parametrize(("kinds", "more"), [(10, 0), (11, 1)])
def test_the_kinds_of_failures_are_told_up_to_ten(kinds, more):
    records = [Record(sent=0.0, ended=1.0, failure=f"kind {number}") for number in range(kinds)]
    base = ASKED | dict(streamed=True, concurrency=4, request_rate=None, cut_off=0, not_sent=0)
    lines = as_text(base | {"idle_connections": {"wanted": 0}} | figures(records)).splitlines()
    assert len(lines) == 2 + 10 + bool(more)
    assert (lines[-1] == f"and {more} other kinds: --json lists all") == bool(more)


def test_the_table_shows_what_was_measured(fake):
    base = dict(model="m", url="http://x", endpoint="chat", streamed=False, concurrency=4, request_rate=None)
    base |= dict(seed=0, date="2026-01-01", cut_off=1, not_sent=2)
    base |= dict(client={"cpu_share": 0.5, "cpu_microseconds_per_chunk": None})
    base |= dict(idle_connections={"wanted": 9, "open": 8, "closed": 3})
    records = [Record(sent=0.0, ended=2.0, prompt_tokens=5, completion_tokens=3)]
    records += [Record(sent=0.0, ended=1.0, failure=f"kind {number}\x1b[2J") for number in range(12)]
    text = as_text(base | figures(records))
    assert "1 requests done, 12 failed, 1 cut off, 2 not sent, in 2.00 s" in text
    assert "whole answer               2,000.00   2,000.00" in text
    assert "time to first token" not in text
    assert "8 of 9 open at the end, closed by the server and opened again 3 times" in text
    assert "failed, 1 ×: kind 0\\x1b[2J" in text
    assert "and 2 other kinds" in text


def test_what_a_server_counted_is_recorded():
    async def exchange(method, path, body, answer):
        used = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 7}}
        answer.status, answer.data = 200, json.dumps({"usage": used}).encode()
        answer.arrivals = [2.5]
        return 3.5

    async def run():
        work = Workload(model=MODEL, streamed=False, requests=1)
        traffic = Traffic(Target("http://x", "", 60), work, Prompts(FIXED, dict.fromkeys(WORDS, 1)))
        traffic.target.exchange = exchange
        await traffic.run()
        return traffic.records

    (record,) = asyncio.run(run())
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (9, 2, 7)
    assert (record.ended, record.arrivals, record.failure) == (3.5, [2.5], "")
