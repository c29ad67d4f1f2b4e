"""Processor time of a request and of a chunk through HTTP: `python -m tests.support.serving_cost`.

The server stands in this process, on an engine whose device computes nothing: each burst is 16 tokens of
every row after `--burst_ms`. The clients are another process, which is not counted; all streams arrive at
once. Waves of answers of one token give the cost of a request, waves of long answers that of a chunk. Times
are those of processors, user's and system's, by thread, the least of several rounds: a busy machine disturbs
them less.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import selectors
import socket
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import jllama
from jllama.batching import engine as batching
from jllama.batching.engine import Engine
from jllama.engine.slots import Slots
from jllama.engine.state import Burst
from jllama.engine.step import BURST
from tests.support.serving import CHAT, TEXT, connected, on_a_port, raw_request
from tests.support.tiny_checkpoint import TEMPLATE, write_tiny_model

END = b"data: [DONE]\n\n"
WORDS = "the quick brown fox jumps over a lazy dog and sleeps well until morning comes".split()


class IdleSlots(Slots):
    """Slots whose rows say the same token again and again, without a device."""

    burst_seconds = 0.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._left: dict[int, int] = {}

    def settle(self) -> None:
        pass

    def copy_prefix(self, source: int, to: int, count: int) -> None:
        pass

    def read_together(self, pieces: Any, size: int) -> Any:
        return np.zeros((len(pieces), 1), np.float32)

    def begin_together(self, beginnings: Any, logits: Any) -> Burst:
        for slot, row, _ in beginnings:
            self._left[slot] = row.limit
        return self._burst([slot for slot, _, _ in beginnings], 1)

    def run(self, slots: Any, steps: int) -> Burst:
        time.sleep(self.burst_seconds)
        return self._burst(slots, steps)

    def _burst(self, slots: Any, steps: int) -> Burst:
        counts = [min(steps, self._left[slot]) for slot in slots]
        for slot, count in zip(slots, counts, strict=True):
            self._left[slot] -= count
        tokens = np.full((len(slots), BURST), -1, np.int32)
        for row, count in zip(tokens, counts, strict=True):
            row[:count] = 72
        done = np.array([self._left[slot] == 0 for slot in slots])
        return Burst.of(tokens, done, np.ones(len(slots), bool))


class Wave:
    """Streams that arrive at once, by one thread of another process."""

    def __init__(self, sockets: list[socket.socket], requests: list[bytes]) -> None:
        self.chunks, self.reads, self.firsts = 0, 0, []  # type: ignore[var-annotated]
        self._began, self._tails = time.perf_counter(), dict.fromkeys(sockets, b"")
        for one, request in zip(sockets, requests, strict=True):
            one.sendall(request)
        self._read(sockets)

    def _read(self, sockets: list[socket.socket]) -> None:
        with selectors.DefaultSelector() as ready:
            for one in sockets:
                ready.register(one, selectors.EVENT_READ)
            left = len(sockets)
            while left:
                for key, _ in ready.select():
                    left -= self._take(key.fileobj)

    def _take(self, one: Any) -> bool:
        data = one.recv(1 << 20)
        assert data, "the server closed the connection"
        if not self._tails[one]:
            assert data.startswith(b"HTTP/1.1 200"), data
        if b"data: {" in data and one not in self._seen():
            self.firsts.append((one, time.perf_counter() - self._began))
        self.reads += 1
        self.chunks += data.count(b"data: {")
        self._tails[one] = (self._tails[one] + data)[-40:]
        return END in self._tails[one] and self._tails[one].endswith(b"0\r\n\r\n")

    def _seen(self) -> set[Any]:
        return {one for one, _ in self.firsts}

    def summary(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self._began
        first = statistics.median(moment for _, moment in self.firsts)
        return {"chunks": self.chunks, "reads": self.reads, "seconds": seconds, "first": first}


def clients(port: int, count: int, asked: Any, told: Any) -> None:
    """Opens the connections, then sends a wave for each set of requests that comes."""
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    while (requests := asked.recv()) is not None:
        told.send(Wave(sockets, requests).summary())


def requests_of(given: Any, number: int, tokens: int) -> list[bytes]:
    """A wave's, no two with the same words."""
    chance, made = random.Random(number), []
    for _ in range(given.streams):
        content = " ".join(chance.choices(WORDS, k=given.words))
        body = {"stream": True, "ignore_eos": True, "temperature": given.temperature, "max_tokens": tokens}
        if given.endpoint == "chat":
            path, body["messages"] = CHAT, [{"role": "user", "content": content}]
        else:
            path, body["prompt"] = TEXT, content
        made.append(raw_request(path, json.dumps(body).encode()))
    return made


