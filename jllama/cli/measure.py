"""What `bench.py` measures: prompt processing, generation, and the machine's own ceilings."""

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama import sharding
from jllama.checkpoint import memory
from jllama.cli import measure_matching
from jllama.cli.bench_tests import Test
from jllama.config import ModelConfig
from jllama.engine.decoder import bursts, read_prompt
from jllama.engine.rows import Row
from jllama.engine.slots import Slots
from jllama.engine.step import BURST
from jllama.errors import JllamaError
from jllama.layers.qtensor import QTensor
from jllama.layers.sampling import Sampling
from jllama.model import Params

CACHE_STEP = 256  # cache lengths are multiples of this
# What the ceilings are measured with: the shape of an array that is read, the size of square matrices.
READ, GPU_READ = (8192, 16384), (8192, 131072)
MATRIX, GPU_MATRIX = 2048, 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What this device reached in this run, with nothing else to do."""

    read_bytes_per_second: float
    matrix_flops_per_second: float


def ceilings(dtype: str, platform: str) -> Ceilings:
    """Reads or copies (counting both ways) a large array; multiplies two matrices of the run dtype."""
    gpu = platform == "gpu"
    count = 10 if gpu else 1  # a CPU needs long for one
    rows = jnp.ones(GPU_READ if gpu else READ, jnp.float32)
    tops = jnp.full(len(rows), jnp.inf) if gpu else None
    read = _seconds_each(_row_maxima, tops, rows, count=count)
    copy = _seconds_each(jnp.negative, rows, count=count)  # reads and writes
    size = GPU_MATRIX if gpu else MATRIX
    left, right = (jax.random.normal(jax.random.key(i), (size, size)).astype(dtype) for i in range(2))
    product = _seconds_each(_product, left, right, count=count)
    return Ceilings(
        read_bytes_per_second=max(rows.nbytes / read, 2 * rows.nbytes / copy),
        matrix_flops_per_second=2 * size**3 / product,
    )


def _row_maxima(tops: Array | None, rows: Array) -> Array:
    """`tops` ties a call to the one before; a CPU that has to look at it reads more slowly."""
    return jnp.max(rows if tops is None else jnp.minimum(rows, tops[:, None]), axis=1)


def _product(left: Array, right: Array) -> Array:
    product = jnp.matmul(left, right, preferred_element_type=jnp.float32)
    return (product * len(left) ** -0.5).astype(left.dtype)  # numbers of the size of `left`'s


def _seconds_each(work: Callable[..., Array], start: Any, *operands: Array, count: int) -> float:
    """Of `count` calls in one program, each fed with the last one's result: the median of five.

    One call alone would measure the program's start and the way back as well.
    """

    @jax.jit
    def several(start: Any, *operands: Array) -> Array:
        if count == 1:
            return work(start, *operands)
        return jax.lax.fori_loop(0, count, lambda _, state: work(state, *operands), start)

    jax.block_until_ready(several(start, *operands))
    return statistics.median(_seconds(lambda: several(start, *operands)) for _ in range(5)) / count


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def check_memory(config: ModelConfig, dtype: str, tests: list[Test]) -> None:
    """Refuses tests whose cache the device has no room for, before the first of them runs.

    Raises:
      JllamaError: says which.
    """
    for test in tests:
        advice = f"leave out {test.name} or --batch_sizes={test.batch}, or use --dtype=bfloat16"
        memory.check_cache(config, dtype, batch=test.batch, max_len=_cache_length(test), advice=advice)


def _cache_length(test: Test) -> int:
    length = test.depth + test.count + BURST + 1
    return -(-length // CACHE_STEP) * CACHE_STEP


def run_test(config: ModelConfig, params: Params, test: Test, repetitions: int, seed: int) -> dict[str, Any]:
    """Seconds of each repetition after a warm-up, and what they mean."""
    slots, rng = empty_slots(config, params, test.batch, _cache_length(test)), np.random.default_rng(seed)
    once = prompt_seconds if test.kind == "pp" else generation_seconds
    for _ in range(2):  # the second time with a cache that a program returned, as every repetition has it
        once(slots, test, rng)
    return summarize(config, params, test, [once(slots, test, rng) for _ in range(repetitions)])


def empty_slots(config: ModelConfig, params: Params, rows: int, max_len: int) -> Slots:
    """An engine for so many texts, of the parameters' dtype."""
    return Slots.empty(config, params, slots=rows, max_len=max_len, dtype=str(params.norm.dtype))


def prompt_seconds(slots: Slots, test: Test, rng: np.random.Generator) -> float:
    """Seconds that the first slot's prompt takes, behind `depth` tokens: what they were changes nothing."""
    prompt = rng.integers(slots.config.vocab_size, size=test.depth + test.count, dtype=np.int32)
    started = time.perf_counter()
    jax.block_until_ready(read_prompt(slots, prompt, test.depth))
    return time.perf_counter() - started


