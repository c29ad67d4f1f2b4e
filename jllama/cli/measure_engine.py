"""What `bench.py` measures of an engine: requests that come at once, from their prompts to their texts."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jllama.batching.engine import Engine
from jllama.batching.stream import Item, Stream
from jllama.cli.bench_tests import Test
from jllama.cli.plain_tokenizer import BYTES, plain_tokenizer
from jllama.config import ModelConfig
from jllama.engine.step import BURST
from jllama.loading import Model
from jllama.model import Params

LEAST_PROMPT = 8  # tokens, where the test says none
ROUND = 256  # a slot's positions are a multiple of it


def run_engine_test(
    config: ModelConfig, params: Params, test: Test, repetitions: int, seed: int
) -> dict[str, Any]:
    """Rates of the median repetition, after a warm-up.

    Returns:
      `tokens_per_second` while all rows decode; `seconds` of each repetition from the first request to the
      last text; `first_token_seconds` of the median request.
    """
    tokenizer, dtype = plain_tokenizer(config.vocab_size), str(params.norm.dtype)
    model = Model(config=config, params=params, tokenizer=tokenizer, name="bench", dtype=dtype)
    rng, prompt = np.random.default_rng(seed), max(test.depth, LEAST_PROMPT)
    length = -(-(prompt + test.count) // ROUND) * ROUND
    with Engine(model, slots=test.batch, max_seq_len=length, share_prefixes=False) as engine:
        for _ in range(2):
            _once(engine, test, prompt, rng)
        runs = [_once(engine, test, prompt, rng) for _ in range(repetitions)]
    rates, seconds, firsts = zip(*runs, strict=True)
    return {
        "test": test.name,
        "batch": test.batch,
        "sampling": test.sampling,
        "choice": test.choice,
        "tokens_per_second": statistics.median(rates),
        "spread": (max(rates) - min(rates)) / statistics.median(rates),
        "seconds": seconds,
        "first_token_seconds": statistics.median(firsts),
    }


def _once(engine: Engine, test: Test, prompt: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Tokens a second while all rows decode, seconds in all, seconds to the median first token."""
    V = engine.model.config.vocab_size
    told: dict[Stream, list[tuple[float, int]]] = {}

    def listener(stream: Stream, item: Item) -> None:
        count = stream.answer.result.generated_tokens
        told.setdefault(stream, []).append((time.perf_counter(), count))

    requests = [
        dict(
            prompt=rng.integers(BYTES, V, prompt).tolist(),
            max_new_tokens=test.count,
            ignore_eos=True,
            seed=row,
            **test.sampling,
        )
        for row in range(test.batch)
    ]
    started = time.perf_counter()
    streams = engine.submit_all(requests, listener)
    firsts = [stream.result().prefill_seconds for stream in streams]
    whole = time.perf_counter() - started
    return decode_rate(list(told.values())), whole, statistics.median(firsts)


def decode_rate(told: Sequence[Sequence[tuple[float, int]]]) -> float:
    """Tokens a second of all rows together, from when each has a burst until the first one ends.

    Args:
      told: of each row the times at which it heard of text, and how many tokens there were. Rows hear of a
        burst one after the other: hence some slack at both ends.
    """
    begin = max(next(at for at, count in row if count > BURST) for row in told)
    end = min(row[-1][0] for row in told)
    if end <= begin:  # the first row ended before the last one began
        begin, end = min(row[0][0] for row in told), max(row[-1][0] for row in told)
    slack = (end - begin) / 20
    return sum(_rate([(at, n) for at, n in row if begin - slack <= at <= end + slack]) for row in told)


def _rate(samples: Sequence[tuple[float, int]]) -> float:
    (begin, first), (end, last) = samples[0], samples[-1]
    return (last - first) / (end - begin) if end > begin else 0.0
