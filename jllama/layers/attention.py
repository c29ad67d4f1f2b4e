"""Grouped-query attention (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245) over the cache."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jllama.layers.cache import LayerCache
from jllama.layers.kind import ScoreRule
from jllama.layers.linear import EXACT, linear
from jllama.layers.norm import rms_norm
from jllama.layers.qtensor import QTensor
from jllama.layers.rope import apply_rope
from jllama.layers.shards import Shards

# (qkv, cache, rope, scores, only) -> (mixed values, cache): what `append_and_attend` does.
Attend = Callable[
    [Array, LayerCache, tuple[Array, Array] | None, ScoreRule, Array | None], tuple[Array, LayerCache]
]


Norm = Callable[..., Array]  # of a weight, None where there is none, and what it scales; see `rms_norm`
PLAIN_NORM: Norm = partial(rms_norm, eps=1e-6)
PLAIN_SCORES = ScoreRule()


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
    q_norm: Array | None = None  # [H] of each head, or [K, G, H] of all together
    k_norm: Array | None = None  # [H] or [K, H]


def append_and_attend(
    qkv: Array,
    cache: LayerCache,
    rope: tuple[Array, Array] | None,
    scores: ScoreRule,
    only: Array | None,
) -> tuple[Array, LayerCache]:
    """What lies between the projections: rotate, append, attend. A kernel may do all of it at once.

    Args:
      qkv: `[B, T, K, G + 2, H]`, as projected; the other arguments are those of `attention`.

    Returns:
      mixed values `[B, T, K, G, H]` (`[B, 1, K, G, H]` with `only`), and the cache with the new tokens.
    """
    queries, keys, values = rotated_heads(qkv, rope)
    cache, start = cache.append(keys, values), cache.length
    if only is not None:
        queries, start = one_token(queries, only), start + only
    return attend(queries, *cache.own(), start, scores), cache


def attention(
    p: Attention,
    x: Array,
    cache: LayerCache,
    *,
    rope: tuple[Array, Array] | None,
    scores: ScoreRule = PLAIN_SCORES,
    norm: Norm = PLAIN_NORM,
    query_scale: Array | None = None,
    only: Array | None = None,
    attend_fn: Attend = append_and_attend,
    shards: Shards | None = None,
) -> tuple[Array, LayerCache]:
    """Causal self-attention of T new tokens over the cache and themselves.

    Args:
      p: the layer's parameters.
      x: `[B, T, D]`, normalised.
      cache: the layer's own; the new keys and values are appended to it, its `length` is left to the caller.
      rope: cosines and sines of the new positions, float32 `[B, T, R/2]`; None: nothing is rotated.
      scores: how queries and keys become scores.
      norm: of `q_norm` and `k_norm`, where the layer has them: of a weight and what it scales.
      query_scale: what the queries are multiplied by, float32 `[B, T]`; None: 1.
      only: int32 `[B]`, the one token of each row whose result is wanted; all of them when None.
      attend_fn: what lies between the projections; a kernel may take its place.
      shards: the devices that the heads are spread over.

    Returns:
      `[B, T, D]` (`[B, 1, D]` with `only`) in the dtype of `x`, and the cache with the new tokens' keys and
      values.
    """
    with jax.named_scope("attention"):
        qkv = linear(p.qkv_proj, x, p.qkv_bias)  # [B, T, K, G + 2, H]
        qkv = scaled_queries(normed_heads(p, qkv, norm, shards), query_scale)
        mixed, cache = attend_fn(qkv, cache, rope, scores, only)
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        return linear(p.o_proj, mixed, p.o_bias, shards=shards), cache


def normed_heads(p: Attention, qkv: Array, norm: Norm, shards: Shards | None = None) -> Array:
    """`[B, T, K, G + 2, H]` with queries and keys normalised, each head alone or all heads together."""
    if p.q_norm is None:
        return qkv
    whole = shards if p.q_norm.ndim > 1 else None  # a head of its own lies on one device
    queries = norm(p.q_norm, qkv[:, :, :, :-2], shards=whole)
    keys = norm(p.k_norm, qkv[:, :, :, -2], shards=whole)
    return jnp.concatenate((queries, keys[:, :, :, None], qkv[:, :, :, -1:]), axis=3)


def scaled_queries(qkv: Array, scale: Array | None) -> Array:
    """`[B, T, K, G + 2, H]` with the queries times `scale`, float32 `[B, T]`."""
    if scale is None:
        return qkv
    queries = qkv[:, :, :, :-2].astype(jnp.float32) * scale[:, :, None, None, None]
    return jnp.concatenate((queries.astype(qkv.dtype), qkv[:, :, :, -2:]), axis=3)


def rotated_heads(qkv: Array, rope: tuple[Array, Array] | None) -> tuple[Array, Array, Array]:
    """Queries `[B, T, K, G, H]` and keys, both rotated where there is a `rope`, and values `[B, T, K, H]`."""
    rotated = qkv[:, :, :, :-1]
    rotated = rotated if rope is None else apply_rope(rotated, *rope)
    return rotated[:, :, :, :-1], rotated[:, :, :, -1], qkv[:, :, :, -1]


def one_token(x: Array, index: Array) -> Array:
    """Of each row of `[B, T, ...]` one token: `[B, 1, ...]`."""
    return jnp.take_along_axis(x, index.reshape((-1,) + (1,) * (x.ndim - 1)), axis=1)


def attend(q: Array, k: Array, v: Array, start: Array, rule: ScoreRule) -> Array:
    """Softmax attention of new tokens over all filled positions.

    Args:
      q: `[B, T, K, G, H]`, the queries of positions `start` to `start + T - 1`.
      k: `[B, K, S, H]`, the new tokens' keys included.
      v: `[B, K, S, H]`.
      start: int32 `[B]`, the position of the first new token of each row.
      rule: how queries and keys become scores.

    Returns:
      `[B, T, K, G, H]` in the dtype of `q`.
    """
    with jax.named_scope("attend"):
        scores = jnp.einsum("btkgh,bksh->bktgs", q, k, precision=EXACT, preferred_element_type=jnp.float32)
        visible = visible_positions(start, q.shape[1], k.shape[2], rule.window)
        scores = scores * rule.factor(q.shape[-1])
        scores = jnp.where(visible[:, None, :, None, :], soft_capped(scores, rule.softcap), -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
        # The transpose stays outside: XLA's CPU backend lacks a batched bfloat16 product that transposes.
        mixed = jnp.einsum(
            "bktgs,bksh->bktgh", weights, v, precision=EXACT, preferred_element_type=jnp.float32
        )
        return jnp.swapaxes(mixed, 1, 2).astype(q.dtype)


def soft_capped(x: Array, cap: float | None) -> Array:
    """No value of `x` lies beyond `cap`, small ones hardly change (Gemma 2: config keys `*_softcapping`)."""
    return x if cap is None else jnp.tanh(x / cap) * cap


def visible_positions(start: Array, T: int, S: int, window: int | None) -> Array:
    """Bool `[B, T, S]`: which cache positions each new token may look at."""
    query = start[:, None, None] + jnp.arange(T, dtype=jnp.int32)[None, :, None]
    key = jnp.arange(S, dtype=jnp.int32)[None, None, :]
    causal = key <= query
    return causal if window is None else causal & (key > query - window)
