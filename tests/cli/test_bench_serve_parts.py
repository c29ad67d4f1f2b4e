"""`jllama bench serve` part by part: what its flags mean, what it reports, and how it ends; no server."""

import asyncio
import json
import signal
from types import SimpleNamespace

import pytest

from jllama import __version__
from jllama.cli import interrupts
from jllama.cli.load.traffic import Record
from jllama.cli.load.workload import Workload
from jllama.errors import JllamaError
from tests.support.programs import flags_of, program_module

bench_serve = program_module("bench_serve")
USUAL = dict(url="http://h:1/v1", api_key="", served_model=None, requests=64, concurrency=None)
USUAL |= dict(request_rate=None, prompt_tokens="128", answer_tokens="128", seed=0, endpoint="chat")
USUAL |= dict(stream=True, ignore_eos=True, temperature=0.0, idle_connections=0, warm_up=None)
USUAL |= dict(timeout=600.0, json=False)


@pytest.fixture
def given(monkeypatch):
    """Sets flags."""

    def given(**changes):
        monkeypatch.setattr(bench_serve, "FLAGS", flags_of(**USUAL | changes))

    given()
    return given


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ({}, dict(concurrency=16, request_rate=None, prompt_tokens=(128, 128), answer_tokens=(128, 128))),
        (dict(concurrency=3, seed=5, temperature=0.5), dict(concurrency=3, seed=5, temperature=0.5)),
        (dict(request_rate=2.5, requests=7), dict(concurrency=None, request_rate=2.5, requests=7)),
        (dict(stream=False, ignore_eos=False), dict(streamed=False, ignore_eos=False)),
        (
            dict(prompt_tokens="5-9", answer_tokens="3", endpoint="completions"),
            dict(prompt_tokens=(5, 9), answer_tokens=(3, 3), endpoint="completions"),
        ),
    ],
)
def test_what_the_flags_ask_for(given, flags, fields):
    given(**flags)
    assert bench_serve.workload("m") == Workload(model="m", **fields)


@pytest.mark.parametrize(
    ("flag", "concurrency", "requests", "count"),
    [
        (None, 16, 64, 4),
        (None, 2, 64, 2),
        (None, None, 64, 4),
        (None, 16, 3, 3),
        (0, 16, 64, 0),
        (9, 2, 3, 9),
    ],
)
def test_how_many_are_asked_before(given, flag, concurrency, requests, count):
    given(warm_up=flag)
    assert bench_serve.warm_up_count(Workload(model="m", concurrency=concurrency, requests=requests)) == count


def test_what_was_asked_stands_in_the_report(given):
    work = Workload(model="m", prompt_tokens=(5, 9), answer_tokens=(3, 3), request_rate=2.0, concurrency=None)
    told = bench_serve.asked("http://h", work)
    assert len(told.pop("date")) == 10
    assert told == dict(
        url="http://h",
        model="m",
        endpoint="chat",
        streamed=True,
        ignore_eos=True,
        temperature=0.0,
        requests=64,
        concurrency=None,
        request_rate=2.0,
        seed=0,
        asked={"prompt_tokens": [5, 9], "answer_tokens": [3, 3]},
        jllama=__version__,
    )
    assert json.dumps(told)


@pytest.mark.parametrize(("arrivals", "each"), [([1.0, 2.0], 250_000.0), ([], None)])
def test_what_came_and_what_that_cost(arrivals, each):
    record = Record(sent=0.0, ended=3.0, arrivals=arrivals, prompt_tokens=5, completion_tokens=2)
    traffic = SimpleNamespace(records=[record], sent=4, work=SimpleNamespace(requests=9))
    told = bench_serve.came(traffic, SimpleNamespace(count=7, open=6, closed=5), 0.5, 2.0)
    assert (told["done"], told["chunks"]) == (1, len(arrivals))
    assert (told["cut_off"], told["not_sent"]) == (3, 5)
    client = {"cpu_seconds": 0.5, "cpu_share": 0.25, "cpu_microseconds_per_chunk": each}
    assert told["client"] == client
    assert told["idle_connections"] == {"wanted": 7, "open": 6, "closed": 5}
    assert (
        bench_serve.came(traffic, SimpleNamespace(count=0, open=0, closed=0), 0.0, 0.0)["client"]["cpu_share"]
        == 0
    )


