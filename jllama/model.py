"""The whole model: embed, blocks of attention and feed-forward, norm, unembed. Pure functions."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.layers.attention import Attend, Attention, append_and_attend, attention, one_token, soft_capped
from jllama.layers.cache import KVCache, LayerCache
from jllama.layers.gradients import register_params
from jllama.layers.kind import LayerKind
from jllama.layers.linear import linear
from jllama.layers.mlp import MLP, mlp
from jllama.layers.norm import rms_norm
from jllama.layers.qtensor import QTensor, embed_rows
from jllama.layers.rope import Rope, query_scale, rope_tables
from jllama.layers.shards import Shards


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One transformer layer."""

    attention: Attention
    mlp: MLP
    attn_norm: Array | None = None  # [D], before the attention
    attn_post_norm: Array | None = None  # [D], behind it
    ffn_norm: Array | None = None  # [D], before the feed-forward layer
    ffn_post_norm: Array | None = None  # [D], behind it


@register_params
@dataclasses.dataclass(frozen=True, kw_only=True)
class Params:
    """All weights of a model, in the run dtype."""

    embed_tokens: Array | QTensor  # [V, D]
    layers: tuple[Block, ...]  # L
    norm: Array  # [D]
    lm_head: Array | QTensor | None = None  # [V, D]; None: tied to embed_tokens
    # int32 [t, 2], of a model on t devices whose kernels store into each other's memory: the places there.
    peers: Array | None = None

    def __repr__(self) -> str:
        return f"Params({len(self.layers)} layers, {len(jax.tree.leaves(self))} arrays)"


# Cosines and sines of the positions, float32 `[B, T, R/2]`, and what queries are multiplied by, `[B, T]`.
Places = tuple[tuple[Array, Array] | None, Array | None]


@partial(jax.jit, static_argnames=("config", "kind", "attend_fn"))  # traced once a kind, then inlined
def block(
    config: ModelConfig,
    p: Block,
    x: Array,
    cache: LayerCache,
    places: Places,
    *,
    kind: LayerKind,
    only: Array | None = None,
    attend_fn: Attend = append_and_attend,
    shards: Shards | None = None,
) -> tuple[Array, LayerCache]:
    """One layer on the residual stream `x` `[B, T, D]`; with `only` (int32 `[B]`) one token of each row."""
    norm = partial(rms_norm, eps=config.rms_norm_eps, offset=config.norm_offset)
    options: Any = dict(
        rope=places[0],
        scores=config.score_rule(kind),
        norm=norm,
        query_scale=places[1],
        only=only,
        shards=shards,
    )
    mixed, cache = attention(p.attention, norm(p.attn_norm, x), cache, **options, attend_fn=attend_fn)
    x = x if only is None else one_token(x, only)
    x = x + scaled(norm(p.attn_post_norm, mixed), config.residual_multiplier)
    fed = mlp(p.mlp, norm(p.ffn_norm, x), config.hidden_act, shards)
    return x + scaled(norm(p.ffn_post_norm, fed), config.residual_multiplier), cache


def scaled(x: Array, factor: float) -> Array:
    """`x` times a factor of the configuration, in float32 and rounded once."""
    return x if factor == 1 else (x.astype(jnp.float32) * factor).astype(x.dtype)


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    cache: KVCache,
    *,
    n_valid: Array | None = None,
    context: Array | None = None,
    last_only: bool = False,
    attend_fn: Attend = append_and_attend,
    shards: Shards | None = None,
) -> tuple[Array, KVCache]:
    """Logits of T new tokens behind whatever the cache holds: prefill and decode alike.

    Pure: `jit`, `vmap` and `grad` go through it, and `cache` stays valid. Quantised weights have no gradient.

    Args:
      config: the architecture (static under `jit`).
      params: its weights.
      tokens: int32 `[B, T]`, right-padded.
      cache: what came before.
      n_valid: int32 `[B]`, how many of the T tokens count; all when None.
      context: int32 `[B]`, the length of the whole text that this call is a chunk of; up to its own last
        token when None. The RoPE types `dynamic` and `longrope` read it.
      last_only: only the logits of each row's last valid token.
      attend_fn: what each layer does between its projections; a kernel may take its place.
      shards: under `jax.shard_map`, the devices that hold the model; all else is this one's, logits too.

    Returns:
      float32 logits `[B, T, V]` (`[B, 1, V]` with `last_only`) and the cache with the new tokens. A token
      that finds the cache full is not kept, and its logits are NaN.

    Raises:
      JllamaError: tokens are no such array, or config or cache none; or, where lengths are known, the tokens
        do not fit in the cache (else NaN).
    """
    _check_kinds(config, cache)
    B, T = checked_shape(tokens, rows=cache.batch)
    n_valid = jnp.full((B,), T, jnp.int32) if n_valid is None else n_valid
    check_room(cache, n_valid)
    context = cache.length + n_valid if context is None else context
    positions = cache.length[:, None] + jnp.arange(T, dtype=jnp.int32)[None, :]
    table = places(config, positions, context)
    x = embed(config, params, readable(tokens, n_valid, positions, cache.max_len))
    # Of the last layer, other tokens than the last one are needed as keys and values alone.
    last = jnp.maximum(n_valid - 1, 0) if last_only and T > 1 else None
    x, cache = _through(config, params, x, cache, table, last, dict(attend_fn=attend_fn, shards=shards))
    return unembed(config, params, x), cache.advance(n_valid)


