"""Prompts into the cache, in chunks of few sizes, so that no prompt's length compiles anything new."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama import kernels
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.layers.cache import KVCache
from jllama.model import Params

CHUNK_SIZES = {"cpu": (32, 128, 512), "gpu": (64, 512, 2048)}


@partial(jax.jit, static_argnames=("config", "platform", "fresh"), donate_argnames=("cache", "logits"))
def prefill_chunk(
    config: ModelConfig,
    params: Params,
    cache: KVCache,
    logits: Array,
    tokens: Array,
    n_valid: Array,
    context: Array,
    *,
    platform: str,
    fresh: bool,
) -> tuple[Array, KVCache]:
    """One chunk of right-padded prompts `[B, T]`: last logits `[B, V]` and the cache, both donated.

    A row that ended in an earlier chunk (`n_valid` 0) keeps the logits it had. `fresh`: the cache is empty.
    """
    new_logits, cache = kernels.forward(
        config, params, tokens, cache, n_valid=n_valid, context=context, platform=platform, fresh=fresh
    )
    return jnp.where(n_valid[:, None] > 0, new_logits[:, 0], logits), cache


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
    config: ModelConfig, params: Params, cache: KVCache, prompts: Sequence[Sequence[int]]
) -> tuple[Array, KVCache]:
    """Puts prompts behind what the cache holds.

    Args:
      config: the architecture.
      params: its weights.
      cache: donated: it must not be used afterwards.
      prompts: new token ids of each row, at least one; rows may differ in length.

    Returns:
      float32 `[B, V]`, the logits behind each row's last token, and the new cache.

    Raises:
      JllamaError: a row is empty or does not fit in the cache.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    used = np.asarray(cache.length)
    check_fits(lengths, used, cache.max_len)
    logits, start = jnp.zeros((len(prompts), config.vocab_size), jnp.float32), 0
    platform = platform_of(params)
    for size in chunk_sizes(int(lengths.max()), CHUNK_SIZES[platform]):
        tokens = _padded(prompts, start, size)
        n_valid = np.clip(lengths - start, 0, size).astype(np.int32)
        # Only a GPU has a faster way for an empty cache; elsewhere it would be one more program.
        fresh = platform == "gpu" and start == 0 and not used.any()
        logits, cache = prefill_chunk(
            config, params, cache, logits, tokens, n_valid, used + lengths, platform=platform, fresh=fresh
        )
        start += size
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


def _padded(prompts: Sequence[Sequence[int]], start: int, size: int) -> np.ndarray:
    tokens = np.zeros((len(prompts), size), np.int32)
    for row, prompt in enumerate(prompts):
        piece = prompt[start : start + size]
        tokens[row, : len(piece)] = piece
    return tokens


def platform_of(params: Params) -> str:
    """`cpu` or `gpu`: where the weights lie."""
    return next(iter(params.norm.devices())).platform.replace("cuda", "gpu")
