"""Attention of a prompt that nothing precedes, by cuDNN's fused kernel (it comes with `jax[cuda12]`)."""

import jax
import jax.numpy as jnp
from jax import Array

MIN_TOKENS = 64


def prefill_supported(head_dim: int, dtype, tokens: int) -> str | None:
    """Why cuDNN can't run this attention; None if it can."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN's attention does not know {jnp.dtype(dtype)}"
    if head_dim % 8 or head_dim > 128:
        return f"cuDNN's attention does not know head_dim {head_dim}"
    return None if tokens >= MIN_TOKENS else f"{tokens} tokens are not worth it"


def prefill_attend(q: Array, k: Array, v: Array, start: Array, window: int | None) -> Array:
    """`layers.attention.attend` where every row of `start` is 0: only the first T positions matter."""
    B, T, K, G, H = q.shape
    keys, values = (jnp.swapaxes(cached[:, :, :T], 1, 2) for cached in (k, v))  # [B, T, K, H]
    mixed = jax.nn.dot_product_attention(
        q.reshape(B, T, K * G, H),
        keys,
        values,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return mixed.reshape(q.shape)
