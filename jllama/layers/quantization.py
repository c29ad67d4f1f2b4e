"""Weights of 8 or 4 bits, made from full ones: round to nearest, a scale for each group."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jllama.errors import JllamaError
from jllama.layers.qtensor import QTensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a matrix is quantised: bits, and how many weights of a row share a scale (None: the whole row)."""

    bits: int
    group: int | None


# What `--quantize` offers: the blocks' matrices, and the embedding and unembedding, which 4 bits would spoil.
SCHEMES = {
    "int8": (Scheme(bits=8, group=None), Scheme(bits=8, group=None)),
    "int4": (Scheme(bits=4, group=32), Scheme(bits=8, group=None)),
}


def quantize(w: Array, scheme: Scheme) -> QTensor:
    """A matrix `[*out, C]` as a quantised leaf.

    8 bit: symmetric, `scale = max |w| / 127`. 4 bit: `scale = (max - min) / 15`, `offset = min`, both
    float16, as in GGUF's Q4_1. Values are rounded to nearest with the scale as it is stored.

    Raises:
      JllamaError: C is no multiple of the group, or 4-bit weights don't pair up.
    """
    group = scheme.group or w.shape[-1]
    if w.shape[-1] % group or (scheme.bits == 4 and group % 2):
        raise JllamaError(f"rows of {w.shape[-1]} weights can't be cut into groups of {group}: use int8")
    values, scales, offsets = (_quantize_8 if scheme.bits == 8 else _quantize_4)(w, group)
    return QTensor(values=values, scales=scales, offsets=offsets, shape=w.shape, bits=scheme.bits)


@partial(jax.jit, static_argnames=("group",))
def _quantize_8(w: Array, group: int) -> tuple[Array, Array, None]:
    rows = w.astype(jnp.float32).reshape(-1, w.shape[-1] // group, group)
    scales = jnp.max(jnp.abs(rows), axis=-1) / 127.0
    values = jnp.round(rows / jnp.where(scales > 0, scales, 1.0)[:, :, None])
    return values.astype(jnp.int8).reshape(-1, w.shape[-1]), scales, None


@partial(jax.jit, static_argnames=("group",))
def _quantize_4(w: Array, group: int) -> tuple[Array, Array, Array]:
    rows = w.astype(jnp.float32).reshape(-1, w.shape[-1] // group, group)
    low, high = jnp.min(rows, axis=-1), jnp.max(rows, axis=-1)
    scales, offsets = ((high - low) / 15.0).astype(jnp.float16), low.astype(jnp.float16)
    step = scales.astype(jnp.float32)[:, :, None]
    nibbles = jnp.round((rows - offsets.astype(jnp.float32)[:, :, None]) / jnp.where(step > 0, step, 1.0))
    nibbles = jnp.clip(nibbles, 0.0, 15.0).astype(jnp.uint8)
    packed = nibbles[:, :, : group // 2] | nibbles[:, :, group // 2 :] << 4
    return packed.reshape(-1, w.shape[-1] // 2), scales, offsets
