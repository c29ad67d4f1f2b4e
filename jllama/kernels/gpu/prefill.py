"""Attention of a prompt that nothing precedes, by cuDNN's fused kernel (it comes with `jax[cuda12]`)."""

import jax
import jax.numpy as jnp
from jax import Array

from jllama.layers.attention import attend, one_token, rotated_heads
from jllama.layers.cache import LayerCache
from jllama.layers.kind import ScoreRule

MIN_TOKENS = 64


def prefill_refusal(head_dim: int, dtype, tokens: int, softcap: float | None = None) -> str | None:
    """Why cuDNN can't run this attention; None if it can."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN's attention does not know {jnp.dtype(dtype)}"
    if head_dim % 8 or head_dim > 128:
        return f"cuDNN's attention does not know head_dim {head_dim}"
    if softcap is not None:
        return "cuDNN's attention does not know attn_logit_softcapping"
    return None if tokens >= MIN_TOKENS else f"{tokens} tokens are not worth it"


def prefill_attend(
    qkv: Array,
    cache: LayerCache,
    rope: tuple[Array, Array] | None,
    scores: ScoreRule,
    only: Array | None,
) -> tuple[Array, LayerCache]:
    """`layers.attention.append_and_attend` where every row of the cache is empty and T positions fit."""
    queries, keys, values = rotated_heads(qkv, rope)
    cache = cache.begin(keys, values)
    if only is not None:  # one query a row
        return attend(one_token(queries, only), cache.keys, cache.values, only, scores), cache
    B, T, K, G, H = queries.shape
    mixed = jax.nn.dot_product_attention(
        queries.reshape(B, T, K * G, H),
        keys,
        values,
        scale=scores.scale,
        is_causal=True,
        local_window_size=None if scores.window is None else (scores.window - 1, 0),
        implementation="cudnn",
    )
    return mixed.reshape(queries.shape), cache
