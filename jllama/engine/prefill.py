"""Prompts into the cache, in chunks of few sizes, so that no prompt's length compiles anything new."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama import kernels
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.kernels.target import Target, target_of
from jllama.layers.cache import KVCache
from jllama.machine.progress import Bar
from jllama.model import Params

Progress = Callable[[int], Bar]  # makes a bar for that many tokens


def prefill_chunk(
    config: ModelConfig, params: Params, cache: KVCache, logits: Array | None, chunk: Array, *, target: Target
) -> tuple[Array, KVCache]:
    """One chunk of right-padded prompts: last logits `[B, V]` and the cache, both donated.

    Args:
      config: the architecture.
      params: its weights.
      cache: what came before.
      logits: what the chunk before gave: a row that ended there keeps its own. None: the cache is empty.
      chunk: int32 `[B, 2 + T]`, one array since each costs a transfer: of each row how many of the T tokens
        count (maybe none) and how long its whole text will be, then the tokens.
      target: where it runs.
    """
    n_valid, context, tokens = chunk[:, 0], chunk[:, 1], chunk[:, 2:]
    fresh = logits is None
    if fresh:
        cache = dataclasses.replace(cache, length=jnp.zeros_like(n_valid))
    new_logits, cache = kernels.forward(
        config, params, tokens, cache, n_valid=n_valid, context=context, target=target, fresh=fresh
    )
    if logits is None:
        return new_logits[:, 0], cache
    return jnp.where(n_valid[:, None] > 0, new_logits[:, 0], logits), cache


@functools.cache
def compiled_chunk(target: Target, size: int) -> Callable[..., tuple[Array, KVCache]]:
    """`prefill_chunk` of so many tokens under `jit`."""
    return jax.jit(
        partial(prefill_chunk, target=target),
        static_argnums=0,
        donate_argnames=("cache", "logits"),
        compiler_options=target.chunk_options(size),
    )


def chunk_sizes(count: int, sizes: Sequence[int]) -> list[int]:
    """How to cut `count` tokens into chunks of the given sizes, the last one padded.

    Padding up to twice the rest beats several small calls; beyond that the next smaller size goes first.
    """
    chunks = []
    while count > 0:
        above = [size for size in sizes if count <= size <= 2 * count]
        below = [size for size in sizes if size <= count]
        chunks.append(min(above) if above else max(below) if below else min(sizes))
        count -= chunks[-1]
    return chunks


def prefill(
    config: ModelConfig,
    params: Params,
    cache: KVCache,
    prompts: Sequence[Sequence[int]],
    *,
    progress: Progress | None = None,
) -> tuple[Array, KVCache]:
    """Puts prompts behind what the cache holds.

    Args:
      config: the architecture.
      params: its weights.
      cache: donated: it must not be used afterwards.
      prompts: new token ids of each row, at least one; rows may differ in length.
      progress: makes a bar for so many tokens of the longest row; not asked if one chunk holds them.

    Returns:
      float32 `[B, V]`, the logits behind each row's last token, and the new cache.

    Raises:
      JllamaError: a row is empty or does not fit in the cache.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    used = np.asarray(cache.length)
    check_fits(lengths, used, cache.max_len)
    target, start = target_of(params), 0
    # Only a GPU has a faster way for an empty cache; elsewhere it would be one more program.
    fresh = target.on_gpu and not used.any()
    logits = None if fresh else jnp.zeros((len(prompts), config.vocab_size), jnp.float32)
    total = int(lengths.max())
    sizes = chunk_sizes(total, target.chunk_sizes)
    with progress(total) if progress and len(sizes) > 1 else nullcontext() as bar:
        for size in sizes:
            chunk = _chunk(prompts, start, size, used + lengths)
            logits, cache = compiled_chunk(target, size)(config, params, cache, logits, chunk)
            if bar is not None:
                jax.block_until_ready(logits)  # else it would count what was asked for, not what is done
                bar.advance(min(size, total - start))
            start += size
    assert logits is not None
    return logits, cache


def check_fits(lengths: np.ndarray, used: np.ndarray, max_len: int) -> None:
    """Refuses a prompt that is empty or leaves no room for an answer in the cache."""
    if not lengths.size or lengths.min() < 1:
        raise JllamaError("the prompt is empty: give at least one token")
    need = int((used + lengths).max()) + 1
    if need > max_len:
        raise JllamaError(
            f"prompt and answer need {need} positions at least and the cache has {max_len}: "
            "shorten the prompt or raise max_seq_len"
        )


def _chunk(prompts: Sequence[Sequence[int]], start: int, size: int, context: np.ndarray) -> np.ndarray:
    """The `chunk` of `prefill_chunk`: `size` tokens of each row from `start`."""
    chunk = np.zeros((len(prompts), 2 + size), np.int32)
    chunk[:, 1] = context
    for row, prompt in enumerate(prompts):
        piece = prompt[start : start + size]
        chunk[row, 0] = len(piece)
        chunk[row, 2 : 2 + len(piece)] = piece
    return chunk
