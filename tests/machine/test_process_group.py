"""What processes that hold one model together say to each other: along a pair of sockets, in this process."""

import contextlib
import socket
import struct
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.cli import command_line
from jllama.errors import JllamaError
from jllama.machine import processes
from jllama.machine.processes import END, Group

WAIT = 60


@pytest.fixture
def pair(monkeypatch):
    """Process 0 and process 1 with a connection; a lost one would end this process."""
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(WAIT)
    leader, follower = Group(0, 2), Group(1, 2)
    leader._links, follower._links = [ends[0]], [ends[1]]
    yield leader, follower
    for end in ends:
        end.close()
    assert codes == []


def listening(group):
    thread = threading.Thread(target=group._listen, args=(group._links[0],), daemon=True)
    thread.start()
    return thread


def test_plans_come_as_they_were_told_and_signs_of_life_are_none(pair):
    leader, follower = pair
    thread = listening(follower)
    plans = [np.arange(n, dtype=np.int64) - 3 for n in (1, 5, 30_000)]
    for plan in plans:
        leader._send(leader._links[0], b"")
        leader.tell(plan)
    for plan in plans:
        heard = follower.hear()
        assert heard.dtype == np.int32
        assert heard.tolist() == plan.tolist()
    assert not follower._ended.is_set()
    leader.end()
    assert follower.hear().tolist() == [END]
    thread.join(WAIT)
    assert not thread.is_alive()
    assert follower._ended.is_set()
    leader.end()  # once more says nothing


def test_one_that_follows_and_ends_tells_nobody_that_all_is_over(pair, monkeypatch):
    """Its connection ends: process 0 sees that it is gone."""
    leader, follower = pair
    left = []
    monkeypatch.setattr("jax.distributed.shutdown", lambda: left.append(1))
    follower.end()
    assert leader._links[0].recv(99) == b""
    assert left == [1]
    assert follower._ended.is_set()


