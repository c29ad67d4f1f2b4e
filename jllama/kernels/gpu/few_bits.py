"""One decoding step of more sequences than `product.cu` takes, weights of 8 or 4 bits, on one GPU.

Products are `wide_product.cu`'s; between them go slices of their sums, which the next kernel adds up.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.gpu.decode_attention import RowsAttend, decode_attend
from jllama.kernels.gpu.exchange import exchanged_norm
from jllama.kernels.gpu.wide_batch import norm_of
from jllama.kernels.gpu.wide_product import arranged, arrangement, wide_product
from jllama.layers.attention import Attention, normed_heads, scaled_queries, soft_capped
from jllama.layers.cache import KVCache, LayerCache
from jllama.layers.kind import LayerKind
from jllama.layers.qtensor import QTensor
from jllama.layers.rope import Rope
from jllama.model import Block, Params, Places, embed, scaled


def few_bits_step(
    config: ModelConfig, params: Params, tokens: Array, cache: KVCache, places: dict[Rope | None, Places]
) -> tuple[Array, KVCache]:
    """`batch.batch_step`, of `readable` tokens int32 `[B, 1]`; all weights have an `arrangement`."""
    with jax.named_scope("few_bits_step"):
        x = embed(config, params, tokens)[:, 0]
        _, normed, cache = few_bits_layers(config, params, x, cache, places)
        (logits,) = wide_product(head_of(params), normed, len(x), most=1)
        logits = scaled(logits, 1 / config.logits_scaling)
        return soft_capped(logits, config.final_logit_softcapping)[:, None], cache


def few_bits_layers(
    config: ModelConfig,
    params: Params,
    x: Array,
    cache: KVCache,
    places: dict[Rope | None, Places],
    *,
    attend: RowsAttend | None = None,
) -> tuple[Array, Array, KVCache]:
    """`wide_batch.wide_layers`; the norm is arranged for the head."""
    begin = params.layers[0]
    how = arrangement(begin.attention.qkv_proj, len(x))
    normed = arranged(norm_of(config)(begin.attn_norm, x), how)
    for i, p in enumerate(params.layers):
        kind = config.kind_of(i)
        call = (cache.layer(i), places[kind.rope], kind, *_behind(params, i), attend or decode_attend)
        x, normed, own = _layer(config, p, x, normed, *call)
        cache = cache.replace(i, own)
    return x, normed, cache


def head_of(params: Params) -> Array | QTensor:
    """The head's weight `[V, D]`: the embedding table where there is no other."""
    return params.embed_tokens if params.lm_head is None else params.lm_head


def _behind(params: Params, layer: int) -> tuple[Any, Array | QTensor]:
    """The norm that follows a layer, and the weight that it meets."""
    if layer + 1 == len(params.layers):
        return params.norm, head_of(params)
    p = params.layers[layer + 1]
    return p.attn_norm, p.attention.qkv_proj


def _layer(
    c: ModelConfig,
    p: Block,
    x: Array,
    normed: Array,
    cache: LayerCache,
    places: Places,
    kind: LayerKind,
    after: Any,
    following: Array | QTensor,
    attend: RowsAttend,
) -> tuple[Array, Array, LayerCache]:
    """`model.block` on `x` `[B, D]` and its norm, which is arranged; gives both behind the layer, the norm by
    `after` as the weight `following` wants it.
    """
    a, m, B = p.attention, p.mlp, len(x)
    sums: Any = dict(eps=c.rms_norm_eps, offset=c.norm_offset, by=c.residual_multiplier)
    for_o, for_gate, for_down, for_next = (
        arrangement(w, B) for w in (a.o_proj, m.gate_up_proj, m.down_proj, following)
    )
    y = _queries(a, normed, B, places, norm_of(c))
    mixed, cache = attend(y, cache, places[0], c.score_rule(kind), arrangement=for_o)
    between: Any = p.ffn_norm
    part = wide_product(a.o_proj, mixed, B)
    x, normed = exchanged_norm(None, part, x, between, bias=a.o_bias, arrangement=for_gate, **sums)
    how: Any = dict(bias=m.gate_up_bias, gated=c.hidden_act, out=for_down)
    part = wide_product(m.down_proj, wide_product(m.gate_up_proj, normed, B, **how), B)
    x, normed = exchanged_norm(None, part, x, after, bias=m.down_bias, arrangement=for_next, **sums)
    return x, normed, cache


def _queries(a: Attention, x: Array, rows: int, places: Places, norm: Any) -> Array:
    """What `decode_attend` takes: slices of a product, or their sum where something comes between."""
    y = wide_product(a.qkv_proj, x, rows, bias=a.qkv_bias)
    y = y.reshape(*y.shape[:-1], 1, *a.qkv_proj.shape[:-1])
    if a.q_norm is None and places[1] is None:
        return y
    y = jnp.sum(y, axis=0).astype(x.dtype)
    return scaled_queries(normed_heads(a, y, norm), places[1])