def thread_seconds() -> Counter[str]:
    """Processor time of this process' threads, by the beginning of their names; `all` is the process."""
    found = Counter({"all": time.process_time()})
    for thread in threading.enumerate():
        clock = time.pthread_getcpuclockid(thread.ident)  # type: ignore[arg-type]
        found[thread.name.rstrip("0123456789_-")] += time.clock_gettime(clock)
    return found


def measure(given: Any, ask: Any) -> dict[str, Any]:
    """Waves of short and of long answers; microseconds a request and a chunk."""
    numbers = itertools.count()

    def wave(tokens: int) -> tuple[Counter[str], dict[str, Any]]:
        requests = requests_of(given, next(numbers), tokens)
        before = thread_seconds()
        told = ask(requests)
        used = thread_seconds()
        return Counter({name: used[name] - before[name] for name in used}), told

    wave(1)
    shorts, longs = zip(*((wave(1), wave(given.tokens)) for _ in range(given.rounds)), strict=True)
    return {"request": _each(shorts, given.streams, ()), "chunk": _each(longs, None, shorts)}


def _each(waves: Any, count: int | None, base: Any) -> dict[str, Any]:
    """Of each thread the least of several rounds, for each of `count` requests or of the chunks."""
    chunks = [told["chunks"] - (base[at][1]["chunks"] if base else 0) for at, (_, told) in enumerate(waves)]
    less = {name: min(used[name] for used, _ in base) for name in base[0][0]} if base else {}
    found = {}
    for name in waves[0][0]:
        rounds = [
            (used[name] - less.get(name, 0)) / (count or chunks[at]) for at, (used, _) in enumerate(waves)
        ]
        found[name] = round(min(rounds) * 1e6, 1)
    told = {name: round(statistics.median(w[1][name] for w in waves), 4) for name in waves[0][1]}
    return {"microseconds": found, "median": told}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="whose tokenizer and template; else a tiny one")
    parser.add_argument("--endpoint", choices=("chat", "completions"), default="chat")
    for name, value in dict(streams=128, tokens=321, words=40, rounds=5).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--burst_ms", type=float, default=25.0)
    given = parser.parse_args()
    if given.tokens <= BURST + 1:
        parser.error(f"--tokens: long answers have more than {BURST + 1}")
    IdleSlots.burst_seconds = given.burst_ms / 1000
    with tempfile.TemporaryDirectory() as scratch, mock.patch.object(batching, "Slots", IdleSlots):
        source = given.model or write_tiny_model(
            Path(scratch) / "tiny", template=TEMPLATE, max_position_embeddings=4096
        )
        model = jllama.load(str(source))
        with Engine(model, slots=given.streams, max_seq_len=1024) as engine, on_a_port(engine) as client:
            context = multiprocessing.get_context("spawn")
            (asked, ask), (told, tell) = context.Pipe(False), context.Pipe(False)
            port = connected(client).getpeername()[1]
            other = context.Process(target=clients, args=(port, given.streams, asked, tell))
            other.start()
            try:
                print(json.dumps(measure(given, lambda r: (ask.send(r), told.recv())[1]), indent=1))
            finally:
                ask.send(None)
                other.join()


if __name__ == "__main__":
    main()
