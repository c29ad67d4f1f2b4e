"""Several processes that run one model together: process 0 leads, the others do as it says.

JAX's own runtime (`jax.distributed`) joins their devices. Beside it each process keeps a connection to
process 0: plans go along it, and its end is how the others learn that a process has died.
"""

import atexit
import contextlib
import os
import queue
import secrets
import socket
import struct
import sys
import threading
import time

import numpy as np

from jllama.errors import JllamaError

SILENCE = 20.0  # seconds after which a process that says nothing is taken for dead
BEAT = 4.0  # seconds between two signs of life
START = 120  # seconds for all processes to appear
END_SECONDS = 15  # for all to end
SETTLE = 2  # seconds in which the end of a process is known to all
END = -1  # a plan: nothing follows
_HELLO = struct.Struct("<16sI")
_SIZE = struct.Struct("<I")


class Group:
    """This process's place among the others, and its connections."""

    def __init__(self, rank: int, count: int) -> None:
        """`rank`: 0 leads; `count`: processes."""
        self.rank, self.count = rank, count
        self._links: list[socket.socket] = []
        self._listeners: list[threading.Thread] = []
        self._plans: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.agreed = False  # on what to run, or that it can't be

    def connect(self) -> None:
        """Joins everyone to process 0. All call it together.

        Raises:
          JllamaError: process 0 can't be reached.
        """
        self._links = self._accepted() if self.rank == 0 else [self._connected()]
        for link in self._links:
            link.settimeout(SILENCE)
            self._listeners.append(threading.Thread(target=self._listen, args=(link,), daemon=True))
            self._listeners[-1].start()
        threading.Thread(target=self._beat, daemon=True).start()

    def tell(self, words: np.ndarray) -> None:
        """Sends a plan, int32 `[n]`, to all others."""
        data = np.ascontiguousarray(words, np.int32).tobytes()
        with self._lock:
            for link in self._links:
                self._send(link, data)

    def hear(self) -> np.ndarray:
        """The next plan, int32 `[n]`, of process 0; waits for it."""
        return np.frombuffer(self._plans.get(), np.int32)

    def end(self) -> None:
        """Tells the others that nothing follows or, of one that follows and fails, that it is gone.

        Process 0 goes last: JAX's service lives there, and ends whoever still talks to it.
        """
        if not self._ended.is_set():
            self._ended.set()
            if self.rank == 0:
                self.tell(np.array([END], np.int32))
        if self.rank > 0:
            import jax

            with contextlib.suppress(Exception):
                jax.distributed.shutdown()
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_WR)
        for listener in self._listeners if self.rank == 0 else ():
            listener.join(END_SECONDS)

    def part(self) -> None:
        """All end, each for a reason that it has said itself. All call it together."""
        self._ended.set()
        self.tell(np.array([END], np.int32))

    def _accepted(self) -> list[socket.socket]:
        with socket.create_server(("", 0), backlog=self.count) as server:
            server.settimeout(START)
            token = secrets.token_bytes(16)
            links: dict[int, socket.socket] = {}
            _announce(server.getsockname()[1], token)
            while len(links) < self.count - 1:
                link, _ = server.accept()
                link.settimeout(SILENCE)
                with contextlib.suppress(OSError, struct.error):
                    said, rank = _HELLO.unpack(_exactly(link, _HELLO.size))
                    if secrets.compare_digest(said, token):
                        links[rank] = link
                        continue
                link.close()  # a stranger's
            return [links[rank] for rank in sorted(links)]

    def _connected(self) -> socket.socket:
        hosts, port, token = _announced()
        for host in hosts:
            with contextlib.suppress(OSError):
                link = socket.create_connection((host, port), timeout=SILENCE)
                link.sendall(_HELLO.pack(token, self.rank))
                return link
        raise JllamaError(f"process {self.rank} can't reach process 0 at {' or '.join(hosts)}, port {port}")

    def _send(self, link: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):  # whoever listens to it learns of its end, too
            link.sendall(_SIZE.pack(len(data)) + data)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._lock:
                for link in self._links:
                    self._send(link, b"")

    def _listen(self, link: socket.socket) -> None:
        try:
            while True:
                (size,) = _SIZE.unpack(_exactly(link, _SIZE.size))
                if not size:
                    continue
                data = _exactly(link, size)
                if data == np.array([END], np.int32).tobytes():
                    self._ended.set()
                self._plans.put(data)
        except OSError as error:
            self._lost(link, error)

    def _lost(self, link: socket.socket, error: OSError) -> None:
        """Ends this process, wherever its threads are, unless all are done."""
        if self._ended.is_set():
            return
        who = 1 + self._links.index(link) if self.rank == 0 else 0
        why = "says nothing any more" if isinstance(error, TimeoutError) else "has ended"
        print(f"error: process {who} of {self.count} {why}: process {self.rank} ends too", file=sys.stderr)
        sys.stderr.flush()
        os._exit(3)


def _exactly(link: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = link.recv(size - len(parts))
        if not part:
            raise ConnectionError("closed")
        parts += part
    return parts


def _announce(port: int, token: bytes) -> None:
    """Process 0's address for all others, by JAX's devices."""
    name = socket.gethostname().encode()[:200]
    _shared(struct.pack("<I16s", port, token) + name)


def _announced() -> tuple[list[str], int, bytes]:
    data = _shared(b"")
    port, token = struct.unpack("<I16s", data[:20])
    name = data[20:].rstrip(b"\0").decode()
    same = [name] if name != socket.gethostname() else ["127.0.0.1", name]
    return same, port, token


def _shared(data: bytes) -> bytes:
    """What process 0 gave, at all of them."""
    from jax.experimental import multihost_utils

    words = np.frombuffer(data.ljust(256, b"\0"), np.uint8).astype(np.int32)
    return np.asarray(multihost_utils.broadcast_one_to_all(words)).astype(np.uint8).tobytes()


_group: Group | None = None


def group() -> Group | None:
    """The processes that this one runs a model with; None: it is alone."""
    return _group


def settle() -> None:
    """Behind an error that the end of another process may have brought: its listener gets the time to say so,
    which ends this one.
    """
    if group() is not None:
        time.sleep(SETTLE)


def form(rank: int, count: int) -> None:
    """Joins this process to the others, once JAX's runtime has.

    Raises:
      JllamaError: process 0 can't be reached.
    """
    global _group
    _group = Group(rank, count)
    _group.connect()
    atexit.register(_group.end)