FAILED = [{"kind": "HTTP 429: \x1b", "count": 2}, {"kind": "other", "count": 1}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        (dict(share=0.8), []),
        (dict(share=0.81), ["note: the client took most of a core: the server may be faster than these"]),
        (dict(done=0, failed=3), ["error: no request was answered: HTTP 429: \\x1b"]),
        (dict(done=0, failed=0), []),
        (dict(not_sent=2), ["error: the server went away: 2 requests were not sent"]),
        (dict(not_sent=2, cut_off=1), []),  # by Ctrl-C
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_what_is_wrong_with_a_report_is_said(given, monkeypatch, capsys, changes, said, as_json):
    report = dict(done=5, failed=0, failures=FAILED, not_sent=0, cut_off=0) | changes
    report["client"] = {"cpu_share": report.pop("share", 0.1)}
    given(json=as_json)
    monkeypatch.setattr("jllama.cli.load.report.as_text", lambda report: "a table")
    bench_serve.show(report)
    out, err = capsys.readouterr()
    assert (json.loads(out) if as_json else out) == (report if as_json else "a table\n")
    assert len(err.splitlines()) == len(said)
    assert all(line.startswith(words) for line, words in zip(err.splitlines(), said, strict=True))


@pytest.mark.parametrize(
    ("flags", "connections"),
    [
        ({}, 16),
        (dict(requests=9), 9),
        (dict(concurrency=100), 64),
        (dict(concurrency=100, requests=200, idle_connections=7), 107),
        (dict(request_rate=5.0, idle_connections=7), 71),
    ],
)
@pytest.mark.parametrize(
    ("report", "ended_by", "code"),
    [
        (dict(done=1, not_sent=0), None, 0),
        (dict(done=0, not_sent=0), None, 2),
        (dict(done=1, not_sent=1), None, 2),
        (dict(done=1, not_sent=1), signal.SIGINT, 130),
        ({}, signal.SIGTERM, 143),
    ],
)
def test_how_it_ends(given, monkeypatch, flags, connections, report, ended_by, code):
    given(**flags)
    allowed, shown = [], []
    monkeypatch.setattr("jllama.cli.load.target.allow_files", allowed.append)
    monkeypatch.setattr(bench_serve, "measure", lambda told: told.update(report))
    monkeypatch.setattr(bench_serve, "until_signal", lambda work: ended_by)
    monkeypatch.setattr(bench_serve, "show", lambda report: shown.append(dict(report)))
    assert bench_serve.main() == code
    assert (allowed, shown) == ([connections], [report] if report else [])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(concurrency=2, request_rate=3.0), "give --concurrency or --request_rate, not both"),
        (dict(answer_tokens="x"), "--answer_tokens=x"),
        (dict(url="x"), "give an address such as"),
    ],
)
def test_wrong_flags_are_told_before_anything_is_asked(given, monkeypatch, flags, words):
    given(**flags)
    monkeypatch.setattr("jllama.cli.load.target.allow_files", lambda count: 1 / 0)
    monkeypatch.setattr(bench_serve, "until_signal", lambda work: 1 / 0)
    with pytest.raises(JllamaError, match=words):
        bench_serve.main()


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_work_and_is_ours_again_afterwards(monkeypatch, number):
    caught, ended = [], []
    monkeypatch.setattr(interrupts, "catch", lambda: caught.append(True))
    before = {each: signal.getsignal(each) for each in bench_serve.CUT_OFF}

    async def work():
        try:
            if number is not None:
                signal.raise_signal(number)
                await asyncio.Event().wait()
        finally:
            ended.append(True)

    try:
        assert bench_serve.until_signal(work()) == number
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert (caught, ended) == ([True], [True])


def test_what_cancels_itself_is_no_signal(monkeypatch):
    monkeypatch.setattr(interrupts, "catch", lambda: None)
    before = {each: signal.getsignal(each) for each in bench_serve.CUT_OFF}

    async def work():
        raise asyncio.CancelledError

    try:
        with pytest.raises(asyncio.CancelledError):
            bench_serve.until_signal(work())
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
