"""Ctrl-C, SIGTERM and closed pipes: what came is on stdout, the exit code says it, and no traceback does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jllama.cli import interrupts
from tests.support.scripts_helpers import PATIENCE, ROOT, command, environment
from tests.support.tiny_checkpoint import write_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("interrupts")
    write_tiny_model(place / "model", max_position_embeddings=10**6)
    return place


@pytest.fixture(autouse=True)
def heeded():
    """A shell lets what it starts in the background ignore Ctrl-C, and children inherit that from pytest."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def begin(place):
    """Starts a generation that takes far longer than the test."""
    started = []

    def run(*arguments):
        flags = [f"--model={place / 'model'}", "--prompt=x", "--dtype=float32", "--ignore_eos", *arguments]
        flags += ["--max_seq_len=200000", "--max_new_tokens=199000", "--stop=never", "--logit_bias=65=1000"]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        line = command("generate.py", *flags, warnings="default")
        started.append(subprocess.Popen(line, env=environment(place / "cache"), cwd=ROOT, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        with process:
            pass


def interrupt(process, number=signal.SIGINT):
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out.decode(), err.decode()


def wait_for_handler(process):
    """Until the script, not the interpreter before it, answers to signals."""
    mask, wanted = 0, sum(1 << number - 1 for number in (signal.SIGINT, signal.SIGALRM, signal.SIGTERM))
    while mask & wanted != wanted:
        assert process.poll() is None
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = int(status.partition("SigCgt:")[2].split()[0], 16)
        time.sleep(0.005)


def wait_for_work(process, seconds):
    """Until it has computed for so many seconds more: a busy machine only makes it take longer."""
    begin = cpu_seconds(process)
    while cpu_seconds(process) < begin + seconds:
        assert process.poll() is None
        time.sleep(0.01)


def cpu_seconds(process):
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_early_end_keeps_what_came(begin, number, expected):
    process = begin()
    first = process.stdout.read(1).decode()
    code, rest, err = interrupt(process, number)
    assert (code, err) == (expected, "")
    text = first + rest
    assert text.endswith("\n")
    assert len(set(text[:-1])) == 1


def test_ctrl_c_still_gives_the_object(begin):
    process = begin("--json", "--verbose")
    assert b" jllama " in process.stderr.readline()
    wait_for_work(process, 3)
    code, out, err = interrupt(process)
    assert (code, err) == (130, "")
    report = json.loads(out)
    assert report["finish_reason"] == "interrupted"
    assert report["generated_tokens"] == len(report["token_ids"]) == len(report["text"])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGALRM, 130)]
)
def test_amid_an_import_the_end_is_quiet_and_its_code_right(monkeypatch, number, code):
    monkeypatch.setattr(interrupts, "_raised", [])
    frames = None
    for file in ("numpy/__init__.py", "<frozen importlib._bootstrap>", "model.py"):
        frames = SimpleNamespace(f_code=SimpleNamespace(co_filename=file), f_back=frames)
    left = []
    monkeypatch.setattr(os, "_exit", lambda code: left.append(code) or sys.exit())
    monkeypatch.setattr(interrupts.compiling, "end", lambda: None)
    with pytest.raises(SystemExit):
        interrupts._raise_or_leave(number, frames)
    assert left == [code]
    with pytest.raises(SystemExit if code == 143 else KeyboardInterrupt):
        interrupts._raise_or_leave(number, frames.f_back.f_back)


@pytest.mark.parametrize("seconds", [0, 0.4, 0.8, 1.2, 1.8, 2.4])
def test_ctrl_c_while_it_starts(begin, seconds):
    process = begin()
    wait_for_handler(process)
    wait_for_work(process, seconds)
    code, _, err = interrupt(process)
    assert (code, err) == (130, "")


def test_a_closed_pipe(begin):
    process = begin()
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=PATIENCE), err) == (141, b"")


@pytest.mark.parametrize("warnings", ["default", "error"])
def test_a_file_that_was_opened_and_is_nobodys_yet_is_not_spoken_of(warnings):
    """As where the signal comes between `open` and its `with`."""
    program = """
import os, signal
from jllama.cli import interrupts
interrupts.catch()
try:
    [open(os.devnull), os.kill(os.getpid(), signal.SIGINT)]
except KeyboardInterrupt:
    interrupts.leave(interrupts.EXIT_CODE)
"""
    line = [sys.executable, "-W", warnings, "-c", program]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize(("error", "code"), [("KeyboardInterrupt", 130), ("SystemExit(143)", 143)])
def test_what_a_destructor_swallows_still_ends_the_script(error, code):
    program = f"""
import sys, time
from jllama.cli import interrupts
class Dying:
    def __del__(self):
        raise {error}
interrupts.catch()
try:
    Dying()
    time.sleep(3600)
except KeyboardInterrupt:
    interrupts.leave(interrupts.EXIT_CODE)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (code, b"")