def generation_seconds(slots: Slots, test: Test, rng: np.random.Generator) -> float:
    """Seconds that `count` tokens take, read as a user reads them.

    The clock starts with the arrival of the first block, not of the first token: by then a GPU is at work on
    that block, for as long as it took to launch it.
    """
    V = slots.config.vocab_size
    row = Row(
        prompt=np.zeros((0,), np.int32),
        sampling=Sampling.build(batch=1, vocab_size=V, **test.sampling),  # type: ignore[arg-type]
        key=np.zeros((2,), np.uint32),
        limit=test.count + 1,
        stop_ids=(),
    )
    # As if so many tokens had been read: what they were does not change the time.
    held = slots.state.cache.holding(np.full((test.batch,), test.depth, np.int32))
    slots.state = dataclasses.replace(slots.state, cache=held)
    logits = rng.standard_normal((test.batch, V), np.float32)
    read = measure_matching.arrivals if test.kind == "js" else _arrivals
    arrivals = read(slots, test, row, logits)[1:]
    timed = sum(tokens for _, tokens in arrivals[1:])
    if not timed:
        raise JllamaError(f"{test.name}: too few tokens to time; ask for at least {2 * BURST}")
    return (arrivals[-1][0] - arrivals[0][0]) * test.count / timed


def _arrivals(slots: Slots, test: Test, row: Row, logits: np.ndarray) -> list[tuple[float, int]]:
    """When blocks of tokens came, and how many a row."""
    rows = range(test.batch)
    first = slots.begin_together([(at, row, at) for at in rows], logits)
    return [(time.perf_counter(), block.shape[1]) for block in bursts(slots, first, rows)]


def summarize(config: ModelConfig, params: Params, test: Test, times: list[float]) -> dict[str, Any]:
    """Rates of the median repetition; the spread is (max - min) / median."""
    median = statistics.median(times)
    tokens = test.batch * test.count
    row = {
        "test": test.name,
        "batch": test.batch,
        "sampling": test.sampling,
        "choice": test.choice,
        "tokens_per_second": tokens / median,
        "spread": (max(times) - min(times)) / median,
        "seconds": times,
    }
    if test.kind == "pp":
        return row | {"flops_per_second": prompt_flops(config, test) / median}
    weights, kv = weight_bytes(params), kv_bytes(config, params, test)
    return row | {
        "weight_bytes_per_step": weights,
        "cache_bytes_per_step": kv,
        "bytes_per_second": (weights + kv) * test.count / median,
    }


def weight_bytes(params: Params) -> int:
    """What a decode step reads of the weights: all but the embedding table, unless that is the head too."""
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    table = sum(leaf.nbytes for leaf in jax.tree.leaves(params.embed_tokens))
    return total if params.lm_head is None else total - table


def weight_bits(params: Params) -> list[int]:
    """In how many bits the quantised weights are stored; empty: none is quantised."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return sorted({leaf.bits for leaf in leaves if isinstance(leaf, QTensor)})


def kv_bytes(config: ModelConfig, params: Params, test: Test) -> int:
    """What a decode step reads of the filled cache, on average over the test."""
    filled = test.depth + (test.count + 1) / 2
    windows = [config.kind_of(layer).window for layer in range(config.num_hidden_layers)]
    positions = sum(filled if window is None else min(filled, window) for window in windows)
    per_position = 2 * config.num_key_value_heads * config.head_dim
    return int(test.batch * positions * per_position * params.norm.dtype.itemsize)


def limit_seconds(config: ModelConfig, params: Params, test: Test, limits: Ceilings) -> float:
    """What the devices' own rates allow at best: what a test must read, or multiply, whichever is longer."""
    if test.kind == "pp":
        steps, flops, kv = 1, prompt_flops(config, test), 0
    else:
        step = dataclasses.replace(test, count=1, depth=test.depth + test.count // 2)
        steps, flops, kv = test.count, test.count * prompt_flops(config, step), kv_bytes(config, params, test)
    reads = steps * (weight_bytes(params) + kv) / limits.read_bytes_per_second
    return max(reads, flops / limits.matrix_flops_per_second) / sharding.devices_under(params)


def prompt_flops(config: ModelConfig, test: Test) -> float:
    """Two per weight and token (one unembedding a row), and causal attention's two products."""
    c, T = config, test.count
    heads = c.num_attention_heads * c.head_dim
    kv_heads = c.num_key_value_heads * c.head_dim
    weights = c.num_hidden_layers * c.hidden_size * (2 * heads + 2 * kv_heads + 3 * c.intermediate_size)
    pairs = T * test.depth + T * (T + 1) / 2
    attention = 4 * c.num_hidden_layers * heads * pairs
    return test.batch * (2 * weights * T + 2 * c.vocab_size * c.hidden_size + attention)


def first_token_seconds(config: ModelConfig, params: Params, prompt_tokens: int, seed: int) -> float:
    """From a prompt's ids to the first token's id on the host, warm: the median of five."""
    test = Test(kind="pp", count=prompt_tokens, depth=0, batch=1)
    max_len = -(-(prompt_tokens + 2) // CACHE_STEP) * CACHE_STEP
    slots, rng = empty_slots(config, params, 1, max_len), np.random.default_rng(seed)
    return statistics.median([prompt_seconds(slots, test, rng) for _ in range(6)][1:])


def peak_memory_bytes() -> int:
    """Of the device where it tells, else of the process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
