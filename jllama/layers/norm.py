"""Root-mean-square normalisation (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

import jax
import jax.numpy as jnp
from jax import Array

from jllama.layers.shards import Shards


def rms_norm(
    weight: Array | None, x: Array, eps: float, offset: float = 0.0, shards: Shards | None = None
) -> Array:
    """Scales each row of `x` to unit mean square, then by `weight`; an absent norm changes nothing.

    Computed in float32 and rounded once: rounding before the scale would cost a bit of bfloat16.

    Args:
      weight: `[D]`, or as many of the last axes of `x` as are normalised together; None: no norm.
      x: `[..., D]`, any float dtype.
      eps: added to the mean square (config key `rms_norm_eps`).
      offset: added to the weight: Gemma's files hold what differs from 1.
      shards: the devices that what is normalised together is spread over.

    Returns:
      `[..., D]` in the dtype of `x`.
    """
    if weight is None:
        return x
    with jax.named_scope("rms_norm"):
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=tuple(range(-weight.ndim, 0)), keepdims=True)
        mean_square = mean_square if shards is None else shards.total(mean_square) / shards.count
        scale = weight.astype(jnp.float32).reshape((1,) * (x.ndim - weight.ndim) + weight.shape) + offset
        return (wide * jax.lax.rsqrt(mean_square + eps) * scale).astype(x.dtype)
