"""Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864).

The rotation pairs element i with element i + H/2 ("rotate half"), as Hugging Face checkpoints expect.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jllama.layers.rope_frequencies import Rope as Rope
from jllama.layers.rope_frequencies import attention_factor as attention_factor
from jllama.layers.rope_frequencies import inverse_frequencies as inverse_frequencies
from jllama.layers.rope_frequencies import rope_frequencies as rope_frequencies


def rope_tables(rope: Rope, head_dim: int, positions: Array, context: Array) -> tuple[Array, Array]:
    """Cosines and sines for the given positions.

    Args:
      rope: the kind of embedding.
      head_dim: H, even.
      positions: int32 `[B, T]`.
      context: int32 `[B]`, the length of the whole text so far; `dynamic` and `longrope` read it.

    Returns:
      `(cos, sin)`, float32 `[B, T, R/2]`; R is H but for a partial rotation.
    """
    with jax.named_scope("rope_tables"):
        frequencies = rope_frequencies(rope, head_dim, context)
        angles = positions[:, :, None].astype(jnp.float32) * frequencies[:, None, :]
        scale = attention_factor(rope)
        return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def apply_rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the first R elements of `x` `[B, T, K, M, H]` by the tables `[B, T, R/2]`, in float32.

    Keeps the dtype of `x`.
    """
    with jax.named_scope("rope"):
        half = cos.shape[-1]
        first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
        cos, sin = cos[:, :, None, None, :], sin[:, :, None, None, :]
        rotated = (first * cos - second * sin, second * cos + first * sin)
        parts = (*rotated, rest) if rest.shape[-1] else rotated
        return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def query_scale(rope: Rope | None, positions: Array) -> Array | None:
    """What queries are multiplied by, float32 `[B, T]` (Ministral 3, config key `llama_4_scaling_beta`)."""
    if rope is None or rope.llama_4_scaling_beta is None:
        return None
    spans = jnp.floor(positions.astype(jnp.float32) / rope.original_max_position_embeddings)
    return 1.0 + rope.llama_4_scaling_beta * jnp.log(1.0 + spans)
