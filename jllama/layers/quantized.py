"""Quantised weight leaves: they stand where an array would, and only `linear` looks inside."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class QTensor:
    """A weight of 8 or 4 bits in groups along the contracted axis: `value * scale + offset`.

    8 bit: `values` int8. 4 bit: `values` uint8, two a byte: within a group of g, byte i holds element i in
    its low half and element i + g/2 in its high half (the order of GGUF's Q4_0 and Q4_1), each 0 to 15.
    A group of the whole row is int8 per output channel. R = the product of the output axes, C = the
    contracted axis, g = the group size, which divides C.
    """

    values: Array  # int8 [R, C] or uint8 [R, C / 2]
    scales: Array  # float16 or float32 [R, C / g]
    offsets: Array | None  # like scales; None: 0 for 8 bit, -8 * scale for 4 bit
    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))  # (*out, C)
    bits: int = dataclasses.field(metadata=dict(static=True))  # 8 or 4

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def group(self) -> int:
        """g: how many weights share a scale."""
        return self.shape[-1] // self.scales.shape[-1]


def dequantize(w: QTensor, dtype=jnp.float32) -> Array:
    """The weight as an array `[*out, C]` of `dtype`."""
    rows, groups = w.scales.shape
    if w.bits == 8:
        values = w.values.reshape(rows, groups, -1).astype(jnp.float32)
    else:
        packed = w.values.reshape(rows, groups, -1)
        values = jnp.concatenate([packed & 15, packed >> 4], axis=-1).astype(jnp.float32)
    scales = w.scales.astype(jnp.float32)[:, :, None]
    if w.offsets is not None:
        values = values * scales + w.offsets.astype(jnp.float32)[:, :, None]
    else:
        values = (values - (8.0 if w.bits == 4 else 0.0)) * scales
    return values.reshape(w.shape).astype(dtype)


def quantized_linear(w: QTensor, x: Array) -> Array:
    """`linear` for a quantised weight: float32 `[..., *out]`."""
    full = dequantize(w, x.dtype)
    contract_last = (((x.ndim - 1,), (full.ndim - 1,)), ((), ()))
    return jax.lax.dot_general(x, full, contract_last, preferred_element_type=jnp.float32)


def embed_rows(w: Array | QTensor, tokens: Array, dtype) -> Array:
    """Rows `tokens` (int32 `[B, T]`) of an embedding table `[V, D]`, as `[B, T, D]` of `dtype`.

    A token outside the vocabulary gives NaN, not its neighbour's row.
    """
    if isinstance(w, QTensor):
        picked = jax.tree.map(lambda leaf: leaf[tokens.reshape(-1)], w)
        flat = dequantize(dataclasses.replace(picked, shape=(tokens.size, w.shape[-1])), dtype)
        rows = flat.reshape(*tokens.shape, w.shape[-1])
    else:
        rows = jnp.take(w, tokens, axis=0, mode="clip").astype(dtype)
    known = (tokens >= 0) & (tokens < w.shape[0])
    return jnp.where(known[:, :, None], rows, jnp.asarray(jnp.nan, dtype))
