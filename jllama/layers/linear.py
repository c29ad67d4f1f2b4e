"""The one weight contraction of the code base."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jllama.layers.pieces import by_pieces
from jllama.layers.qtensor import EXACT as EXACT
from jllama.layers.qtensor import QTensor, dequantize, quantized_linear
from jllama.layers.shards import Shards


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

    ways = {} if dtype == jnp.float32 else dict(cuda=narrow)
    if weight.dtype == jnp.float16:
        ways["cpu"] = lambda x, weight: by_pieces(x, weight).astype(dtype)
    return jax.lax.platform_dependent(x, weight, **ways, default=wide) if ways else wide(x, weight)


def _matvec(weight: Array, x: Array) -> Array:
    """One row of `x`: multiply and reduce reads each weight once, without the upcast copy of a dot."""
    if weight.dtype == jnp.float16:
        return jax.lax.platform_dependent(x, weight, cpu=by_pieces, default=_reduced)
    return _reduced(x, weight)


def _reduced(x: Array, weight: Array) -> Array:
    row = x.reshape((1,) * (weight.ndim - 1) + x.shape[-1:])
    y = jnp.sum(weight.astype(jnp.float32) * row.astype(jnp.float32), axis=-1)
    return y.reshape(x.shape[:-1] + weight.shape[:-1])
