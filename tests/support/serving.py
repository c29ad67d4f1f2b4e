"""A tiny model behind the server: in this process for most tests, on a port where connections matter."""

import contextlib
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
from starlette.testclient import TestClient

from jllama.batching.engine import Engine
from jllama.server.app import create_app
from jllama.server.run import Server, bind, listen
from jllama.server.service import Options

NAME, MAX_LEN, SLOTS = "tiny", 256, 4
WAIT = 300
HELLO = [{"role": "user", "content": "Hello"}]
ASCII = {str(token): -100 for token in range(94, 258)}  # the bias that leaves the printable letters
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def start_engine(model: Any, **options: Any) -> Engine:
    """With few short slots."""
    return Engine(model, **{"slots": SLOTS, "max_seq_len": MAX_LEN, **options})


def options(**changes: Any) -> Options:
    """Of a server that the tests ask."""
    return Options(**{"names": (NAME, "alias"), **changes})


@contextlib.contextmanager
def in_process(engine: Engine, page_files: Any = None, **changes: Any) -> Iterator["Client"]:
    """A client of an application that has no socket."""
    more = {} if page_files is None else {"page_files": page_files}
    app = create_app(engine, options(**changes), **more)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as http:
        yield Client(http, engine)
    app.state.service.close()


@contextlib.contextmanager
def on_a_port(engine: Engine, grace: float = 0.0, **changes: Any) -> Iterator["Client"]:
    """A client of a server in a thread of this process."""
    app, bound = create_app(engine, options(**changes)), bind("127.0.0.1", 0)
    server, url = Server(app, grace), listen(bound)
    thread = threading.Thread(target=server.serve_on, args=(bound,))
    thread.start()
    try:
        with httpx2.Client(base_url=url, timeout=WAIT) as http:
            yield Client(http, engine, server)
    finally:
        server.should_exit = True
        thread.join(WAIT)
        app.state.service.close()
        assert not thread.is_alive()


class Client:
    """Asks, and reads what comes strictly."""

    def __init__(self, http: Any, engine: Engine, server: Server | None = None) -> None:
        self.http, self.engine, self.server = http, engine, server

    def post(self, path: str, **body: Any) -> Any:
        """The response."""
        return self.http.post(path, json=body)

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer of a request that goes well."""
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def chat(self, messages: Any = HELLO, **body: Any) -> dict[str, Any]:
        """The answer to a conversation: greedy and short unless the test says otherwise."""
        return self.ask(CHAT, messages=messages, **{"max_tokens": 12, "temperature": 0, **body})

    def text(self, prompt: Any = "Hello", **body: Any) -> dict[str, Any]:
        """The continuation of a text, likewise."""
        return self.ask(TEXT, prompt=prompt, **{"max_tokens": 12, "temperature": 0, **body})

    def chunks(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """All objects of a stream, which must be well-formed and end as it should."""
        response = self.post(path, stream=True, **body)
        assert response.status_code == 200, response.text
        objects = events(response.text)
        assert objects.pop() == "[DONE]"
        return objects

    def chat_chunks(self, messages: Any = HELLO, **body: Any) -> list[dict[str, Any]]:
        """`chat` as a stream."""
        return self.chunks(CHAT, messages=messages, **{"max_tokens": 12, "temperature": 0, **body})

    def text_chunks(self, prompt: Any = "Hello", **body: Any) -> list[dict[str, Any]]:
        """`text` as a stream."""
        return self.chunks(TEXT, prompt=prompt, **{"max_tokens": 12, "temperature": 0, **body})

    def error(self, path: str, **body: Any) -> dict[str, Any]:
        """What is wrong with a request that the server refuses with 400."""
        return refusal(self.post(path, **body), 400)


def refusal(response: Any, status: int) -> dict[str, Any]:
    """The error object of a response, whose shape never varies."""
    assert response.status_code == status, (response.status_code, response.text)
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert isinstance(error["type"], str)
    return error


def events(text: str) -> list[Any]:
    """The data of each event: one line of JSON, or the word that ends a stream. Comments are left out."""
    assert text.endswith("\n\n")
    found = []
    for block in text[:-2].split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(("event: ", ":"))]
        if not lines:
            continue
        assert len(lines) == 1, block
        assert lines[0].startswith("data: "), block
        data = lines[0].removeprefix("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
    return found


def said(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """The text of a choice in a stream."""
    mine = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
    return "".join(one["text"] if "text" in one else one["delta"].get("content", "") for one in mine)


def content(answer: dict[str, Any], index: int = 0) -> str:
    """The text of a choice of a whole answer."""
    choice = answer["choices"][index]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def busy(engine: Engine) -> int:
    """Slots with a text that runs."""
    return sum(job is not None for job in engine._loop._scheduler.jobs)


class Gate(threading.Event):
    """Set: it is open. `reached`: somebody stands or stood before it."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()


@contextlib.contextmanager
def held(engine: Engine, name: str, passing: int = 0) -> Iterator[Gate]:
    """The engine stops before it calls `name` of its slots, but for so many times, until the gate is set."""
    slots, go, passed = engine._loop._slots, Gate(), itertools.count()
    call = getattr(slots, name)

    def wait(*arguments: Any) -> Any:
        if next(passed) >= passing:
            go.reached.set()
            go.wait(WAIT)
        return call(*arguments)

    setattr(slots, name, wait)
    try:
        yield go
    finally:
        go.set()
        setattr(slots, name, call)


def count_calls(engine: Engine, name: str) -> list[Any]:
    """A list that grows with each call of `name` of the engine's slots."""
    slots, calls = engine._loop._slots, []
    call = getattr(slots, name)

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return call(*arguments)

    setattr(slots, name, counted)
    return calls


def connected(client: Client) -> socket.socket:
    """A connection to a server on a port."""
    return socket.create_connection((client.http.base_url.host, client.http.base_url.port), timeout=WAIT)


def ask_and_stay(client: Client, connection: socket.socket, body: dict[str, Any], path: str = TEXT) -> None:
    """Returns when the engine has the request."""
    engine, taken = client.engine, threading.Event()
    submit = engine.submit_all

    def watched(requests: Any, listener: Any) -> Any:
        streams = submit(requests, listener)
        taken.set()
        return streams

    engine.submit_all = watched  # type: ignore[method-assign]
    try:
        connection.sendall(raw_request(path, json.dumps(body).encode()))
        assert taken.wait(WAIT)
    finally:
        del engine.submit_all


def ask_and_leave(client: Client, body: dict[str, Any]) -> None:
    """Goes once the engine has the request; returns when the engine has heard of that.

    The engine must be held: an answer that ends before is not cancelled.
    """
    loop, cancelled = client.engine._loop, threading.Event()
    cancel = loop.cancel

    def watched(stream: Any) -> None:
        cancel(stream)
        cancelled.set()

    loop.cancel = watched  # type: ignore[method-assign]
    try:
        with connected(client) as connection:
            ask_and_stay(client, connection, body)
        assert cancelled.wait(WAIT)
    finally:
        del loop.cancel


def until_refused(client: Client) -> None:
    """Returns when the server takes no more connections."""
    while True:
        try:
            connected(client).close()
        except OSError:
            return


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def raw_request(path: str, body: bytes) -> bytes:
    """What a client sends, byte by byte."""
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join([*lines, "", ""]).encode() + body
