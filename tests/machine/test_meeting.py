"""How processes meet before JAX's runtime joins them: on threads of this process."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jllama.errors import JllamaError
from jllama.machine import meeting

MARKS = {"--num_processes": "3", "--tensor_parallel": "4"}
HOST, WAIT = "127.0.0.1", 60


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(meeting, "_PAUSE", 0.001)
    monkeypatch.setattr(meeting, "_wait_for_service", lambda host, port: None)
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)


@pytest.fixture
def server():
    with socket.create_server((HOST, 0)) as server:
        yield server


def outcome(run, *given):
    """What it ends with: None, or an error's text."""
    try:
        return run(*given)
    except JllamaError as error:
        return str(error)


@pytest.fixture
def meet(server):
    """`meet(count, *calls)`: the outcome of process 0, and of each (rank, marks), in the order of arrival."""

    def run(count, *calls):
        port, rest, seen = server.getsockname()[1], [], []
        let_in = meeting._let_in

        def noted(link, links, marks):
            reason = let_in(link, links, marks)
            seen.append(reason)
            arrived.release()
            return reason

        arrived = threading.Semaphore(0)
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(calls) + 1) as pool:
            patch.setattr(meeting, "_let_in", noted)
            first = pool.submit(outcome, meeting.lead, server, count, MARKS)
            for call in calls:
                rest.append(pool.submit(outcome, meeting.follow, HOST, port, *call))
                assert arrived.acquire(timeout=WAIT)
            return first.result(WAIT), [other.result(WAIT) for other in rest]

    return run


def test_all_come_in_any_order(meet):
    assert meet(3, (2, MARKS), (1, MARKS)) == (None, [None, None])


def test_a_second_one_of_a_number_is_sent_away_and_the_others_go_on(meet):
    twice = "process 2 is there already: give each process another --process_id"
    assert meet(3, (2, MARKS), (2, MARKS), (1, MARKS)) == (None, [None, twice, None])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--num_processes": "4"}, "another --num_processes (4, not 3)"),
        ({"--tensor_parallel": "2"}, "another --tensor_parallel (2, not 4)"),
        (
            {"--num_processes": "2", "--tensor_parallel": "2"},
            "another --num_processes (2, not 3), another --tensor_parallel (2, not 4)",
        ),
    ],
)
def test_other_flags_are_told_to_all(meet, change, words):
    words = f"process 1 has {words} than process 0: give all the same"
    assert meet(3, (2, MARKS), (1, MARKS | change)) == (words, [words, words])


def test_who_has_waited_and_ended_may_come_again(server):
    port = server.getsockname()[1]
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(outcome, meeting.lead, server, 3, MARKS)
        with socket.create_connection((HOST, port)) as ended:
            ended.sendall(b'jllama [1, {"--num_processes": "3", "--tensor_parallel": "4"}]\n')
        rest = [pool.submit(outcome, meeting.follow, HOST, port, rank, MARKS) for rank in (1, 2)]
        assert [first.result(WAIT), *(other.result(WAIT) for other in rest)] == [None] * 3


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"jllama {}\n", b"jllama [1, 2]\n", b"jllama [[], {}]\n", b"jllama", b""],
)
def test_strangers_are_nobody(server, data):
    port = server.getsockname()[1]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(outcome, meeting.lead, server, 2, MARKS)
        with socket.create_connection((HOST, port)) as stranger:
            stranger.sendall(data)
            stranger.shutdown(socket.SHUT_WR)
            assert pool.submit(outcome, meeting.follow, HOST, port, 1, MARKS).result(WAIT) is None
        assert first.result(WAIT) is None


def test_who_did_not_come_is_named(server, monkeypatch):
    monkeypatch.setattr(meeting, "START", 0)
    words = "of 3 processes these did not come within 0 seconds: 1, 2"
    assert outcome(meeting.lead, server, 3, MARKS) == words
    assert server.fileno() == -1, "closed: JAX's service is to take its place"


def test_process_0_that_does_not_come(server, monkeypatch):
    monkeypatch.setattr(meeting, "START", 0)
    port = server.getsockname()[1]
    server.close()
    words = f"process 0 did not come to {HOST}, port {port}, within 0 seconds"
    assert outcome(meeting.follow, HOST, port, 1, MARKS) == words


def test_another_program_at_the_address(server):
    """JAX's own service, too, where all have met before."""
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(outcome, meeting.follow, HOST, server.getsockname()[1], 1, MARKS)
        link, _ = server.accept()
        with link:
            link.sendall(b"\0\0\x12\x04\0\0\0\0\0\0")
            assert "is no process 0 that waits: either all of its processes" in call.result(WAIT)


@pytest.mark.parametrize(
    "given",
    [
        "nonsense",
        "",
        ":1",
        "host:",
        "host:x",
        "host:0",
        "host:65536",
        "host:-1",
        "host:\u0661",
        "http://host:1",
        "host/:1",
        "a host:1",
        "[]:1",
    ],
)
def test_an_address_has_a_host_and_a_port(given):
    with pytest.raises(JllamaError, match=r"^--x=.*: give HOST:PORT of process 0, without http://$"):
        meeting.split(given, "--x")


@pytest.mark.parametrize("given", ["::1:9917", "fe80::2:1"])
def test_an_ipv6_address_without_brackets(given):
    host, _, port = given.rpartition(":")
    with pytest.raises(JllamaError) as raised:
        meeting.split(given, "--x")
    assert str(raised.value) == f"--x={given}: an IPv6 address stands in brackets, [{host}]:{port}"


@pytest.mark.parametrize(
    ("given", "found"),
    [("h:1", ("h", 1)), ("10.0.0.1:9911", ("10.0.0.1", 9911)), ("[::1]:65535", ("::1", 65535))],
)
def test_addresses(given, found):
    assert meeting.split(given, "--x") == found


def test_a_name_that_is_not_known(monkeypatch):
    def unknown(*asked, **how):
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(JllamaError, match=r"^--coordinator_address: 'h' is not known here: not known$"):
        meeting.resolved("h")


def test_process_0_needs_its_port(server, monkeypatch):
    """Native code would crash there, and let two of them listen together."""
    port = server.getsockname()[1]
    words = f"^process 0 can't listen on port {port} of --coordinator_address: Address already in use "
    with pytest.raises(JllamaError, match=words):
        meeting.listening(HOST, port)
    server.close()
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", f"{HOST}:{port}")
    with meeting.listening("elsewhere", 1) as other:
        assert other.getsockname() == (HOST, port)
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS")
    with meeting.listening(HOST, port) as own:
        assert own.getsockname()[1] == port


def test_process_0_listens_on_its_own_machine():
    with pytest.raises(JllamaError, match=r"^--coordinator_address: 192\.0\.2\.1 is not this machine, "):
        meeting.listening("192.0.2.1", 1)
