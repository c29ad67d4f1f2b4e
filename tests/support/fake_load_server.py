"""A server of OpenAI's API without a model, for the load client: it answers as a test says."""

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL, FIXED = "scripted", 7  # tokens around a prompt's words
Answers = Callable[[int, dict[str, Any]], tuple]  # a method of the handler, and what it takes
WAIT = 60  # seconds for a gate that a failed test never opens


class FakeLoadServer:
    """A word is a token. What is asked for is in `bodies`, how is decided by `answers`."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []  # of streams and what else is measured
        self.answers: Answers = lambda number, body: ("tokens", body["max_tokens"])
        self.key: str | None = None
        self.models = [MODEL]
        self.counts = "prompt"  # the name that /tokenize knows; empty: there is none
        self.known = {"model", "max_tokens", "temperature", "messages", "prompt", "ignore_eos", "stream"}
        self.running = self.most_running = self.connections = 0
        self.gate = threading.Event()
        self.reached = threading.Semaphore(0)  # released whenever a request stands before the gate
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop_listening(self) -> None:
        """No more connections; those that are open stay."""
        self._server.shutdown()
        self._server.server_close()

    def close(self) -> None:
        self.gate.set()
        self.stop_listening()
        self._thread.join(WAIT)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 200

    def handle_error(self, *_: Any) -> None:
        pass  # the client went away


class _Handler(BaseHTTPRequestHandler):
    fake: FakeLoadServer
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def setup(self) -> None:
        super().setup()
        with self.fake.lock:
            self.fake.connections += 1

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._allowed():
            listed = {"object": "list", "data": [{"id": name} for name in self.fake.models]}
            self._json(200, listed)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        if self.path == "/tokenize":
            self._tokenize(body)
        elif unknown := body.keys() - self.fake.known - {"stream_options"}:
            self._refuse(body, 400, f"Unrecognized request argument supplied: {unknown.pop()}")
        elif not body.get("stream") and body["max_tokens"] == 1:
            self._json(200, {"choices": [{"text": "x"}], "usage": usage(body, 1)})
        else:
            self._measured(body)

    def _tokenize(self, body: dict[str, Any]) -> None:
        if not self.fake.counts:
            return self._refuse(body, 404, "no such address")
        self._json(200, {"tokens": body.get(self.fake.counts, "").split()})

    def _measured(self, body: dict[str, Any]) -> None:
        fake = self.fake
        with fake.lock:
            number = len(fake.bodies)
            fake.bodies.append(body)
            fake.running += 1
            fake.most_running = max(fake.most_running, fake.running)
        try:
            what, *details = fake.answers(number, body)
            getattr(self, f"_{what}")(body, *details)
        finally:
            with fake.lock:
                fake.running -= 1

    def _tokens(self, body: dict[str, Any], count: int) -> None:
        """An answer of so many tokens, a chunk each."""
        if not body.get("stream"):
            return self._json(200, {"choices": [{"text": "x " * count}], "usage": usage(body, count)})
        self._begin()
        self._events(*[chunk(f" {place}") for place in range(count)])
        self._end(chunk(None, "length"), {"choices": [], "usage": usage(body, count)})

    def _held(self, body: dict[str, Any]) -> None:
        """Waits for the gate after the first token."""
        self._begin()
        self._events(chunk("a"))
        self.fake.reached.release()
        self.fake.gate.wait(WAIT)
        self._end({"choices": [], "usage": usage(body, 1)})

    def _refuse(self, _: dict[str, Any], status: int, message: str) -> None:
        self._json(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def _breaks(self, _: dict[str, Any]) -> None:
        """The connection is cut in the middle of the answer."""
        self._begin()
        self._events(chunk("a"))
        self._cut()

    def _drops(self, _: dict[str, Any]) -> None:
        """The connection is closed instead of an answer."""
        self._cut()

    def _errs(self, _: dict[str, Any], message: str) -> None:
        self._begin()
        self._end(chunk("a"), {"error": {"message": message}})

    def _cut(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _allowed(self) -> bool:
        wanted = self.fake.key
        if wanted is None or self.headers.get("Authorization") == f"Bearer {wanted}":
            return True
        self._refuse({}, 401, "Incorrect API key")
        return False

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _events(self, *contents: Any) -> None:
        for content in contents:
            data = b"data: %s\n\n" % (json.dumps(content).encode() if content != "[DONE]" else b"[DONE]")
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

    def _end(self, *contents: Any) -> None:
        self._events(*contents, "[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _json(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def chunk(text: str | None, finish: str | None = None) -> dict[str, Any]:
    """Of a conversation's stream; None: without text."""
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None}


def usage(body: dict[str, Any], count: int) -> dict[str, int]:
    prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    read = FIXED - 1 + len(prompt.split())
    return {"prompt_tokens": read, "completion_tokens": count, "total_tokens": read + count}
