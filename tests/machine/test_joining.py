"""How several processes begin: what flags must say, and the wait for the others."""

import ctypes
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from jllama.errors import JllamaError
from jllama.machine import joining, processes

WAIT = 60


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # sbatch's own shell: no task yet
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, False),
        ({"SLURM_STEP_ID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "two"}, False),
    ],
)
def test_a_launcher_of_several_tasks_is_seen(monkeypatch, variables, several):
    for name in ("SLURM_NTASKS", "SLURM_STEP_ID", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert joining.under_a_launcher() is several


@pytest.mark.parametrize("given", [(None, 2, 0), ("a:1", None, 0), ("a:1", 2, None), ("a:1", None, None)])
def test_some_of_the_flags_are_not_enough(given):
    with pytest.raises(JllamaError, match="all or none of them"):
        joining.start(*given)


@pytest.mark.parametrize("rank", [-1, 2, 3])
def test_a_rank_is_one_of_them(rank):
    with pytest.raises(JllamaError, match=f"--process_id={rank}: of --num_processes=2 it is one from 0 to 1"):
        joining.start("a:1", 2, rank)


@pytest.mark.parametrize("launched", [True, False])
def test_a_launcher_says_what_no_flag_does(monkeypatch, launched):
    waited = []
    monkeypatch.setattr(joining, "under_a_launcher", lambda: launched)
    monkeypatch.setattr(joining, "_awaited", lambda join, waits, say: waited.append(waits))
    joining.start(None, None, None)
    assert waited == (["waiting for the other processes"] if launched else [])


@pytest.mark.parametrize("rank", [0, 1])
def test_who_has_met_joins(monkeypatch, rank):
    done = []
    monkeypatch.setattr(joining.meeting, "listening", lambda *where: where)
    monkeypatch.setattr(joining.meeting, "resolved", lambda host: None)
    monkeypatch.setattr(joining.meeting, "lead", lambda *given: done.append(given))
    monkeypatch.setattr(joining.meeting, "follow", lambda *given: done.append(given))
    monkeypatch.setattr(joining, "_join", lambda *given: done.append(given))
    joining.start("node0:9911", 2, rank, device="cpu", marks={"--dtype": "x"})
    met = (("node0", 9911), 2) if rank == 0 else ("node0", 9911, 1)
    assert done == [(*met, {"--num_processes": "2", "--dtype": "x"}), ("node0:9911", 2, rank, "cpu")]


def test_who_joins_at_once_says_nothing():
    said, joined = [], []
    joining._awaited(lambda: joined.append(1), "waiting", said.append)
    assert (joined, said) == ([1], [])


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("no")])
def test_whatever_ends_the_wait_is_raised(error):
    def join():
        raise error

    with pytest.raises(type(error)) as raised:
        joining._awaited(join, "waiting", print)
    assert raised.value is error


def test_an_error_of_the_thread_that_joins_is_this_ones():
    def fail():
        raise JllamaError("can't")

    with pytest.raises(JllamaError, match=r"^can't$"):
        joining._awaited(fail, "waiting", print)


def test_what_is_waited_for_is_said(monkeypatch):
    monkeypatch.setattr(joining, "SOON", 0.01)
    said, told = [], threading.Event()

    def say(line):
        said.append(line)
        told.set()

    joining._awaited(lambda: told.wait(WAIT), "waiting for x", say)
    assert said == ["note: waiting for x"]


def test_nobody_comes(monkeypatch):
    monkeypatch.setattr(joining, "SOON", 0.01)
    monkeypatch.setattr(processes, "START", 0.01)
    never = threading.Event()
    with pytest.raises(joining.NobodyCameError, match=r"^waiting for x: nobody came within 0\.01 seconds$"):
        joining._awaited(lambda: never.wait(WAIT), "waiting for x", lambda line: None)
    never.set()


def test_a_signal_ends_the_wait(monkeypatch):
    """The thread that joins stands for native code, which notices none."""
    monkeypatch.setattr(joining, "SOON", 0.01)
    never = threading.Event()

    def say(line):
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            joining._awaited(lambda: never.wait(WAIT), "waiting", say)
    finally:
        signal.signal(signal.SIGINT, before)
        never.set()


def test_native_buffers_are_emptied_before_stdout_is_back(monkeypatch, capfd):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")

    def is_stderr():
        return os.fstat(1).st_ino == os.fstat(2).st_ino

    seen = []
    library = SimpleNamespace(fflush=lambda stream: seen.append((stream, is_stderr())))
    monkeypatch.setattr(joining.ctypes, "CDLL", lambda name: library)
    with joining.quiet():
        assert is_stderr()
    assert seen == [(None, True)]
    assert not is_stderr()


@pytest.mark.parametrize("nccl", [False, True])
def test_what_native_code_writes_meanwhile_is_not_the_answers(monkeypatch, capfd, nccl):
    monkeypatch.delenv("NCCL_DEBUG", raising=False)
    if nccl:
        monkeypatch.setenv("NCCL_DEBUG", "INFO")
    print("before")
    with joining.quiet():
        ctypes.CDLL(None).puts(b"native")
        os.write(1, b"raw\n")
    print("behind", flush=True)
    out, err = capfd.readouterr()
    assert out == "before\nbehind\n"
    assert sorted(err.split()) == ["native", "raw"] * nccl


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nothing tells which descriptors are open")
def test_no_descriptor_stays_open(capfd):
    before = os.listdir("/proc/self/fd")
    with joining.quiet():
        pass
    assert os.listdir("/proc/self/fd") == before
