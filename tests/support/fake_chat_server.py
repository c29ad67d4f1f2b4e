"""A scripted model behind the API that the page uses: it says what a test wants, when the test wants it."""

import json
import mimetypes
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "jllama" / "server" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MODEL = "tiny"
WAIT_SECONDS = 60  # for a gate that a failed test never opens


@dataclass
class Token:
    """A token as `logprobs.content` has it, with what else could have stood there."""

    text: str
    logprob: float = -0.05
    others: tuple[tuple[str, float], ...] = ((" other", -3.5),)
    data: bytes | None = None  # where the text alone does not say it
    number: int | None = None  # its id

    def entry(self) -> dict[str, Any]:
        alternatives = [(self.text, self.logprob, self.data), *((*other, None) for other in self.others)]
        listed = [_entry(*alternative) for alternative in alternatives]
        if self.number is not None:
            listed = [{**one, "token_id": self.number + place} for place, one in enumerate(listed)]
        return listed[0] | {"top_logprobs": listed}


def _entry(text: str, logprob: float, data: bytes | None) -> dict[str, Any]:
    special = text.startswith("<|")
    spelled = None if special else list(text.encode() if data is None else data)
    return {"token": text, "logprob": logprob, "bytes": spelled}


@dataclass
class Script:
    """One answer: tokens in blocks, or an error. The stream halts before block `halt` until `gate` is set."""

    tokens: list[Token] = field(default_factory=list)
    block: int = 1
    reasoning: str = ""
    finish: str = "stop"
    halt: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    status: int = 200
    error: dict[str, Any] | None = None  # as the answer, or in the stream if the status is 200
    headers: dict[str, str] = field(default_factory=dict)
    broken: bool = False  # the connection ends without an end of the stream


def say(text: str, **details: Any) -> Script:
    """An answer whose tokens are the text's words, each with the blank before it."""
    words = text.split(" ")
    tokens = [Token(word if place == 0 else f" {word}") for place, word in enumerate(words)]
    return Script(tokens=tokens, **details)


def refuse(status: int, message: str, code: str | None = None, **headers: str) -> Script:
    """An answer that is an error."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return Script(status=status, error=error, headers=headers)


class FakeChatServer:
    """Serves the page and the scripts in turn; the last script stays. `requests` has the bodies that came."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.scripts: list[Script] = [say("Hello there.")]
        self.key: str | None = None
        self.models = [{"id": MODEL, "object": "model", "max_model_len": 2048}]
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    def script(self, *scripts: Script) -> None:
        """What is answered from now on."""
        self.scripts[:] = scripts

    def next_script(self) -> Script:
        return self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]

    def close(self) -> None:
        for script in self.scripts:
            script.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeChatServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/v1/models":
            self._allowed() and self._json(200, {"object": "list", "data": self.fake.models})
        else:
            self._file(PAGE / (path.lstrip("/") or "index.html"))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        self.fake.requests.append(body)
        script = self.fake.next_script()
        if script.status != 200:
            self._json(script.status, {"error": script.error}, script.headers)
            return
        self._head(200, "text/event-stream", {})
        try:
            for data in _stream(script):
                self.wfile.write(data)
                self.wfile.flush()
        except OSError:
            return  # the page went away, which is what a stop is

    def _allowed(self) -> bool:
        wanted = self.fake.key
        if wanted is None or self.headers.get("Authorization") == f"Bearer {wanted}":
            return True
        self._json(401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}})
        return False

    def _file(self, path: Path) -> None:
        if not path.resolve().is_relative_to(PAGE) or not path.is_file():
            self._json(404, {"error": {"message": "not found"}})
            return
        self._head(200, mimetypes.guess_type(path.name)[0] or "text/plain", {})
        self.wfile.write(path.read_bytes())

    def _json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._head(status, "application/json", headers or {})
        self.wfile.write(json.dumps(content).encode())

    def _head(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        fixed = {"Content-Type": kind, "Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
        for name, value in {**fixed, **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _stream(script: Script) -> Iterator[bytes]:
    """The events of an answer."""
    yield b": the prompt is read\n\n"
    yield _chunk({"role": "assistant", "content": ""})
    if script.reasoning:
        yield _chunk({"reasoning_content": script.reasoning})
    for at in range(0, len(script.tokens), script.block):
        if at == script.halt:
            script.gate.wait(WAIT_SECONDS)
        yield _words(script.tokens[at : at + script.block])
    if script.halt == len(script.tokens):
        script.gate.wait(WAIT_SECONDS)
    if script.broken:
        return
    yield from _end(script)


def _end(script: Script) -> Iterator[bytes]:
    if script.error is not None:
        yield _event({"error": script.error})
    else:
        yield _chunk({}, finish_reason=script.finish)
        count = len(script.tokens)
        usage = {"prompt_tokens": 11, "completion_tokens": count, "total_tokens": 11 + count}
        yield _event({"object": "chat.completion.chunk", "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _words(tokens: Iterable[Token]) -> bytes:
    tokens = list(tokens)
    data = b"".join(token.text.encode() if token.data is None else token.data for token in tokens)
    return _chunk({"content": data.decode()}, logprobs={"content": [token.entry() for token in tokens]})


def _chunk(delta: dict[str, Any], **choice: Any) -> bytes:
    fixed = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return _event({"object": "chat.completion.chunk", "model": MODEL, "choices": [{**fixed, **choice}]})


def _event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