def _through(
    config: ModelConfig,
    params: Params,
    x: Array,
    cache: KVCache,
    table: dict[Rope | None, Places],
    last: Array | None,
    options: dict[str, Any],
) -> tuple[Array, KVCache]:
    """`x` `[B, T, D]` behind all layers; of the last one only the tokens `last`, int32 `[B]`, if any."""
    for layer, p in enumerate(params.layers):
        kind, own = config.kind_of(layer), cache.layer(layer)
        only = last if layer == len(params.layers) - 1 else None
        with jax.named_scope(f"layer_{layer}"):
            x, own = block(config, p, x, own, table[kind.rope], kind=kind, only=only, **options)
        cache = cache.replace(layer, own)
    return x, cache


def places(config: ModelConfig, positions: Array, context: Array) -> dict[Rope | None, Places]:
    """What positions mean to the layers of each kind of rotary embedding.

    Args:
      config: the architecture.
      positions: int32 `[B, T]`.
      context: int32 `[B]`, see `forward`.
    """
    # In the layers' order: a set's differs from process to process, and with it the program that XLA keeps.
    kinds = dict.fromkeys(config.kind_of(layer).rope for layer in range(config.num_hidden_layers))
    H = config.head_dim
    return {
        rope: (rope_tables(rope, H, positions, context) if rope else None, query_scale(rope, positions))
        for rope in kinds
    }


def _check_kinds(config: ModelConfig, cache: KVCache) -> None:
    for name, value, kind in (("config", config, ModelConfig), ("cache", cache, KVCache)):
        if not isinstance(value, kind):
            raise JllamaError(
                f"{name} is a {type(value).__name__}, not a {kind.__name__}: "
                "forward takes config, params, tokens, cache, such as those of a Model and KVCache.empty"
            )


def checked_shape(tokens: Array, *, rows: int) -> tuple[int, int]:
    """B and T of `tokens`; refuses what is no array of whole numbers `[B, T]` with the cache's rows."""
    is_array = isinstance(tokens, jax.Array | np.ndarray)
    is_whole = is_array and tokens.ndim == 2 and jnp.issubdtype(tokens.dtype, jnp.integer)
    if is_whole and tokens.shape[0] == rows and tokens.shape[1] > 0:
        return rows, tokens.shape[1]
    given = f"{tokens.dtype} {list(tokens.shape)}" if is_array else f"a {type(tokens).__name__}"
    raise JllamaError(
        f"tokens are {given}; they must be an int32 array [B, T] of the cache's B = {rows} rows, T at least 1"
    )


def check_room(cache: KVCache, n_valid: Array) -> None:
    """Refuses `n_valid` (int32 `[B]`) more tokens than fit in the cache; traced lengths are not looked at."""
    if isinstance(cache.length, jax.core.Tracer) or isinstance(n_valid, jax.core.Tracer):
        return
    need = int(np.max(np.asarray(cache.length) + np.asarray(n_valid), initial=0))
    if need > cache.max_len:
        raise JllamaError(
            f"the text would have {need} tokens and the cache has {cache.max_len} positions: "
            "give fewer tokens or make the cache with a larger max_len"
        )


def readable(tokens: Array, n_valid: Array, positions: Array, max_len: int) -> Array:
    """Tokens `[B, T]` as `embed` takes them: 0 for padding, -1 (which embeds as NaN) past the cache's end.

    Padding may be any id, -1 too: NaN in an unfilled place of the cache would spoil the valid tokens.
    """
    valid = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :] < n_valid[:, None]
    return jnp.where(valid, jnp.where(positions < max_len, tokens, -1), 0)


def embed(config: ModelConfig, params: Params, tokens: Array) -> Array:
    """`[B, T, D]` in the run dtype. A token outside the vocabulary is NaN, not its neighbour."""
    with jax.named_scope("embed"):
        # Without the barrier XLA on a CPU upcasts a tied table once for both of its uses: 100 MB a step.
        table = jax.lax.optimization_barrier(params.embed_tokens)
        x = embed_rows(table, tokens, params.norm.dtype)
        factor = embedding_factor(config, x.dtype)
        return x if factor == 1 else x * jnp.asarray(factor, x.dtype)


def embedding_factor(config: ModelConfig, dtype: Any) -> float:
    """What embeddings are multiplied by: a number of the run dtype, as in Gemma's own code."""
    return float(np.asarray(config.embedding_multiplier, jnp.dtype(dtype)))


def unembed(config: ModelConfig, params: Params, x: Array) -> Array:
    """float32 logits `[B, T, V]`."""
    with jax.named_scope("unembed"):
        x = rms_norm(params.norm, x, config.rms_norm_eps, config.norm_offset)
        return head_logits(config, params, x)


def head_logits(config: ModelConfig, params: Params, normed: Array) -> Array:
    """float32 logits `[B, T, V]` of `normed` `[B, T, D]`, what the last norm gives."""
    head = params.embed_tokens if params.lm_head is None else params.lm_head
    logits = linear(head, normed, dtype=jnp.float32)
    return soft_capped(scaled(logits, 1 / config.logits_scaling), config.final_logit_softcapping)