def test_all_others_are_told():
    pairs = [socket.socketpair() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for here, there in pairs:
            stack.enter_context(here)
            stack.enter_context(there)
        leader = Group(0, 4)
        leader._links = [here for here, _ in pairs]
        leader.tell(np.array([7, 8]))
        for _, there in pairs:
            assert struct.unpack("<I2i", there.recv(99)) == (8, 7, 8)


def test_signs_of_life_go_out_until_the_end(pair, monkeypatch):
    monkeypatch.setattr(processes, "BEAT", 0.01)
    monkeypatch.setattr(processes, "SILENCE", 3600.0)
    leader, follower = pair
    thread = threading.Thread(target=leader._beat, daemon=True)
    thread.start()
    assert processes._exactly(follower._links[0], 12) == bytes(12)
    leader._ended.set()
    thread.join(WAIT)
    assert not thread.is_alive()


@pytest.mark.parametrize("sizes", [(5,), (1, 4), (2, 1, 2), (1,) * 5])
def test_what_comes_in_parts_is_put_together(sizes):
    parts, asked = [bytes(range(size)) for size in sizes], []

    def recv(most):
        asked.append(most)
        return parts[len(asked) - 1]

    assert processes._exactly(SimpleNamespace(recv=recv), 5) == b"".join(parts)
    assert asked == [5 - sum(sizes[:at]) for at in range(len(sizes))], "nothing of what follows is taken"


def test_a_connection_that_ends_amid_a_plan_is_lost(pair):
    leader, follower = pair
    leader._links[0].sendall(b"abc")
    leader._links[0].close()
    with pytest.raises(ConnectionError):
        processes._exactly(follower._links[0], 5)


@pytest.mark.parametrize(
    ("rank", "lost", "error", "words"),
    [
        (0, 1, ConnectionError(), "error: process 2 of 4 has ended: process 0 ends too\n"),
        (0, 0, TimeoutError(), "error: process 1 of 4 says nothing any more: process 0 ends too\n"),
        (3, 0, OSError(), "error: process 0 of 4 has ended: process 3 ends too\n"),
    ],
)
def test_who_is_lost_is_named_and_ends_this_process(monkeypatch, capsys, rank, lost, error, words):
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    group = Group(rank, 4)
    group._links = [object(), object(), object()] if rank == 0 else [object()]
    group._lost(group._links[lost], error)
    assert (codes, capsys.readouterr().err) == ([3], words)
    group._ended.set()
    group._lost(group._links[lost], error)
    assert (codes, capsys.readouterr().err) == ([3], "")


def test_silence_is_noticed(pair, monkeypatch):
    _, follower = pair
    lost = threading.Event()
    monkeypatch.setattr(
        follower, "_lost", lambda link, error: lost.set() if type(error) is TimeoutError else None
    )
    follower._links[0].settimeout(0.01)
    listening(follower)
    assert lost.wait(WAIT)


def test_a_link_waits_no_longer_than_the_silence_allowed(monkeypatch):
    here, there = socket.socketpair()
    group = Group(1, 2)
    monkeypatch.setattr(group, "_connected", lambda: here)
    monkeypatch.setattr(group, "_listen", lambda link: None)
    monkeypatch.setattr(group, "_beat", lambda: None)
    group.connect()
    assert here.gettimeout() == processes.SILENCE > 2 * processes.BEAT
    for end in (here, there):
        end.close()


def test_who_says_the_right_word_is_let_in_by_rank(monkeypatch):
    """Strangers, and who says nothing whole, are not; the order of arrival does not matter."""

    def announce(port, token):
        def call(data):
            link = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
            link.sendall(data)
            links.append(link)

        hello = [struct.pack("<16sI", word, rank) for word, rank in ((bytes(16), 1), (token, 2), (token, 1))]
        for data in (hello[0], b"GET / HTTP", hello[1], hello[2]):
            call(data)
            if data == b"GET / HTTP":
                links[-1].shutdown(socket.SHUT_WR)

    links = []
    monkeypatch.setattr(processes, "_announce", announce)
    group = Group(0, 3)
    accepted = group._accepted()
    peers = [link.getpeername() for link in accepted]
    assert peers == [links[3].getsockname(), links[2].getsockname()]
    assert all(link.gettimeout() == processes.SILENCE for link in accepted)
    for link in (*accepted, *links):
        link.close()


@pytest.mark.parametrize("error", [BrokenPipeError, TimeoutError, OSError])
def test_who_tells_one_that_has_gone_goes_on(error):
    """Whoever listens to it ends the process, if that is to end."""
    told = []

    def fails(data):
        raise error

    group = Group(0, 3)
    group._links = [SimpleNamespace(sendall=fails), SimpleNamespace(sendall=told.append)]
    group.tell(np.array([7], np.int32))
    assert told == [struct.pack("<Ii", 4, 7)]


@pytest.mark.parametrize("rank", [0, 1])
def test_process_0_goes_when_all_others_have_gone(monkeypatch, rank):
    noted = []
    monkeypatch.setattr("jax.distributed.shutdown", lambda: noted.append("shut down"))
    group = Group(rank, 3)
    group._listeners = [SimpleNamespace(join=noted.append)] * 2
    group._links = [SimpleNamespace(shutdown=noted.append, sendall=lambda data: noted.append("told"))]
    group.end()
    if rank == 0:
        assert noted == ["told", socket.SHUT_WR, processes.END_SECONDS, processes.END_SECONDS]
    else:
        assert noted == ["shut down", socket.SHUT_WR]


def test_each_address_is_tried(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, token = server.getsockname()[1], bytes(range(16))
        monkeypatch.setattr(
            processes, "_announced", lambda: (["no.such.host.invalid", "127.0.0.1"], port, token)
        )
        link = Group(5, 9)._connected()
        other, _ = server.accept()
        assert processes._exactly(other, 20) == token + struct.pack("<I", 5)
        for end in (link, other):
            end.close()
    monkeypatch.setattr(processes, "_announced", lambda: (["a.invalid", "b.invalid"], port, token))
    with pytest.raises(
        JllamaError, match=f"process 5 can't reach process 0 at a.invalid or b.invalid, port {port}"
    ):
        Group(5, 9)._connected()


@pytest.mark.parametrize("here", ["node1", "node2"])
def test_where_process_0_is_to_be_found(monkeypatch, here):
    """On its own machine by the loopback, too: its name may not be known there."""
    kept = []
    monkeypatch.setattr(processes, "_shared", lambda data: kept.append(data.ljust(256, b"\0")) or kept[0])
    monkeypatch.setattr("socket.gethostname", lambda: "node1")
    processes._announce(4321, bytes(range(16)))
    monkeypatch.setattr("socket.gethostname", lambda: here)
    hosts = ["127.0.0.1", "node1"] if here == "node1" else ["node1"]
    assert processes._announced() == (hosts, 4321, bytes(range(16)))


@pytest.mark.parametrize(("joined", "waited"), [(None, []), ("a group", [processes.SETTLE])])
def test_an_error_waits_for_who_may_have_ended(monkeypatch, joined, waited):
    slept = []
    monkeypatch.setattr(processes, "_group", joined)
    monkeypatch.setattr(processes.time, "sleep", slept.append)
    processes.settle()
    assert slept == waited


def test_an_error_of_a_command_settles_first(monkeypatch, capsys):
    order = []
    monkeypatch.setattr(command_line.parallel, "settle", lambda: order.append("settled"))
    monkeypatch.setattr(command_line, "explanation", lambda error: order.append(str(error)))
    monkeypatch.setattr(command_line, "_wants_help", lambda program: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        command_line._guarded(None)
    assert order == ["settled", "integer division or modulo by zero"]


def test_signs_of_life_are_given_from_the_beginning(monkeypatch):
    begun = threading.Event()
    monkeypatch.setattr(processes.Group, "_accepted", lambda group: [])
    monkeypatch.setattr(processes.Group, "_beat", lambda group: begun.set())
    processes.Group(0, 1).connect()
    assert begun.wait(WAIT)
