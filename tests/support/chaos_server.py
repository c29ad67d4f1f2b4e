"""Clients of all kinds at once: `python -m tests.support.chaos_server --count=5000 --seed=1`.

Some wait for their answer, some read it slowly, some leave in the middle, some have no key or send what is no
JSON. Whoever stays must get the text that he would get alone; at the end nothing runs, and memory is what it
was. Exit code 1: something else came.
"""

import argparse
import contextlib
import json
import random
import resource
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import jllama
from jllama.session import Session
from tests.support.serving import (
    CHAT,
    TEXT,
    WAIT,
    Client,
    connected,
    events,
    on_a_port,
    raw_request,
    said,
    start_engine,
)
from tests.support.tiny_checkpoint import TEMPLATE, write_tiny_model

KEY, CLIENTS = "key", 8
SETTINGS = (
    dict(temperature=0),
    dict(temperature=1.0, seed=1),
    dict(temperature=0.8, top_p=0.9, seed=2),
    dict(temperature=0, repetition_penalty=1.3),
    dict(temperature=1.2, seed=3, stop=["a", "e"]),
)
WORDS = ("Hi", "Once upon a time", "Once upon a time there was", "ü" * 40)


class Chaos:
    """Requests whose answers are known, and clients that ask them in all ways."""

    def __init__(self, model: Any, client: Client) -> None:
        self.client, self.outcomes, self.wrong = client, Counter[str](), list[str]()
        self.known = [self._alone(model, words, settings) for words in WORDS for settings in SETTINGS]

    def _alone(self, model: Any, words: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any], str]:
        """A route, a body and the text that belongs to it."""
        session = Session(model, max_seq_len=256)
        text = "".join(session.stream(words, chat=True, max_new_tokens=40, **settings))
        return CHAT, {"messages": [{"role": "user", "content": words}], "max_tokens": 40, **settings}, text

    def one(self, chance: random.Random) -> None:
        """One client's visit."""
        path, body, wanted = chance.choice(self.known)
        kind = chance.choice(
            (self.stay, self.stay, self.stream, self.dawdle, self.leave, self.mumble, self.intrude)
        )
        self.outcomes[kind.__name__] += 1
        kind(chance, path, body, wanted)

    def stay(self, _: random.Random, path: str, body: dict[str, Any], wanted: str) -> None:
        """Waits for the whole answer."""
        response = self.client.http.post(path, json=body, headers={"X-Api-Key": KEY})
        self._compare(body, response.json()["choices"][0]["message"]["content"], wanted)

    def stream(self, _: random.Random, path: str, body: dict[str, Any], wanted: str) -> None:
        """Reads a stream."""
        response = self.client.http.post(path, json={**body, "stream": True}, headers={"X-Api-Key": KEY})
        self._compare(body, said(events(response.text)[:-1]), wanted)

    def dawdle(self, chance: random.Random, path: str, body: dict[str, Any], wanted: str) -> None:
        """Reads a stream some bytes at a time."""
        with connected(self.client) as connection:
            connection.sendall(self._raw(path, {**body, "stream": True}))
            data = bytearray()
            while b"data: [DONE]\n\n" not in data:
                data += connection.recv(chance.randint(1, 200))
        lines = (line for line in data.decode().split("\n") if line.startswith("data: {"))
        self._compare(body, said([json.loads(line.removeprefix("data: ")) for line in lines]), wanted)

    def leave(self, chance: random.Random, path: str, body: dict[str, Any], _: str) -> None:
        """Goes at some moment, maybe while it still asks."""
        sent = self._raw(
            path, {**body, "stream": chance.random() < 0.5, "max_tokens": 200, "ignore_eos": True}
        )
        with connected(self.client) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(sent[: chance.choice([len(sent), chance.randint(0, len(sent))])])
            connection.settimeout(chance.choice([0.001, 0.02, 0.1]))
            with contextlib.suppress(TimeoutError):
                connection.recv(chance.randint(1, 3000))

    def mumble(self, chance: random.Random, path: str, _: dict[str, Any], __: str) -> None:
        """Sends what is no request."""
        body = chance.choice([b"{", b"[]", b"\xff" * 50, b'{"messages": 3}', b"x" * 100_000])
        headers = {"X-Api-Key": KEY, "Content-Type": "application/json"}
        self._refused(self.client.http.post(path, content=body, headers=headers), 400)

    def intrude(self, chance: random.Random, _: str, body: dict[str, Any], __: str) -> None:
        """Has no key."""
        headers = {"Authorization": f"Bearer {chance.random()}"}
        self._refused(self.client.http.post(TEXT, json=body, headers=headers), 401)

    def _raw(self, path: str, body: dict[str, Any]) -> bytes:
        return raw_request(path, json.dumps(body).encode()).replace(b"Host:", b"X-Api-Key: key\r\nHost:", 1)

    def _compare(self, body: dict[str, Any], text: str, wanted: str) -> None:
        if text != wanted:
            self.wrong.append(f"{body}: {text!r} instead of {wanted!r}")

    def _refused(self, response: Any, status: int) -> None:
        if response.status_code != status:
            self.wrong.append(f"{response.status_code} instead of {status}: {response.text[:200]}")


def run(model: Any, count: int, seed: int) -> Chaos:
    """`count` visits of several clients at once; what came of them. Nothing runs any more then."""
    with start_engine(model) as engine, on_a_port(engine, keys=(KEY,)) as client:
        chaos = Chaos(model, client)
        visits = iter(range(count))
        lock = threading.Lock()

        def visit() -> None:
            while True:
                with lock:
                    number = next(visits, None)
                if number is None:
                    return
                try:
                    chaos.one(random.Random(f"{seed} {number}"))
                except Exception as error:
                    chaos.wrong.append(f"visit {number}: {error!r}")

        threads = [threading.Thread(target=visit) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.http.get("/health").status_code == 200
        engine.submit("x", max_new_tokens=1).result(WAIT)
    assert engine.stats.running == engine.stats.waiting == 0
    assert not client.server._service._live  # type: ignore[union-attr]
    return chaos


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_tiny_model(Path(scratch) / "tiny", template=TEMPLATE)
        model = jllama.load(str(directory), dtype="float32")
        run(model, given.count // 10, given.seed)  # whatever is made once is there
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        chaos = run(model, given.count, given.seed + 1)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(*chaos.wrong, sep="\n")
    print(
        f"{dict(chaos.outcomes)}: {len(chaos.wrong)} wrong; {grown:.0f} MiB more than after the first tenth"
    )
    return bool(chaos.wrong)


if __name__ == "__main__":
    sys.exit(main())
