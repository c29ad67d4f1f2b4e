"""A short chunk of prompts: its tokens are the rows of a batch's products, `chunk.cu` attends between them.

A chunk reads all weights however short it is, so that what else a layer launches is a good part of its time.
It has six launches a layer where `product.cu` multiplies, nine where others do.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.gpu import launch
from jllama.kernels.gpu.batch import (
    batch_layers,
    batch_logits,
    knows_few_bits,
    most_products,
    read_leaves,
    weight_refusal,
    weights_of,
)
from jllama.kernels.gpu.chunk_attention import chunk_attend, chunk_refusal
from jllama.kernels.gpu.constants import ACTIVATIONS, PLAIN, Arrangement, rotary_dims
from jllama.kernels.gpu.few_bits import few_bits_layers
from jllama.kernels.gpu.plan import weight_format
from jllama.kernels.gpu.wide_batch import wide_layers
from jllama.kernels.gpu.wide_product import MAX_TOKENS as MAX_FEW_BITS
from jllama.kernels.gpu.wide_product import arranged
from jllama.kernels.refusals import FAMILY_FIELDS, refused_field, refused_leaf
from jllama.layers.cache import KVCache, LayerCache
from jllama.layers.kind import ScoreRule
from jllama.layers.qtensor import QTensor
from jllama.model import Params, embed, places, readable, unembed

MAX_WIDE = 256  # tokens whose products are cuBLAS's
PRODUCTS, FEW_BITS, WIDE = range(3)  # whose products these are: `product.cu`, `wide_product.cu`, cuBLAS


def short_refusal(config: ModelConfig, params: Params, cache: KVCache, tokens: Any) -> str | None:
    """Why the kernels can't read this chunk, int32 `[b, T]`, on one GPU; None if they can."""
    c, dtype, rows = config, params.norm.dtype, tokens.shape[0] * tokens.shape[1]
    reason = (
        launch.refusal()
        or refused_field(c, FAMILY_FIELDS)
        or refused_leaf(params, read_leaves(params))
        or chunk_refusal(c.head_dim, dtype, rotary_dims(c))
    )
    if reason is not None:
        return reason
    if cache.keys[0].dtype != dtype or c.hidden_act not in ACTIVATIONS:
        return f"weights of {dtype} with a cache of {cache.keys[0].dtype} and {c.hidden_act}"
    way = _way(config, params, rows)
    if way == PRODUCTS:
        alike = {(weight_format(w), w.shape): w for w in weights_of(params)}  # few of a hundred
        return next(filter(None, (weight_refusal(w, rows) for w in alike.values())), None)
    if way == FEW_BITS:
        return weight_refusal(weights_of(params)[-1], tokens.shape[0])  # the head's
    if rows > MAX_WIDE or isinstance(weights_of(params)[0], QTensor):
        return f"the kernels do not take {rows} tokens"
    if c.norm_placement != "pre" or c.hidden_size % 4:
        return f"norms that are placed {c.norm_placement}, rows of {c.hidden_size}"
    return None


def _way(config: ModelConfig, params: Params, rows: int) -> int:
    few_bits = knows_few_bits(config, params)
    if rows <= most_products(params, few_bits):
        return PRODUCTS
    return FEW_BITS if few_bits and rows <= MAX_FEW_BITS else WIDE


def short_step(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    cache: KVCache,
    n_valid: Array,
    context: Array | None,
    fresh: bool,
) -> tuple[Array, KVCache]:
    """`model.forward` of a chunk, of each row's last token alone; asks `short_refusal` first.

    Args:
      tokens: int32 `[b, T]`.
      cache: updated in place where XLA may (the caller donates it).
      n_valid: int32 `[b]`, how many of the T tokens count.
      context: int32 `[b]`, see `model.forward`.
      fresh: the cache is empty.

    Returns:
      float32 logits `[b, 1, V]`, and the cache with the new tokens.
    """
    with jax.named_scope("short_step"):
        b, T = tokens.shape
        positions = cache.length[:, None] + jnp.arange(T, dtype=jnp.int32)[None, :]
        table = places(config, positions, cache.length + n_valid if context is None else context)
        by_rows = {rope: (angles, _in_rows(scale)) for rope, (angles, scale) in table.items()}
        x = embed(config, params, readable(tokens, n_valid, positions, cache.max_len))
        call = (config, params, x.reshape(b * T, -1), cache, by_rows)
        attend, way = partial(_attend, b, T, fresh), _way(config, params, b * T)
        if way == PRODUCTS:
            x, cache = batch_layers(*call, attend=attend)
        else:
            x, _, cache = (few_bits_layers if way == FEW_BITS else wide_layers)(*call, attend=attend)
        cache, last = cache.advance(n_valid), jnp.maximum(n_valid - 1, 0) + jnp.arange(b, dtype=jnp.int32) * T
        if way == WIDE:
            return unembed(config, params, x[last][:, None]), cache
        return batch_logits(config, params, x[last]), cache


def _in_rows(scale: Array | None) -> Array | None:
    return None if scale is None else scale.reshape(-1, 1)


def _attend(
    b: int,
    T: int,
    fresh: bool,
    qkv: Array,
    cache: LayerCache,
    rope: tuple[Array, Array] | None,
    scores: ScoreRule,
    arrangement: Arrangement = PLAIN,
) -> tuple[Array, LayerCache]:
    """`chunk_attend` of `[b * T, 1, K, G + 2, H]`, or float32 slices of it that are added up first."""
    if qkv.ndim == 6:
        qkv = jnp.sum(qkv, axis=0).astype(cache.keys.dtype)
    qkv = qkv.reshape(b, T, *qkv.shape[2:])
    mixed, cache = chunk_attend(qkv, cache, rope, scores, fresh=fresh)
    return arranged(mixed.reshape(b * T, -1), arrangement), cache
