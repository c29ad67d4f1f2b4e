"""One decoding step of a few sequences: four products a layer (`product.cu`) and the attention of a batch.

What a family has beyond that, norms of heads and behind the halves of a layer, is XLA's, between them.
"""

from functools import partial
from typing import Any

import jax
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.gpu import launch
from jllama.kernels.gpu.constants import ACTIVATIONS, rotary_dims
from jllama.kernels.gpu.decode_attention import RowsAttend, attention_refusal, decode_attend
from jllama.kernels.gpu.exchange import Peers, exchanged, refused_shards
from jllama.kernels.gpu.family import layer_extras, layer_leaf
from jllama.kernels.gpu.few_bits import few_bits_step, head_of
from jllama.kernels.gpu.plan import weight_format
from jllama.kernels.gpu.product import MAX_PLAIN, MAX_TOKENS, product, product_refusal
from jllama.kernels.gpu.wide_batch import wide_refusal, wide_step
from jllama.kernels.gpu.wide_product import MAX_TOKENS as MAX_FEW_BITS
from jllama.kernels.gpu.wide_product import arrangement
from jllama.kernels.refusals import FAMILY_FIELDS, refused_field, refused_leaf
from jllama.layers.attention import normed_heads, scaled_queries, soft_capped
from jllama.layers.cache import KVCache, LayerCache
from jllama.layers.kind import LayerKind
from jllama.layers.norm import rms_norm
from jllama.layers.qtensor import QTensor
from jllama.layers.rope import Rope
from jllama.layers.shards import Shards
from jllama.model import Block, Params, Places, embed, readable, scaled

MAX_ALONE = 32  # sequences that one GPU takes by `wide_step`: more were not measured


def batch_refusal(
    config: ModelConfig, params: Params, cache: KVCache, tokens: Array, shards: Shards | None = None
) -> str | None:
    """Why the kernels can't run this step; None if they can. With `shards` all sizes are one device's own."""
    B, T = tokens.shape
    few_bits = shards is None and knows_few_bits(config, params)
    most = max(most_products(params, few_bits), MAX_FEW_BITS if few_bits else MAX_ALONE)
    if T != 1 or not B > 1 or (most < B and not isinstance(shards, Peers)):
        return f"tokens have shape {tokens.shape}; the kernels take one token of 2 to {most} sequences"
    reason = (
        launch.refusal()
        or refused_shards(config, shards)
        or refused_field(config, FAMILY_FIELDS)
        or refused_leaf(params, read_leaves(params))
    )
    if reason is not None or most_products(params, few_bits) < B:
        return reason or wide_refusal(config, params, cache, B)
    return _config_refusal(config, params, cache) or (
        next(filter(None, map(weight_refusal, weights_of(params))), None) if launch.engine() else None
    )


def most_products(params: Params, few_bits: bool = False) -> int:
    """Sequences that `product.cu` is the faster way for; without clusters those that a block has room for.
    `few_bits`: `few_bits_step` takes more.
    """
    weights = weights_of(params)
    most = MAX_TOKENS if isinstance(weights[0], QTensor) and not few_bits else MAX_PLAIN
    if launch.engine():
        return most
    fits = (B for B in range(most, 0, -8) if not any(weight_refusal(w, B) for w in weights))
    return next(fits, 0)


def knows_few_bits(config: ModelConfig, params: Params) -> bool:
    """Whether `few_bits_step` knows all weights, and where norms are."""
    return config.norm_placement == "pre" and all(
        isinstance(w, QTensor) and arrangement(w, 1).bits for w in weights_of(params)
    )


def _config_refusal(c: ModelConfig, params: Params, cache: KVCache) -> str | None:
    dtype = params.norm.dtype
    if cache.keys[0].dtype != dtype:
        return f"weights of {dtype} with a cache of {cache.keys[0].dtype}; the kernels want 16 bits in both"
    if c.hidden_act not in ACTIVATIONS:
        return f"the kernels do not know hidden_act {c.hidden_act}"
    heads_per_key = c.num_attention_heads // c.num_key_value_heads
    return attention_refusal(heads_per_key, c.head_dim, dtype, rotary_dims(c))


def read_leaves(params: Params) -> list[Any]:
    """All leaves that a step reads."""
    others = [(p.attn_norm, p.ffn_norm, _extras(p)) for p in params.layers]
    return [params.embed_tokens, params.norm, params.peers, *others, *weights_of(params)]


def _extras(layer: Block) -> list[Array | None]:
    return [layer_leaf(layer, path) for path in layer_extras(layer)]


def weights_of(params: Params) -> list[Array | QTensor]:
    """Every weight that is multiplied with, in the order of use."""
    found = []
    for layer in params.layers:
        a, m = layer.attention, layer.mlp
        found += [a.qkv_proj, a.o_proj, m.gate_up_proj, m.down_proj]
    return [*found, head_of(params)]


