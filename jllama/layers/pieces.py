"""Products with float16 weights on a CPU, by XLA alone, which would widen a whole weight into new memory.

What is widened of a piece stays in the caches.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jllama.layers.qtensor import EXACT

PIECE = 1 << 18  # numbers that are widened at a time


def by_pieces(x: Array, weight: Array) -> Array:
    """Contracts the last axes of `x` `[..., in]` and a float16 `weight` `[*out, in]`: float32 `[..., *out]`.

    Rows of both halves at a time, which two threads widen.
    """
    columns, rows = weight.shape[-1], weight.size // weight.shape[-1]
    halves = 2 if rows % 2 == 0 else 1
    some = _divisor(rows // halves, PIECE // columns // halves)
    if some * columns * halves < PIECE // 16:  # loops of their own would take longer
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
