"""`jllama serve`: what it says, what it refuses, and how it ends."""

import contextlib
import re
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.scripts_helpers import ROOT, assert_explained, command, environment

WAIT = 300


@pytest.fixture(scope="module")
def tiny_dir(instruct_dir):
    return instruct_dir


class Process:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.said = process, ""
        while not (found := re.search(r"http://\S+(?= is the chat page)", self.said)):
            line = process.stderr.readline()
            assert line, self.said
            self.said += line
        self.url = found[0]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self.said += self.process.stderr.read()  # `communicate` forgets what was read ahead
        return self.process.wait(WAIT)


@contextlib.contextmanager
def serving(tmp_path, model, *flags: str, limits: tuple[int, int] | None = None) -> Iterator[Process]:
    """`limits`: soft and hard, of open files."""
    arguments = command("serve.py", str(model), "--port=0", "--slots=2", "--nowarm_up", *flags)
    if limits is not None:
        arguments = ["sh", "-c", f'ulimit -Sn {limits[0]}; ulimit -Hn {limits[1]}; exec "$@"', "", *arguments]
    process = subprocess.Popen(
        arguments, env=environment(tmp_path / "cache"), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        yield Process(process)
    finally:
        process.kill()
        process.wait(WAIT)
        process.stderr.close()


def test_it_says_where_and_what_it_is_and_ends_well(tmp_path, tiny_dir):
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    with serving(
        tmp_path, tiny_dir, f"--api_key_file={keys}", "--api_key=three", "--temperature=0"
    ) as server:
        assert "2 slots of 256 tokens" in server.said
        assert "bfloat16" in server.said
        for key in ("one", "two", "three"):
            listed = httpx2.get(f"{server.url}/v1/models", headers={"X-Api-Key": key}).json()
            assert [one["id"] for one in listed["data"]] == ["instruct"]
        assert httpx2.get(f"{server.url}/v1/models").status_code == 401
        assert server.end(signal.SIGTERM) == 0
        assert "Traceback" not in server.said


def test_ctrl_c_ends_it_too(tmp_path, tiny_dir):
    with serving(tmp_path, tiny_dir, "--alias=a", "--alias=b", "--host=127.0.0.1") as server:
        listed = httpx2.get(f"{server.url}/v1/models").json()["data"]
        assert [one["id"] for one in listed] == ["a", "b"]
        assert server.end(signal.SIGINT) == 130
        assert "Traceback" not in server.said


@pytest.mark.parametrize(
    ("flags", "hard", "few"),
    [((), 1024 + 64 + 2, False), ((), 1024 + 64 + 1, True), (("--max_queue=8",), 128, False)],
)
def test_it_takes_as_many_connections_as_the_system_allows(tmp_path, tiny_dir, flags, hard, few):
    with serving(tmp_path, tiny_dir, *flags, limits=(100, hard)) as server:
        assert httpx2.get(f"{server.url}/health").status_code == 200
        assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        assert server.end(signal.SIGTERM) == 0
        told = f"the system's limit of open files leaves {hard - 64} connections"
        assert (told in server.said, "open files" in server.said) == (few, few)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--temperature=-1", "temperature=-1.0 must be a number from 0"),
        ("--top_p=7", "top_p=7.0 must be a number"),
        ("--alias=", "--alias=: give a name"),
        ("--alias= ", "--alias= : give a name"),
        ("--allowed_host=http://llm.example.org/", "give a name alone, such as llm.example.org"),
        ("--allowed_host=llm.example.org:8443", "give a name alone"),
        ("--allowed_host=", "give a name alone"),
        ("--cors_origin=page.example", "give an origin such as https://page.example"),
        ("--cors_origin=https://page.example/", "give an origin such as"),
    ],
)
def test_what_would_fail_later_is_said_before_the_model_is_loaded(server, tmp_path, flag, words):
    assert_explained(server.run("serve.py", str(tmp_path / "nowhere"), "--port=0", flag), words)


def test_names_origins_and_keys_as_they_are_written(tmp_path, tiny_dir):
    keys = tmp_path / "keys"
    keys.write_text("\n  one key \r\nanother\n\n")
    flags = ["--cors_origin=https://page.example:8443", "--cors_origin=tauri://localhost", "--allowed_host=*"]
    flags += [f"--api_key_file={keys}", "--alias=my model", "--cors_origin=*", "--cors_origin=null"]
    with serving(tmp_path, tiny_dir, *flags) as server:
        for key, status in (("one key", 200), ("another", 200), ("one", 401), ("key", 401)):
            assert httpx2.get(f"{server.url}/v1/models", headers={"X-Api-Key": key}).status_code == status
        assert server.end(signal.SIGTERM) == 0
        assert "running requests" not in server.said


def test_what_it_cannot_do_is_said_in_a_line(server, tmp_path, tiny_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = server.run("serve.py", str(tiny_dir), f"--port={port}")
        assert_explained(outcome, f"port {port} is in use|--port")
        assert outcome.err.count("\n") == 1
    assert_explained(
        server.run("serve.py", str(tiny_dir), "--port=0", "--host=no.such.host.invalid"), "--host=no"
    )
    assert_explained(server.run("serve.py", str(tiny_dir), "--port=0", "--host=203.0.113.1"), "cannot listen")
    assert_explained(server.run("serve.py", str(tiny_dir), "--port=0", "--api_key="), "--api_key= is empty")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert_explained(
        server.run("serve.py", str(tiny_dir), "--port=0", f"--api_key_file={empty}"), "holds no key"
    )
    assert_explained(
        server.run("serve.py", str(tiny_dir), "--port=0", "--max_seq_len=9999"), "context of 256"
    )
    assert_explained(server.run("serve.py", str(tmp_path / "nowhere"), "--port=0"), "nowhere")