def weight_refusal(w: Array | QTensor, tokens: int = MAX_TOKENS) -> str | None:
    rows = 1
    for size in w.shape[:-1]:
        rows *= size
    return product_refusal(weight_format(w), rows, w.shape[-1], tokens)


def batch_step(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    cache: KVCache,
    n_valid: Array,
    places: dict[Rope | None, Places],
    peers: Peers | None = None,
) -> tuple[Array, KVCache]:
    """`model.forward` of one token of each sequence; asks `batch_refusal` first.

    Args:
      tokens: int32 `[B, 1]`.
      cache: updated in place where XLA may (the caller donates it); `length` is left to the caller.
      n_valid: int32 `[B]`, 0 for rows that are done.
      places: of the new positions, `model.places`.
      peers: the GPUs that take this step together, each called with its own part of everything.

    Returns:
      float32 logits `[B, 1, V]`, as many of them as the head has rows here, and the cache with the tokens'
      keys and values.
    """
    with jax.named_scope("batch_step"):
        tokens = readable(tokens, n_valid, cache.length[:, None], cache.max_len)
        few_bits = peers is None and knows_few_bits(config, params)
        if len(tokens) > most_products(params, few_bits):
            if few_bits:
                return few_bits_step(config, params, tokens, cache, places)
            return wide_step(config, params, tokens, cache, places, peers)
        x = embed(config, params, tokens)[:, 0]
        x, cache = batch_layers(config, params, x, cache, places, peers)
        return batch_logits(config, params, x), cache


def batch_layers(
    config: ModelConfig,
    params: Params,
    x: Array,
    cache: KVCache,
    places: dict[Rope | None, Places],
    peers: Peers | None = None,
    *,
    attend: RowsAttend | None = None,
) -> tuple[Array, KVCache]:
    """`x` `[B, D]` behind the layers of `params`, and their cache.

    `attend`: what a layer does between its projections; None: `decode_attend`.
    """
    for i, p in enumerate(params.layers):
        kind = config.kind_of(i)
        call = (cache.layer(i), places[kind.rope], kind, peers, attend or decode_attend)
        x, own = _layer(config, p, x, *call)
        cache = cache.replace(i, own)
    return x, cache


def batch_logits(config: ModelConfig, params: Params, x: Array) -> Array:
    """float32 logits `[B, 1, V]` of `x` `[B, D]`."""
    eps: Any = dict(eps=config.rms_norm_eps, offset=config.norm_offset)
    logits = product(head_of(params), x, norm=params.norm, wide=True, **eps)
    logits = scaled(logits, 1 / config.logits_scaling)
    return soft_capped(logits, config.final_logit_softcapping)[:, None]


def _layer(
    c: ModelConfig,
    p: Block,
    x: Array,
    cache: LayerCache,
    places: Places,
    kind: LayerKind,
    peers: Peers | None,
    attend: RowsAttend,
) -> tuple[Array, LayerCache]:
    """`model.block` on `x` `[B, D]`."""
    a, m, B = p.attention, p.mlp, len(x)
    eps: Any = dict(eps=c.rms_norm_eps, offset=c.norm_offset)
    heads = (c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads + 2, c.head_dim)
    y = product(a.qkv_proj, x, norm=p.attn_norm, bias=a.qkv_bias, **eps).reshape(B, 1, *heads)
    y = scaled_queries(normed_heads(a, y, partial(rms_norm, **eps)), places[1])
    mixed, cache = attend(y, cache, places[0], c.score_rule(kind))
    x = _added(c, x, a.o_proj, mixed.reshape(B, -1), a.o_bias, p.attn_post_norm, peers)
    h = product(m.gate_up_proj, x, norm=p.ffn_norm, bias=m.gate_up_bias, gated=c.hidden_act, **eps)
    return _added(c, x, m.down_proj, h, m.down_bias, p.ffn_post_norm, peers), cache


def _added(
    c: ModelConfig,
    x: Array,
    weight: Array | QTensor,
    y: Array,
    bias: Array | None,
    post: Array | None,
    peers: Peers | None,
) -> Array:
    """The residual stream `x` with a product of `y`, which a norm may lie behind.

    On several GPUs each has the sums over its own columns of the weight.
    """
    ends: Any = dict(bias=bias) if post is not None else dict(bias=bias, residual=x, by=c.residual_multiplier)
    if peers is None:
        added = product(weight, y, **ends)
    else:
        added = exchanged(peers, product(weight, y, wide=True), **ends).astype(x.dtype)
    if post is None:
        return added
    return x + scaled(rms_norm(post, added, c.rms_norm_eps, c.norm_offset), c.residual_multiplier)
