"""What processes compare before they run a model together, and how they tell each other that they can't."""

import hashlib
import socket
import struct

import numpy as np
import pytest

from jllama.errors import JllamaError
from jllama.machine import agreement, processes
from jllama.machine.processes import END, Group


def row_of(marks, reason=b""):
    digests = [hashlib.sha256(value.encode()).digest()[:16] for value in marks.values()]
    return np.frombuffer(reason.ljust(400, b"\0") + b"".join(digests).ljust(128, b"\0"), np.uint8)


@pytest.fixture
def group_of(monkeypatch):
    """`group_of(*rows)`: process 0 of a group whose processes give these rows, its own first."""

    def make(*rows):
        def gathered(own):
            assert np.array_equal(own, rows[0])
            return np.stack(rows).astype(np.int32)

        group = Group(0, len(rows))
        monkeypatch.setattr(processes, "_group", group)
        monkeypatch.setattr(agreement, "_gathered", gathered)
        return group

    return make


def test_processes_that_run_the_same_agree(group_of):
    marks = {"model": "a", "dtype": "b"}
    group = group_of(*[row_of(marks)] * 3)
    agreement.agree(marks)
    assert not group._ended.is_set()


@pytest.mark.parametrize(
    ("other", "reason", "words"),
    [
        ({"model": "x", "dtype": "b"}, b"", "process 2 has another model than process 0: "),
        ({"model": "a", "dtype": "x"}, b"", "process 2 has another dtype than process 0: "),
        ({"model": "b", "dtype": "a"}, b"", "process 2 has another model, another dtype than process 0: "),
        ({}, "no Größe".encode(), "process 2 can't: no Größe$"),
    ],
)
def test_who_runs_something_else_or_nothing_is_named_and_all_end(group_of, other, reason, words):
    marks = {"model": "a", "dtype": "b"}
    here, there = socket.socketpair()
    group = group_of(row_of(marks), row_of(marks), row_of(other, reason))
    group._links = [here]
    with here, there:
        with pytest.raises(JllamaError, match=f"^{words}"), agreement.telling():
            agreement.agree(marks)
        assert struct.unpack("<Ii", there.recv(99)) == (4, END), "else the first to end is taken for dead"
    assert group._ended.is_set()


def test_an_error_is_told_to_those_who_would_wait(group_of):
    group = group_of(row_of({}, b"no such file"), row_of({"model": "a"}))
    with pytest.raises(JllamaError, match=r"^no such file$"), agreement.telling():
        raise JllamaError("no such file")
    assert group._ended.is_set()


def test_a_long_reason_is_cut(group_of):
    group_of(row_of({}, b"x" * 400), row_of({}))
    with pytest.raises(JllamaError, match=r"^x{999}$"), agreement.telling():
        raise JllamaError("x" * 999)


def test_once_they_agree_nobody_waits_there(group_of):
    marks = {"model": "a"}
    group = group_of(row_of(marks), row_of(marks))
    agreement.agree(marks)
    with pytest.raises(JllamaError, match=r"^later$"), agreement.telling():
        raise JllamaError("later")
    assert not group._ended.is_set()


def test_alone_one_agrees(monkeypatch):
    monkeypatch.setattr(processes, "_group", None)
    monkeypatch.setattr(agreement, "_gathered", None)
    agreement.agree({"model": "a"})
    with pytest.raises(JllamaError, match=r"^no$"), agreement.telling():
        raise JllamaError("no")
