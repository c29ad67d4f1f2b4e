"""Before JAX's runtime joins several processes: they meet at its address and see whether they fit together.

JAX's native code aborts where two processes have one number, and does not notice that one expects more of
them than another. Process 0 listens at the address until all are there; then JAX's own service takes it over.
"""

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

from jllama.errors import JllamaError
from jllama.machine.processes import SILENCE, START

_WORD = b"jllama "  # begins each line; JAX's service speaks HTTP/2
_LINE = 4096  # bytes
_MOMENT = 2.0  # seconds in which who has called must speak
_PAUSE = 0.05  # seconds between two calls


def split(address: str, flag: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 host without its brackets.

    Raises:
      JllamaError: it has another form.
    """
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    sound = port.isascii() and port.isdecimal() and 0 < int(port) < 2**16
    if not (bare and colon and sound) or "/" in host or any(map(str.isspace, host)):
        raise JllamaError(f"{flag}={address}: give HOST:PORT of process 0, without http://")
    if ":" in bare and bare == host:
        raise JllamaError(f"{flag}={address}: an IPv6 address stands in brackets, [{host}]:{port}")
    return bare, int(port)


def resolved(host: str) -> list[Any]:
    """The host's addresses, as `socket.getaddrinfo` gives them.

    Raises:
      JllamaError: it is not known here.
    """
    try:
        return socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise JllamaError(f"--coordinator_address: {host!r} is not known here: {reason}") from None


def listening(host: str, port: int) -> socket.socket:
    """Process 0's server, on all addresses of this machine or where JAX_COORDINATOR_BIND_ADDRESS says.

    Raises:
      JllamaError: the host is not this machine, or the port is taken.
    """
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    if bind:
        address, port = split(bind, "JAX_COORDINATOR_BIND_ADDRESS")
        return _server(address, port, ":" in address)
    if not any(map(_is_here, resolved(host))):
        raise JllamaError(
            f"--coordinator_address: {host} is not this machine, and process 0 is to listen there: "
            "give an address of process 0's machine"
        )
    return _server("", port, socket.has_dualstack_ipv6())


def _server(address: str, port: int, six: bool) -> socket.socket:
    family = socket.AF_INET6 if six else socket.AF_INET
    both = six and not address.strip(":") and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((address, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise JllamaError(
            f"process 0 can't listen on port {port} of --coordinator_address: {reason} "
            "(is another process 0 there already?)"
        ) from None


def _is_here(found: Any) -> bool:
    family, kind, _, _, address = found
    with contextlib.suppress(OSError), socket.socket(family, kind) as trial:
        trial.bind(address)
        return True
    return False


def lead(server: socket.socket, count: int, marks: Mapping[str, str]) -> None:
    """Process 0 waits for all others, and closes its server.

    Args:
      server: `listening`.
      count: processes.
      marks: what must be the same in all of them, by its name; `--num_processes` among them.

    Raises:
      JllamaError: one has something else, which all are told; or not all came in time.
    """
    links: dict[int, socket.socket] = {}
    reason, until = "", time.monotonic() + START
    with server:
        while len(links) < count - 1 and not reason:
            server.settimeout(max(until - time.monotonic(), 0.001))
            try:
                link, _ = server.accept()
            except TimeoutError:
                reason = _missing(count, links)
                break
            for rank in [rank for rank, other in links.items() if _gone(other)]:
                links.pop(rank).close()
            reason = _let_in(link, links, marks)
    for link in links.values():
        _answer(link, reason)
    if reason:
        raise JllamaError(reason)


def _missing(count: int, links: Mapping[int, Any]) -> str:
    absent = ", ".join(str(rank) for rank in range(1, count) if rank not in links)
    return f"of {count} processes these did not come within {START} seconds: {absent}"


def _let_in(link: socket.socket, links: dict[int, socket.socket], marks: Mapping[str, str]) -> str:
    """Takes a caller among the others or sends it away; the reason if no process can go on."""
    said = _line(link, _MOMENT)
    try:
        rank, theirs = json.loads(said or "")
        if not (type(rank) is int and rank > 0):
            raise ValueError(rank)
        differ = [
            f"{name} ({theirs.get(name)}, not {own})"
            for name, own in marks.items()
            if theirs.get(name) != own
        ]
    except (ValueError, TypeError, AttributeError):
        link.close()  # a stranger
        return ""
    if differ:
        reason = f"process {rank} has another {', another '.join(differ)} than process 0: give all the same"
        _answer(link, reason)
        return reason
    if rank in links:
        _answer(link, f"process {rank} is there already: give each process another --process_id")
        return ""
    links[rank] = link
    return ""


def _gone(link: socket.socket) -> bool:
    """Whether who waited has ended."""
    with contextlib.suppress(OSError):
        return bool(select.select([link], [], [], 0)[0]) and not link.recv(1, socket.MSG_PEEK)
    return True


def _answer(link: socket.socket, reason: str) -> None:
    with link, contextlib.suppress(OSError):
        link.sendall(_WORD + json.dumps(reason).encode() + b"\n")


def follow(host: str, port: int, rank: int, marks: Mapping[str, str]) -> None:
    """Another process calls process 0, and waits until all are there and JAX's service is.

    Raises:
      JllamaError: process 0 did not come in time, or says why they can't run together.
    """
    until, said = time.monotonic() + START, None
    while said is None:
        with _called(host, port, until) as link, contextlib.suppress(OSError):
            link.sendall(_WORD + json.dumps([rank, dict(marks)]).encode() + b"\n")
            said = _line(link, START + SILENCE)
        time.sleep(_PAUSE)
    try:
        reason = json.loads(said)
    except ValueError:
        raise JllamaError(
            f"at {host}, port {port}, is no process 0 that waits: either all of its processes are there "
            "already (give each process another --process_id), or another program has that port"
        ) from None
    if reason:
        raise JllamaError(str(reason))
    _wait_for_service(host, port)


def _wait_for_service(host: str, port: int) -> None:
    """JAX's client, called before its service is there, would call again a second later."""
    _called(host, port, time.monotonic() + START).close()


def _called(host: str, port: int, until: float) -> socket.socket:
    while True:
        with contextlib.suppress(OSError):
            return socket.create_connection((host, port), timeout=_MOMENT)
        if time.monotonic() > until:
            raise JllamaError(f"process 0 did not come to {host}, port {port}, within {START} seconds")
        time.sleep(_PAUSE)


def _line(link: socket.socket, seconds: float) -> str | None:
    """What stands in the next line; empty if it is not one of ours, None if the connection ends before."""
    link.settimeout(seconds)
    data = b""
    with contextlib.suppress(OSError):
        while not data.endswith(b"\n") and len(data) < _LINE:
            if not (part := link.recv(_LINE)):
                break
            data += part
            if not data.startswith(_WORD[: len(data)]):
                return ""
    if not data.endswith(b"\n"):
        return None
    return data.removeprefix(_WORD).decode(errors="replace")
