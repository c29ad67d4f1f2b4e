"""C++ twins for the CPU: the whole model in one call, and products with quantised weights.

XLA's own matrix-vector products reach a fraction of the memory's speed on anything but float32, and a small
model spends half of a step between operations. See docs/performance.md.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.cpu import build
from jllama.kernels.cpu.pack import in_tiles as in_tiles
from jllama.kernels.cpu.pack import looks_up as looks_up
from jllama.kernels.cpu.pack import prepare as prepare
from jllama.kernels.cpu.pack import tiles as tiles
from jllama.kernels.cpu.step import Operands, forward, forward_refusal, weight_refusal
from jllama.kernels.programs import kept
from jllama.layers.cache import KVCache
from jllama.layers.qtensor import QTensor

__all__ = [
    "copy_row",
    "empty_cache",
    "forward",
    "forward_refusal",
    "in_tiles",
    "looks_up",
    "prepare",
    "quantized_linear",
    "refusal",
    "tiles",
    "weight_refusal",
]


def refusal(*, waits: bool = True) -> str | None:
    """None if the kernels are compiled and loaded (which this does), else in one line why not; `waits`: see
    `build.reason`.
    """
    return build.reason(waits=waits)


def empty_cache(config: ModelConfig, *, batch: int, max_len: int, dtype: str) -> KVCache:
    """`KVCache.empty` in memory that reads as zeros but was never written."""
    shapes = jax.eval_shape(partial(KVCache.empty, config, batch=batch, max_len=max_len, dtype=dtype))
    keys, values = _zeros(shapes.keys[0].shape, jnp.dtype(dtype), len(shapes.keys))
    return KVCache(keys=keys, values=values, length=np.zeros((batch,), np.int32))  # type: ignore[arg-type]


@kept(3, static_argnums=(0, 1, 2))
def _zeros(shape: tuple[int, ...], dtype: jnp.dtype, layers: int) -> tuple[tuple[Array, ...], ...]:
    call = jax.ffi.ffi_call("jllama_zeros", [jax.ShapeDtypeStruct(shape, dtype)] * 2 * layers)
    leaves = tuple(call(spec=np.array([math.prod(shape) * dtype.itemsize], np.int64)))
    return leaves[:layers], leaves[layers:]


def copy_row(cache: KVCache, source: Array | int, to: Array, positions: int) -> KVCache:
    """The first `positions` of row `to` of keys and values are those of row `source`, of -1 zeros: in place.

    XLA's own update of a slice turns a whole cache of bfloat16 to float32 and back.
    """
    kept = (*cache.keys, *cache.values)
    call = jax.ffi.ffi_call(
        "jllama_copy_row",
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in kept],
        input_output_aliases={1 + i: i for i in range(len(kept))},
    )
    numbers = jnp.stack([jnp.int32(source), to])
    updated = tuple(call(numbers, *kept, spec=np.array([positions, kept[0].dtype.itemsize], np.int64)))
    layers = len(cache.keys)
    return dataclasses.replace(cache, keys=updated[:layers], values=updated[layers:])


def quantized_linear(w: Array | QTensor, x: Array, *, target: str = "jllama_product") -> Array:
    """The last axis of `x` times the last axis of `w`: float32 `[..., *out]`. See `weight_refusal`."""
    rows, columns = x.size // x.shape[-1], int(np.prod(w.shape[:-1]))
    operands = Operands(x.reshape(rows, -1).astype(jnp.float32))
    operands.spec.append(rows)
    operands.weight(w)
    out = jax.ShapeDtypeStruct((rows, columns), jnp.float32)
    y = jax.ffi.ffi_call(target, out)(*operands.arrays, spec=np.asarray(operands.spec, np.int64))
    return y.reshape(*x.shape[:-1], *w.shape[:-1])
