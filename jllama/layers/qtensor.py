"""Quantised weight leaves: they stand where an array would, and only `linear` looks inside."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jllama.layers import records

# Without it a GPU multiplies float32 with 10 bits of mantissa (TF32). Narrower types are not affected.
EXACT = jax.lax.Precision.HIGHEST
TILE = 16  # rows that lie interleaved in the layout "tiles"
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # of GGUF's IQ4_NL
SPAN = 32  # elements whose 4-bit halves share bytes in that layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class QTensor:
    """A weight of 8 or 4 bits in groups along the contracted axis: `value * scale + offset`.

    8 bit: `values` int8. 4 bit: `values` uint8, two a byte: within a group of g, byte i holds element i in
    its low half and element i + g/2 in its high half (the order of GGUF's Q4_0 and Q4_1), each 0 to 15.
    A group of the whole row is int8 per output channel. R = the product of the output axes, C = the
    contracted axis, g = the group size, which divides C.

    Scales may have two levels, as in GGUF's K types: int8, times a float16 unit for each 256 weights of a
    row; then so have the offsets.

    The layout "tiles" is what the CPU kernels read (`kernels.cpu.prepare` makes it): rows padded to a
    multiple of 16, four bytes of each of 16 rows beside one another, 4-bit halves paired within 32 elements
    whatever the group is. There 8-bit weights from -32 to 31 take 6 bits: of each 32 elements, 32 too large,
    low halves as of 4 bit, then 8 bytes: byte 4h + i holds the high bits of element 16h + 4k + i at bit 2k.
    Those that are GGUF's IQ4_NL's levels, `LEVELS`, take 4 bits there: their places among these (`levels`).
    The layout "records" is what the GPU kernels read of scales of two levels (`recorded` makes it): `scales`
    has all four arrays' numbers, uint8, as `layers.records` says, and the
    others are None.
    """

    values: Array  # int8 [R, C] or uint8 [R, C / 2]; tiles: [R / 16, C * bits / 32, 16, 4]
    scales: Array  # float16, float32 or (two levels) int8 [R, C / g]; tiles: [R / 16, C / g, 16]
    offsets: Array | None  # like scales; None: 0 for 8 bit, -8 * scale for 4 bit
    scale_units: Array | None = None  # float16 [R, C / 256]; tiles: [R / 16, C / 256, 16]; None: one level
    offset_units: Array | None = None  # likewise, of offsets
    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))  # (*out, C)
    bits: int = dataclasses.field(metadata=dict(static=True))  # 8 or 4; tiles: 6 too
    levels: bool = dataclasses.field(default=False, metadata=dict(static=True))  # tiles of 4 bits alone
    layout: str = dataclasses.field(default="rows", metadata=dict(static=True))  # rows, tiles or records

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def group(self) -> int:
        """g: how many weights share a scale."""
        if self.layout == "records":
            return records.GROUPS[self.bits]
        return self.shape[-1] // self.scales.shape[1]


def dequantize(w: QTensor, dtype=jnp.float32) -> Array:
    """The weight as an array `[*out, C]` of `dtype`."""
    leaves = jax.tree.map(_untile, w) if w.layout == "tiles" else w
    return _expand(w, leaves).reshape(-1, w.shape[-1])[: _rows(w)].reshape(w.shape).astype(dtype)


def quantized_linear(w: QTensor, x: Array) -> Array:
    """`linear` for a quantised weight: float32 `[..., *out]`."""
    full = dequantize(w, x.dtype)
    contract_last = (((x.ndim - 1,), (full.ndim - 1,)), ((), ()))
    return jax.lax.dot_general(x, full, contract_last, precision=EXACT, preferred_element_type=jnp.float32)


def recorded(w: QTensor) -> QTensor:
    """`w`, in the layout "rows", in the layout "records"; as it is where its scales have one level."""
    if w.scale_units is None:
        return w
    levels = records.Levels(w.scales, w.offsets, w.scale_units, w.offset_units)
    packed = records.pack(levels, w.shape[-1], w.bits)
    if packed is None:
        return w
    return QTensor(values=w.values, scales=packed, offsets=None, shape=w.shape, bits=w.bits, layout="records")


def embed_rows(w: Array | QTensor, tokens: Array, dtype) -> Array:
    """Rows `tokens` (int32 `[B, T]`) of an embedding table `[V, D]`, as `[B, T, D]` of `dtype`.

    A token outside the vocabulary gives NaN, not its neighbour's row.
    """
    known = (tokens >= 0) & (tokens < w.shape[0])
    if isinstance(w, QTensor):
        wanted = jnp.where(known, tokens, 0).reshape(-1)
        rows = _expand(w, jax.tree.map(partial(_pick, w, wanted), w))
        rows = rows.reshape(*tokens.shape, w.shape[-1]).astype(dtype)
    else:
        rows = jnp.take(w, tokens, axis=0, mode="clip").astype(dtype)
    return jnp.where(known[:, :, None], rows, jnp.asarray(jnp.nan, dtype))


def _rows(w: QTensor) -> int:
    rows = 1
    for size in w.shape[:-1]:
        rows *= size
    return rows


def _untile(leaf: Array) -> Array:
    """`[R / 16, n, 16, ...]` as `[R, n * ...]`."""
    return jnp.moveaxis(leaf, 2, 1).reshape(leaf.shape[0] * TILE, -1)


def _pick(w: QTensor, rows: Array, leaf: Array) -> Array:
    """Some rows of a leaf, as the layout "rows" has them."""
    picked = leaf[rows // TILE, :, rows % TILE] if w.layout == "tiles" else leaf[rows]
    return picked.reshape(rows.shape[0], -1)


def _expand(w: QTensor, leaves: QTensor) -> Array:
    """Weights `[rows, groups, g]` in float32 from rows of the leaves of `w`."""
    if w.layout == "records":
        leaves = dataclasses.replace(leaves, **records.unpack(leaves.scales, w.bits)._asdict())
    values, (rows, groups) = leaves.values, leaves.scales.shape
    if w.bits == 6:
        values = _six_bits(values)
    if w.bits == 4:
        pairs = SPAN if w.layout == "tiles" else w.group
        packed = values.reshape(rows, -1, pairs // 2)
        values = jnp.concatenate([packed & 15, packed >> 4], axis=-1)
    if w.levels:
        values = jnp.asarray(LEVELS, jnp.int32)[values.astype(jnp.int32)]
    wide = values.reshape(rows, groups, -1).astype(jnp.float32)
    scale = _whole(leaves.scales, leaves.scale_units)
    if leaves.offsets is not None:
        return wide * scale + _whole(leaves.offsets, leaves.offset_units)
    return (wide - (8.0 if w.bits == 4 and not w.levels else 0.0)) * scale


def _six_bits(packed: Array) -> Array:
    """int32 numbers `[rows, C]` from -32 to 31."""
    blocks = packed.astype(jnp.int32).reshape(packed.shape[0], -1, 24)
    low = jnp.concatenate([blocks[..., :16] & 15, blocks[..., :16] >> 4], axis=-1)
    quads = blocks[..., 16:].reshape(*blocks.shape[:2], 2, 4)
    high = jnp.stack([quads >> at & 3 for at in (0, 2, 4, 6)], axis=-2)
    return (low + high.reshape(low.shape) * 16 - 32).reshape(packed.shape[0], -1)


def _whole(numbers: Array, units: Array | None) -> Array:
    """Scales or offsets of one or two levels in float32: `[rows, groups, 1]`."""
    wide = numbers.astype(jnp.float32)[:, :, None]
    if units is None:
        return wide
    per_unit = numbers.shape[1] // units.shape[1]
    return wide * jnp.repeat(units.astype(jnp.float32), per_unit, axis=1)[:, :, None]
