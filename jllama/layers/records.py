"""Scales of two levels as a GPU's kernels read them: a record for 256 weights of a row each, nothing rounded.

Group 4 i + t of the weights is the i-th that lane t of four multiplies: a lane finds its own numbers in one
word. 4 bit, 16 bytes: word t has, from its lowest bit on, scale and offset of group t and of group t + 4, six
bits each, then byte t of two float16 units (of the scales, of the offsets). 8 bit, 32 bytes: the units; in a
word for each half of 32 weights the int8 offsets of groups 4 i and 4 i + 1, or of the other two; a word of
zeros; in word t the int8 scales of the groups 4 i + t.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

UNIT = 256  # weights of a record, which share the units of their 8-bit scales
SIZES = {4: 16, 8: 32}  # bytes, by the bits of the weights
GROUPS = {4: 32, 8: 16}  # weights that share a scale


class Levels(NamedTuple):
    """Scales and offsets of two levels: int8 `[R, C / g]` and float16 `[R, C / 256]`."""

    scales: Array
    offsets: Array | None
    scale_units: Array
    offset_units: Array | None


def pack(levels: Levels, columns: int, bits: int) -> Array | None:
    """Records, uint8 `[R, C / 256 * SIZES[bits]]`; None: these numbers have no place in them.

    Args:
      levels: of groups of 32, or 16 for 8 bits; offsets of 4 bits, and scales, from 0 to 63, of 8 bits equal
        within each 32 weights.
      columns: C.
      bits: of the weights, 4 or 8.
    """
    scales, group = levels.scales, columns // levels.scales.shape[1]
    offsets = jnp.zeros_like(scales) if levels.offsets is None else levels.offsets
    if group not in (32, GROUPS[bits]):
        return None
    if group == 16 and bool((offsets[:, ::2] != offsets[:, 1::2]).any()):
        return None
    if bits == 4 and any(bool((a & 63 != a).any()) for a in (scales, offsets)):
        return None
    return _packed(levels, offsets, bits)


@partial(jax.jit, static_argnames="bits")
def _packed(levels: Levels, offsets: Array, bits: int) -> Array:
    scales, _, scale_units, offset_units = levels
    offset_units = jnp.zeros_like(scale_units) if offset_units is None else offset_units
    units = jax.lax.bitcast_convert_type(jnp.stack((scale_units, offset_units), -1), jnp.uint8)
    each = [a.astype(jnp.uint8).reshape(*units.shape[:2], -1) for a in (scales, offsets)]
    head = units.reshape(*units.shape[:2], 4)
    return (_four if bits == 4 else _eight)(head, *each).reshape(len(scales), -1)


def _four(units: Array, scales: Array, offsets: Array) -> Array:
    (s0, s1), (o0, o1) = ((a[..., :4], a[..., 4:]) for a in (scales, offsets))
    return jnp.stack((s0 | o0 << 6, o0 >> 2 | s1 << 4, s1 >> 4 | o1 << 2, units), axis=-1)


def _eight(units: Array, scales: Array, offsets: Array) -> Array:
    if scales.shape[-1] == 16:
        offsets = offsets[..., ::2]
    else:
        scales = jnp.repeat(scales, 2, axis=-1)
    by_lane = [jnp.moveaxis(a.reshape(*a.shape[:2], 4, -1), 2, 3) for a in (offsets, scales)]
    zeros = jnp.zeros_like(units)[..., None, :]
    return jnp.concatenate((units[..., None, :], by_lane[0], zeros, by_lane[1]), axis=2)


def unpack(records: Array, bits: int) -> Levels:
    """What `pack` made records of, in groups of `GROUPS[bits]`, with offsets."""
    R = len(records)
    words = records.reshape(R, -1, SIZES[bits] // 4, 4)
    if bits == 4:
        b0, b1, b2, units = (words[..., i] for i in range(4))
        scales = jnp.concatenate((b0 & 63, b1 >> 4 | (b2 & 3) << 4), axis=-1)
        offsets = jnp.concatenate((b0 >> 6 | (b1 & 15) << 2, b2 >> 2), axis=-1)
    else:
        units, scales = words[..., 0, :], jnp.moveaxis(words[..., 4:, :], 2, 3)
        offsets = jnp.repeat(jnp.moveaxis(words[..., 1:3, :], 2, 3), 2, axis=-1)
    scales, offsets = (a.astype(jnp.int8).reshape(R, -1) for a in (scales, offsets))
    halves = jax.lax.bitcast_convert_type(units.reshape(R, -1, 2, 2), jnp.float16)
    return Levels(scales, offsets, halves[..., 0], halves[..., 1])
