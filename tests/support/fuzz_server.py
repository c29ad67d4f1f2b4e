"""Feeds the server requests of all kinds: `python -m tests.support.fuzz_server --count=20000 --seed=1`.

Each is a method, a path, headers and a body in fragments, by a client that may leave at any moment. The
answer must be a result or a proper error object, never a 500 by a mistake of the client, and nothing in the
log. A finding is shrunk and printed by hypothesis; exit code 1.
"""

import argparse
import asyncio
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis

from jllama.batching.engine import Engine
from tests.support.fuzz_server_requests import KEY, requests
from tests.support.serving import events, options

STATUSES = {200, 400, 401, 403, 404, 405, 413, 415}


async def exchange(
    app: Any, *, method: str, path: str, headers: list[Any], parts: list[bytes], leave: int | None
) -> list[dict[str, Any]]:
    """What the server sends to a client that goes once it has got `leave` messages, or at the end."""
    scope = dict(type="http", asgi={"version": "3.0", "spec_version": "2.3"}, http_version="1.1")
    scope |= dict(method=method, path=path, raw_path=path.encode(), query_string=b"", root_path="")
    scope |= dict(headers=headers, scheme="http", server=("localhost", 80), client=("127.0.0.1", 1))
    left, sent, waiting = asyncio.Event(), [], list(parts)

    async def receive() -> dict[str, Any]:
        if leave != 0 and waiting:
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}
        if leave != 0:
            await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if leave is not None and len(sent) >= leave:
            left.set()

    await app(scope, receive, send)
    return sent


def judge(request: dict[str, Any], sent: list[dict[str, Any]]) -> None:
    """Fails where an answer is none of those that a client may expect."""
    if request["leave"] is not None:
        return  # whatever was sent
    start, body = sent[0], b"".join(message.get("body", b"") for message in sent[1:])
    assert not sent[-1].get("more_body"), "an answer without its end"
    assert start["status"] in STATUSES, (start["status"], body)
    kind = dict(start["headers"]).get(b"content-type", b"")
    if start["status"] >= 400:
        error = json.loads(body)["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert isinstance(error["message"], str)
        assert isinstance(error["type"], str)
        assert len(error["message"]) < 5000
    elif kind.startswith(b"text/event-stream"):
        _judge_stream(request["path"], events(body.decode()))
    elif kind == b"application/json":
        json.loads(body)


def _judge_stream(path: str, objects: list[Any]) -> None:
    if path == "/v1/responses":
        assert objects[-1]["type"] in ("response.completed", "response.incomplete")
        return
    assert objects.pop() == "[DONE]"
    ends: dict[int, int] = {}
    for choice in (choice for one in objects for choice in one["choices"]):
        ends[choice["index"]] = ends.get(choice["index"], 0) + (choice["finish_reason"] is not None)
    assert set(ends.values()) == {1}, "one end for each choice"


class _Loud(logging.Handler):
    """Fails on what an operator would have to look at."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())


@contextmanager
def server(model: Any) -> Iterator[Any]:
    """A function that makes and judges one exchange."""
    from jllama.server.app import create_app

    log = _Loud()
    logging.getLogger().addHandler(log)
    with Engine(model, slots=4, max_seq_len=48, max_queue=256) as engine, asyncio.Runner() as runner:
        app = create_app(engine, options(keys=(KEY,), largest_body=20_000))

        def check(request: dict[str, Any]) -> None:
            judge(request, runner.run(exchange(app, **request)))
            assert not log.records, log.records
            assert not app.state.service._live

        yield check
        app.state.service.close()
        engine.submit("x", max_new_tokens=1).result(300)
        assert engine.stats.running == engine.stats.waiting == 0
    logging.getLogger().removeHandler(log)


def run(model: Any, count: int, seed: int) -> None:
    """`count` requests. Raises what is wrong with one of them, the smallest that hypothesis finds."""
    with server(model) as check:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(requests())
        def every_request(request: dict[str, Any]) -> None:
            check(request)

        every_request()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    import jllama
    from tests.support.tiny_checkpoint import TEMPLATE, write_tiny_model

    with tempfile.TemporaryDirectory() as scratch:
        directory = write_tiny_model(Path(scratch) / "tiny", template=TEMPLATE)
        run(jllama.load(str(directory), dtype="float32"), given.count, given.seed)
    print(f"{given.count} requests, no findings")


if __name__ == "__main__":
    main()
