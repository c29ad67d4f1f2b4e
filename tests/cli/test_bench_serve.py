"""`jllama bench serve` as a user runs it: what it prints, what it refuses, and how it ends."""

import json
import signal
import subprocess

import pytest

from tests.support.fake_load_server import MODEL, FakeLoadServer
from tests.support.scripts_helpers import PATIENCE, ROOT, assert_explained, command, environment
from tests.support.serving import on_a_port, start_engine

SCRIPT = "bench_serve.py"
SHORT = ("--prompt_tokens=20", "--answer_tokens=3")
DISTRIBUTION = ["mean", "p50", "p90", "p99"]


@pytest.fixture
def fake():
    server = FakeLoadServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def heeded():
    """A shell lets what it starts in the background ignore Ctrl-C, and children inherit that from pytest."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def live(instruct):
    with start_engine(instruct) as engine, on_a_port(engine, keys=("secret",)) as client:
        yield client


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_the_real_server_under_load(server, live, endpoint):
    flags = [f"--endpoint={endpoint}", "--requests=6", "--concurrency=3", "--prompt_tokens=80-120"]
    flags += ["--answer_tokens=20-40", "--api_key=secret", "--json", "--idle_connections=5"]
    outcome = server.run(SCRIPT, f"{live.http.base_url}/v1", *flags)
    report = outcome.report
    assert (report["model"], report["done"], report["failed"], report["not_sent"]) == ("tiny", 6, 0, 0)
    assert 75 <= report["prompt_lengths"]["shortest"] <= report["prompt_lengths"]["longest"] <= 120
    assert 20 <= report["answer_lengths"]["shortest"] <= report["answer_lengths"]["longest"] <= 40
    assert report["completion_tokens"] == round(6 * report["answer_lengths"]["mean"])
    for name in ("time_to_first_token", "time_per_token", "inter_chunk", "end_to_end"):
        found = report[f"{name}_seconds"]
        assert list(found) == DISTRIBUTION
        assert 0 <= found["p50"] <= found["p90"] <= found["p99"]
    assert report["time_to_first_token_seconds"]["mean"] < report["end_to_end_seconds"]["mean"]
    crowd = report["idle_connections"]
    assert (crowd["wanted"], crowd["open"] == 5 or crowd["closed"] > 0) == (5, True)  # 20 s are theirs
    assert report["seconds"] * report["completion_tokens_per_second"] == pytest.approx(
        report["completion_tokens"]
    )


def test_a_table_on_stdout_and_progress_on_stderr(server, fake):
    outcome = server.run(SCRIPT, f"--url={fake.url}", "--requests=5", "--concurrency=2", *SHORT)
    assert outcome.code == 0
    assert outcome.out.startswith(f"{MODEL} at {fake.url} · chat · streamed · 2 at once · seed 0 · 20")
    assert "5 requests done, 0 failed, in " in outcome.out
    assert "prompts of 20 tokens, answers of 3 tokens, by the server's count" in outcome.out
    for row in ("time to first token ", "time per token ", "between two chunks ", "whole answer "):
        assert f"\n{row}" in outcome.out
    assert outcome.err.splitlines()[-1] == "5 requests …"
    assert len(fake.bodies) == 7  # two warm-ups
    prompts = [body["messages"][0]["content"] for body in fake.bodies]
    assert len(set(prompts)) == 7


def test_at_a_rate_unstreamed_and_without_warm_up(server, fake):
    flags = ["--request_rate=200", "--requests=9", "--nostream", "--warm_up=0", "--endpoint=completions"]
    report = server.run(SCRIPT, fake.url, *flags, *SHORT, "--noignore_eos", "--json").report
    assert (report["done"], report["streamed"], report["concurrency"]) == (9, False, None)
    assert (report["request_rate"], report["completion_tokens"]) == (200, 27)
    assert (report["time_to_first_token_seconds"], report["chunks"]) == (None, 0)
    assert report["end_to_end_seconds"]["p50"] > 0
    assert len(fake.bodies) == 9
    assert {"stream", "ignore_eos", "messages"}.isdisjoint(fake.bodies[0])


def assert_refused(outcome, words):
    """As `assert_explained`, behind the line that says what goes on."""
    said = outcome.err.splitlines()
    assert (outcome.code, outcome.out) == (2, "")
    assert said[-1].startswith("error: ")
    assert len(said) <= 2, said
    for word in words.split("|"):
        assert word in said[-1]


def test_what_cannot_be_asked_is_explained_in_a_line(server, fake):
    fake.key = "k"
    gone = FakeLoadServer()
    gone.close()
    assert_explained(server.run(SCRIPT, gone.url), "Connection refused|jllama serve smollm2|--url")
    assert_explained(server.run(SCRIPT, "http://nowhere.invalid"), "cannot connect to|--url")
    assert_explained(server.run(SCRIPT, fake.url), "--api_key=KEY|Incorrect API key")
    assert_explained(server.run(SCRIPT, fake.url, "--api_key=x"), "--api_key=KEY|401")
    mine = (fake.url, "--api_key=k")
    assert_explained(server.run(SCRIPT, *mine, "--served_model=scriptet"), "unknown there|mean 'scripted'")
    assert_explained(server.run(SCRIPT, *mine, "--concurrency=2", "--request_rate=3"), "not both")
    assert_explained(server.run(SCRIPT, *mine, "--prompt_tokens=x"), "--prompt_tokens=x: give a number")
    assert_refused(server.run(SCRIPT, *mine, "--prompt_tokens=2"), "--prompt_tokens=2: |takes 7 tokens")
    fake.models = []
    assert_explained(server.run(SCRIPT, *mine), "lists no model|--served_model=NAME")
    assert server.run(SCRIPT, *mine, "--served_model=any", "--requests=2", *SHORT).code == 0


def test_a_server_that_does_not_know_ignore_eos(server, fake):
    fake.known -= {"ignore_eos"}
    assert_refused(server.run(SCRIPT, fake.url), "give --noignore_eos|Unrecognized request argument")
    assert server.run(SCRIPT, fake.url, "--noignore_eos", "--requests=2", *SHORT).code == 0


def test_a_warm_up_that_fails_ends_it(server, fake):
    fake.answers = lambda number, body: ("refuse", 400, "too long")
    assert_refused(server.run(SCRIPT, fake.url), "does not answer a first request: HTTP 400: too long")


def test_failures_are_listed_and_all_of_them_are_an_error(server, fake):
    flags = [fake.url, "--requests=6", "--warm_up=0", "--concurrency=1", *SHORT]
    fake.answers = lambda number, body: ("refuse", 429, "full") if number % 3 else ("tokens", 3)
    outcome = server.run(SCRIPT, *flags)
    assert outcome.code == 0
    assert "2 requests done, 4 failed" in outcome.out
    assert outcome.out.endswith("failed, 4 ×: HTTP 429: full\n")
    fake.answers = lambda number, body: ("refuse", 429, "full")
    outcome = server.run(SCRIPT, *flags)
    assert outcome.code == 2
    assert "0 requests done, 6 failed" in outcome.out
    assert outcome.err.splitlines()[-1] == "error: no request was answered: HTTP 429: full"


def test_a_server_that_goes_away_in_the_middle(server, fake):
    def answers(number, body):
        if number == 4:
            fake.stop_listening()
        return ("breaks",) if number >= 4 else ("tokens", 3)

    fake.answers = answers
    outcome = server.run(SCRIPT, fake.url, "--requests=50", "--warm_up=0", "--concurrency=1", *SHORT)
    assert outcome.code == 2
    assert "4 requests done, 2 failed, 44 not sent" in outcome.out
    assert "failed, 1 ×: the connection broke in the middle of an answer" in outcome.out
    assert outcome.err.splitlines()[-1] == "error: the server went away: 44 requests were not sent"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_prints_what_came_so_far(fake, tmp_path, number, code):
    fake.answers = lambda number, body: ("held",) if number >= 4 else ("tokens", 3)
    flags = [f"--url={fake.url}", "--requests=50", "--warm_up=0", "--concurrency=2", "--json", *SHORT]
    line = command(SCRIPT, *flags)
    with subprocess.Popen(
        line, env=environment(tmp_path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        for _ in range(2):
            fake.reached.acquire()
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    report = json.loads(out)
    assert (process.returncode, report["done"], report["failed"]) == (code, 4, 0)
    assert (report["cut_off"], report["not_sent"]) == (2, 44)
    assert report["completion_tokens"] == 12
    assert b"Traceback" not in err


def test_without_the_package_it_says_what_to_install(fake, tmp_path):
    (tmp_path / "h11.py").write_text("raise ModuleNotFoundError('No module named h11')")
    env = environment(tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    done = subprocess.run(command(SCRIPT, fake.url), env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("jllama bench serve needs more packages: pip install 'jllama[server]'\n")
