"""Asks an engine from several threads for a while: `python -m tests.support.soak MODEL --seconds=1200`.

Requests of random lengths and settings, each from a fixed set whose answers a `Session` gave alone, come from
several threads that wait, stream or cancel at random. Said at the end: how many texts were equal, which were
not, whether all slots are free, and how the process's memory went. Exit code 1: something is wrong.

In float32 two tokens whose logits differ by less than the rounding of a sum may change places between
programs of different sizes: such texts are counted apart, after a look at the logits of the lone run.
"""

import argparse
import random
import resource
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jllama
from jllama.layers.cache import KVCache

TIE = 2e-5  # of the logits' range
ROOM = 320


def request(rng, model):
    """Arguments of `submit`: token ids and settings."""
    V = model.config.vocab_size
    length = rng.choice((1, 5, rng.randint(2, 40), rng.randint(30, 200)))
    begins = rng.randrange(4)  # several begin alike
    ids = [(begins * 31 + 7 * at) % (V - 4) + 3 for at in range(length - length // 4)]
    ids += [rng.randrange(3, V) for _ in range(length - len(ids))]
    settings = dict(max_new_tokens=rng.randint(1, 100), seed=rng.randrange(2**32))
    settings["ignore_eos"] = rng.random() < 0.5
    if rng.random() < 0.5:
        settings |= dict(
            temperature=rng.choice((0.5, 1.0)), top_p=rng.choice((1.0, 0.9)), top_k=rng.choice((0, 30))
        )
    if rng.random() < 0.2:
        settings |= dict(repetition_penalty=1.2)
    if rng.random() < 0.2:
        settings |= dict(stop=rng.choice((".", " a", "the")))
    if rng.random() < 0.2:
        settings |= dict(min_new_tokens=min(5, settings["max_new_tokens"]))
    return ids, settings


def alone(model, ids, settings):
    session = jllama.Session(model, max_seq_len=ROOM)
    "".join(session.stream(ids, **settings))
    return session.result


def is_tie(model, ids, wanted, ours):
    """Whether the first token that differs was as likely as the other one, but for rounding."""
    pairs = zip(wanted, ours, strict=False)
    at = next((n for n, (one, other) in enumerate(pairs) if one != other), None)
    if at is None:
        return False
    text = jnp.array([[*ids, *wanted[:at]]])
    cache = KVCache.empty(model.config, batch=1, max_len=ROOM, dtype=model.dtype)
    logits = np.asarray(jllama.forward(model.config, model.params, text, cache)[0][0, -1])
    return abs(logits[wanted[at]] - logits[ours[at]]) < TIE * np.ptp(logits)


class Soak:
    """What the threads have in common."""

    def __init__(self, model, engine, cases, answers):
        self.model, self.engine, self.cases, self.answers = model, engine, cases, answers
        self.counts, self.different, self.lock = Counter(), [], threading.Lock()

    def one(self, rng):
        number = rng.randrange(len(self.cases))
        ids, settings = self.cases[number]
        stream = self.engine.submit(ids, logprobs=rng.choice((None, None, None, 2)), **settings)
        kind = rng.choice(("wait", "wait", "stream", "cancel"))
        if kind == "stream":
            assert "".join(stream) == stream.result().text
        elif kind == "cancel":
            time.sleep(rng.random() * 0.05)
            stream.cancel()
        self.compare(number, stream.result(300), kind)

    def compare(self, number, ours, kind):
        wanted = self.answers[number]
        if kind == "cancel" and ours.finish_reason == "interrupted":
            same = wanted.text.startswith(ours.text)
        else:
            told = ("text", "token_ids", "finish_reason", "stop_string")
            same = all(getattr(ours, name) == getattr(wanted, name) for name in told)
        with self.lock:
            self.counts["equal" if same else "different"] += 1
            self.counts[kind] += 1
            if not same:
                self.different.append((number, ours.token_ids))

    def work(self, seed, until):
        rng = random.Random(seed)
        while time.monotonic() < until:
            self.one(rng)


def memory():
    """MiB of the process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def watched(threads):
    """Waits for them; the memory once a minute."""
    told = []
    while any(thread.is_alive() for thread in threads):
        told.append(round(memory()))
        for thread in threads:
            thread.join(60 / len(threads))
    return told


def options():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=1200)
    for name, default in (("threads", 4), ("cases", 200), ("slots", 6), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def main():
    given = options()
    model = jllama.load(given.model, dtype="float32")
    rng = random.Random(given.seed)
    cases = [request(rng, model) for _ in range(given.cases)]
    answers = [alone(model, *case) for case in cases]
    with jllama.Engine(model, slots=given.slots, max_seq_len=ROOM) as engine:
        engine.warm_up()
        soak, until = Soak(model, engine, cases, answers), time.monotonic() + given.seconds
        threads = [threading.Thread(target=soak.work, args=(n, until)) for n in range(given.threads)]
        for thread in threads:
            thread.start()
        told, stats = watched(threads), engine.stats
    ties = [n for n, ours in soak.different if is_tie(model, cases[n][0], answers[n].token_ids, ours)]
    others = sorted({n for n, _ in soak.different} - set(ties))
    print(f"{dict(soak.counts)}; {len(ties)} of the different ones ties; other cases that differ: {others}")
    print(f"running {stats.running}, waiting {stats.waiting}; MiB once a minute: {told}")
    sys.exit(len(soak.different) > len(ties) or bool(stats.running or stats.waiting))


if __name__ == "__main__":
    main()
