"""Root-mean-square normalisation (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

import jax
import jax.numpy as jnp
from jax import Array


def rms_norm(weight: Array, x: Array, eps: float) -> Array:
    """Scales each row of `x` to unit mean square, then by `weight`.

    Computed in float32 and rounded once: rounding before the scale would cost a bit of bfloat16.

    Args:
      weight: `[D]`.
      x: `[..., D]`, any float dtype.
      eps: added to the mean square (config key `rms_norm_eps`).

    Returns:
      `[..., D]` in the dtype of `x`.
    """
    with jax.named_scope("rms_norm"):
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        scale = weight.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + weight.shape)
        return (wide * jax.lax.rsqrt(mean_square + eps) * scale).astype(x.dtype)
