"""Grouped-query attention (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245) over the cache."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jllama.layers.cache import KVCache
from jllama.layers.linear import EXACT, linear
from jllama.layers.quantized import QTensor
from jllama.layers.rope import apply_rope

# (queries, keys, values, start, window) -> mixed values, with the shapes of `attend`.
Attend = Callable[[Array, Array, Array, Array, int | None], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """Query, key and value projections lie interleaved per key-value head.

    One product reads them all, and a mesh can still shard them by key-value head.
    """

    qkv_proj: Array | QTensor  # [K, G + 2, H, D]: G query heads, then their key, then their value
    o_proj: Array | QTensor  # [D, N * H]
    qkv_bias: Array | None = None  # [K, G + 2, H]
    o_bias: Array | None = None  # [D]


def attention(
    p: Attention,
    x: Array,
    cache: KVCache,
    layer: int,
    *,
    rope: tuple[Array, Array],
    window: int | None = None,
    attend_fn: Attend | None = None,
) -> tuple[Array, KVCache]:
    """Causal self-attention of T new tokens over the cache and themselves.

    Args:
      p: the layer's parameters.
      x: `[B, T, D]`, normalised.
      cache: the new keys and values are appended to it; its `length` is left to the caller.
      layer: which layer of the cache.
      rope: cosines and sines of the new positions, float32 `[B, T, H/2]`.
      window: how many positions a token sees, itself included (config key `sliding_window`).
      attend_fn: what mixes the values; `attend` when None, a kernel of the same signature otherwise.

    Returns:
      `[B, T, D]` in the dtype of `x`, and the cache with the new tokens' keys and values.
    """
    with jax.named_scope("attention"):
        B, T, _ = x.shape
        qkv = linear(p.qkv_proj, x, p.qkv_bias)  # [B, T, K, G + 2, H]
        rotated = apply_rope(qkv[:, :, :, :-1], *rope)
        queries, keys, values = rotated[:, :, :, :-1], rotated[:, :, :, -1], qkv[:, :, :, -1]
        cache = cache.append(layer, keys, values)
        mixed = (attend_fn or attend)(queries, *cache.read(layer), cache.length, window)
        return linear(p.o_proj, mixed.reshape(B, T, -1), p.o_bias), cache


def attend(q: Array, k: Array, v: Array, start: Array, window: int | None) -> Array:
    """Softmax attention of new tokens over all filled positions.

    Args:
      q: `[B, T, K, G, H]`, the queries of positions `start` to `start + T - 1`.
      k: `[B, K, S, H]`, the new tokens' keys included.
      v: `[B, K, S, H]`.
      start: int32 `[B]`, the position of the first new token of each row.
      window: how many positions a token sees, itself included; None for all.

    Returns:
      `[B, T, K, G, H]` in the dtype of `q`.
    """
    with jax.named_scope("attend"):
        scores = jnp.einsum("btkgh,bksh->bktgs", q, k, precision=EXACT, preferred_element_type=jnp.float32)
        visible = visible_positions(start, q.shape[1], k.shape[2], window)
        scale = q.shape[-1] ** -0.5
        scores = jnp.where(visible[:, None, :, None, :], scores * scale, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
        # The transpose stays outside: XLA's CPU backend lacks a batched bfloat16 product that transposes.
        mixed = jnp.einsum(
            "bktgs,bksh->bktgh", weights, v, precision=EXACT, preferred_element_type=jnp.float32
        )
        return jnp.swapaxes(mixed, 1, 2).astype(q.dtype)


def visible_positions(start: Array, T: int, S: int, window: int | None) -> Array:
    """Bool `[B, T, S]`: which cache positions each new token may look at."""
    query = start[:, None, None] + jnp.arange(T, dtype=jnp.int32)[None, :, None]
    key = jnp.arange(S, dtype=jnp.int32)[None, None, :]
    causal = key <= query
    return causal if window is None else causal & (key > query - window)
