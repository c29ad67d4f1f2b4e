"""The one weight contraction of the code base."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jllama.layers.qtensor import EXACT as EXACT
from jllama.layers.qtensor import QTensor, dequantize, quantized_linear
from jllama.layers.shards import Shards

PIECE = 1 << 18  # numbers of a float16 weight that a CPU widens at a time


def linear(
    weight: Array | QTensor,
    x: Array,
    bias: Array | None = None,
    *,
    dtype=None,
    shards: Shards | None = None,
) -> Array:
    """Contracts the last axis of `x` with the last axis of `weight`: products in float32, rounded once.

    Args:
      weight: `[*out, in]`, an array or a quantised leaf of that shape.
      x: `[..., in]`.
      bias: `[*out]`, added before the rounding.
      dtype: of the result; that of `x` when None (the unembedding asks for float32).
      shards: the devices that `in` is spread over: their sums are added up before the bias.

    Returns:
      `[..., *out]`.
    """
    with jax.named_scope("linear"):
        if shards is None:
            narrow = x.dtype if bias is None and dtype is None else jnp.float32
        else:
            narrow = shards.parts_dtype(x.dtype, x.size // x.shape[-1] * math.prod(weight.shape[:-1]))
        one_row = x.size == x.shape[-1]
        if isinstance(weight, QTensor):
            if one_row or weight.layout == "tiles":
                y = quantized_linear(weight, x)
            else:
                y = _product(dequantize(weight, x.dtype), x, narrow)
        else:
            y = _matvec(weight, x) if one_row else _product(weight, x, narrow)
        if shards is not None:
            y = shards.total(y.astype(narrow)).astype(jnp.float32)
        if bias is not None:
            y = y + bias.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + bias.shape)
        return y.astype(dtype or x.dtype)


def _product(weight: Array, x: Array, dtype) -> Array:
    """Sums in float32 everywhere. What differs is who rounds: a GPU's product as it stores its result.

    Asked for float32, it would write twice as much, and another kernel would read and round it. XLA on a CPU,
    asked for 16 bits, would first widen the whole weight.
    """
    contract_last = (((x.ndim - 1,), (weight.ndim - 1,)), ((), ()))
    dot = partial(jax.lax.dot_general, dimension_numbers=contract_last, precision=EXACT)

    def wide(x: Array, weight: Array) -> Array:
        return dot(x, weight, preferred_element_type=jnp.float32).astype(dtype)

    def narrow(x: Array, weight: Array) -> Array:
        return dot(x, weight, preferred_element_type=dtype)

    def by_pieces(x: Array, weight: Array) -> Array:
        return _by_pieces(PIECE, x, weight).astype(dtype)

    ways = {} if dtype == jnp.float32 else dict(cuda=narrow)
    if weight.dtype == jnp.float16:
        ways["cpu"] = by_pieces
    return jax.lax.platform_dependent(x, weight, **ways, default=wide) if ways else wide(x, weight)


def _matvec(weight: Array, x: Array) -> Array:
    """One row of `x`: multiply and reduce reads each weight once, without the upcast copy of a dot."""
    if weight.dtype == jnp.float16:
        return jax.lax.platform_dependent(x, weight, cpu=partial(_by_pieces, PIECE), default=_reduced)
    return _reduced(x, weight)


def _reduced(x: Array, weight: Array) -> Array:
    row = x.reshape((1,) * (weight.ndim - 1) + x.shape[-1:])
    y = jnp.sum(weight.astype(jnp.float32) * row.astype(jnp.float32), axis=-1)
    return y.reshape(x.shape[:-1] + weight.shape[:-1])


def _by_pieces(numbers: int, x: Array, weight: Array) -> Array:
    """Rows of both halves of a float16 weight at a time: XLA on a CPU widens a whole one into new memory.

    What is widened of a piece stays in the caches, and two threads widen a half each.
    """
    columns, rows = weight.shape[-1], weight.size // weight.shape[-1]
    halves = 2 if rows % 2 == 0 else 1
    some = _divisor(rows // halves, numbers // columns // halves)
    if some * columns * halves < numbers // 16:  # loops of their own would take longer
        some = rows // halves
    pieces, wide = weight.reshape(halves, -1, some, columns), x.reshape(-1, columns).astype(jnp.float32)

    def product(i: Array) -> Array:
        piece = jax.lax.dynamic_index_in_dim(pieces, i, 1, keepdims=False).astype(jnp.float32)
        if len(wide) == 1:  # in this order: the other is three times as slow
            return jnp.matmul(piece, wide[0], precision=EXACT)[None]
        return jnp.einsum("mc,hrc->mhr", wide, piece, precision=EXACT)

    y = jax.lax.map(product, jnp.arange(pieces.shape[1]))  # [pieces, rows of x, halves, some]
    return jnp.moveaxis(y, 0, 2).reshape(x.shape[:-1] + weight.shape[:-1])


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is not above `most`; 1 if all are."""
    return next((d for d in range(min(number, most), 0, -1) if number % d == 0), 1)
