"""One decoding step of more sequences than `product.cu` takes, on one GPU or on several that add up by words.

The products are cuBLAS's; between them one kernel adds up, adds the residual stream, and takes the next norm.
On several GPUs up to 32 have products of our own (`stream.py`), all but gate and up, which send their sums.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.gpu.constants import rotary_dims
from jllama.kernels.gpu.decode_attention import RowsAttend, attention_refusal, decode_attend
from jllama.kernels.gpu.exchange import Peers, exchanged_norm, fits
from jllama.kernels.gpu.stream import streamed, taken_norm
from jllama.layers.attention import Attention, normed_heads, scaled_queries
from jllama.layers.cache import KVCache, LayerCache
from jllama.layers.kind import LayerKind
from jllama.layers.linear import linear
from jllama.layers.mlp import gated
from jllama.layers.norm import rms_norm
from jllama.layers.qtensor import QTensor, dequantize
from jllama.layers.rope import Rope
from jllama.model import Block, Params, Places, embed, head_logits

SLICES = 2  # of the columns of o and down: those of four were no faster


def wide_refusal(config: ModelConfig, params: Params, cache: KVCache, rows: int) -> str | None:
    """Why this step is left to `model.forward`, whose sums and norms are apart; None if it can be taken."""
    dtype = params.norm.dtype
    if cache.keys[0].dtype != dtype or jnp.dtype(dtype).itemsize != 2:
        return f"weights of {dtype} with a cache of {cache.keys[0].dtype}; the kernels want 16 bits in both"
    if config.norm_placement != "pre" or config.hidden_size % 4:
        return f"norms that are placed {config.norm_placement}, rows of {config.hidden_size}"
    if not fits(rows * config.hidden_size):
        return f"{rows} sequences of {config.hidden_size} numbers are too many for words"
    heads_per_key = config.num_attention_heads // config.num_key_value_heads
    return attention_refusal(heads_per_key, config.head_dim, dtype, rotary_dims(config))


def wide_step(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    cache: KVCache,
    places: dict[Rope | None, Places],
    peers: Peers | None,
) -> tuple[Array, KVCache]:
    """`batch.batch_step`, of `readable` tokens int32 `[B, 1]`; asks `wide_refusal` first."""
    with jax.named_scope("wide_step"):
        x = embed(config, params, tokens)[:, 0]
        _, normed, cache = wide_layers(config, params, x, cache, places, peers)
        return head_logits(config, params, normed[:, None]), cache


def wide_layers(
    config: ModelConfig,
    params: Params,
    x: Array,
    cache: KVCache,
    places: dict[Rope | None, Places],
    peers: Peers | None = None,
    *,
    attend: RowsAttend | None = None,
) -> tuple[Array, Array, KVCache]:
    """`batch.batch_layers`; between `x` and the cache its norm by `params.norm`."""
    normed = norm_of(config)(params.layers[0].attn_norm, x)
    for i, p in enumerate(params.layers):
        kind, last = config.kind_of(i), i == len(params.layers) - 1
        after: Any = params.norm if last else params.layers[i + 1].attn_norm
        call = (cache.layer(i), places[kind.rope], kind, peers, after, attend or decode_attend)
        x, normed, own = _layer(config, p, x, normed, *call)
        cache = cache.replace(i, own)
    return x, normed, cache


def _sliced(weight: Array | QTensor, x: Array) -> Array:
    """Products of slices of the columns, float32 `[slices, B, R]`: more at a time, each of fewer sums."""
    full = dequantize(weight, x.dtype) if isinstance(weight, QTensor) else weight
    slices = 1 if x.shape[1] % (8 * SLICES) else SLICES
    rows, columns = (a.reshape(len(a), slices, -1) for a in (full, x))
    slice_by_slice = (((2,), (2,)), ((1,), (1,)))
    return jax.lax.dot_general(columns, rows, slice_by_slice, preferred_element_type=jnp.float32)


def norm_of(c: ModelConfig) -> Any:
    """`rms_norm` as all norms of a model are."""
    return partial(rms_norm, eps=c.rms_norm_eps, offset=c.norm_offset)


def _layer(
    c: ModelConfig,
    p: Block,
    x: Array,
    normed: Array,
    cache: LayerCache,
    places: Places,
    kind: LayerKind,
    peers: Peers | None,
    after: Array,
    attend: RowsAttend,
) -> tuple[Array, Array, LayerCache]:
    """`model.block` on `x` `[B, D]` and its norm; gives both behind the layer, the norm by `after`."""
    a, m = p.attention, p.mlp
    sums: Any = dict(eps=c.rms_norm_eps, offset=c.norm_offset, by=c.residual_multiplier)
    y = normed_heads(a, _projected(a, normed, peers), norm_of(c), peers)
    mixed, cache = attend(scaled_queries(y, places[1]), cache, places[0], c.score_rule(kind))
    ffn_norm: Any = p.ffn_norm
    x, normed = _added(peers, a.o_proj, mixed.reshape(len(x), -1), x, ffn_norm, bias=a.o_bias, **sums)
    h = gated(m, normed[:, None], c.hidden_act)[:, 0]
    return *_added(peers, m.down_proj, h, x, after, bias=m.down_bias, **sums), cache


def _projected(a: Attention, x: Array, peers: Peers | None) -> Array:
    """Queries, keys and values `[B, 1, K, G + 2, H]` of `[B, D]`."""
    made = None if peers is None else streamed(a.qkv_proj, x, bias=a.qkv_bias)
    if made is None:
        return linear(a.qkv_proj, x[:, None], a.qkv_bias)
    return made[0].reshape(len(x), 1, *a.qkv_proj.shape[:-1])


def _added(
    peers: Peers | None, weight: Array | QTensor, y: Array, x: Array, norm: Array, **sums: Any
) -> tuple[Array, Array]:
    """`exchanged_norm` of a product."""
    made = None if peers is None else streamed(weight, y, peers=peers)
    if peers is None or made is None:
        return exchanged_norm(peers, _sliced(weight, y), x, norm, **sums)
    part, turn = made
    return taken_norm(peers, part, turn, x, norm, **sums)
