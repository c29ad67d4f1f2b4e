"""What tells one set of weights from every other: a number that depends on each bit of them."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jllama.loading import Model

LANES = 2**18  # a megabyte of state: it stays in a processor's cache
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_START, _STEP = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B)  # odd: to multiply by them loses nothing


def fingerprint(model: Model) -> str:
    """A hash of the architecture, the dtype and every weight. It reads the weights once, where they lie."""
    digest = hashlib.sha256(f"{model.config} {model.dtype}".encode())
    # Of a model that several processes hold, this one's part: a program on all would need them all.
    leaves = [
        leaf if leaf.is_fully_addressable else leaf.addressable_data(0)
        for leaf in jax.tree.leaves(model.params)
    ]
    sums = [_checksum(_whole_numbers(leaf)) for leaf in leaves]
    for leaf, numbers in zip(leaves, sums, strict=True):
        digest.update(f"{leaf.shape} {leaf.dtype}".encode() + np.asarray(numbers).tobytes())
    return digest.hexdigest()


def _whole_numbers(leaf: Array) -> Array:
    """The same bits as unsigned integers, where that copies nothing.

    On a CPU, XLA would convert a whole bfloat16 leaf to float32 before it took a part of it.
    """
    if next(iter(leaf.devices())).platform != "cpu":
        return leaf
    return jax.device_put(np.asarray(leaf).view(_UNSIGNED[leaf.dtype.itemsize]), may_alias=True)


@jax.jit
def _checksum(leaf: Array) -> Array:
    """uint32 `[2]`. Each lane takes in every `LANES`-th number, by a step that any changed bit changes.

    The last stretch begins early enough to be whole: some numbers are taken in twice.
    """
    flat, count = leaf.reshape(-1), min(LANES, leaf.size)

    def step(at: Array, lanes: Array) -> Array:
        begin = jnp.minimum(at * count, flat.size - count)
        part = lax.dynamic_slice(flat, (begin,), (count,))
        bits = lax.bitcast_convert_type(part, _UNSIGNED[leaf.dtype.itemsize]).astype(jnp.uint32)
        lanes = (lanes ^ bits) * _STEP
        return lanes ^ (lanes >> 15)

    places = lax.iota(jnp.uint32, count) * _START
    lanes = lax.fori_loop(0, -(-flat.size // count), step, places)
    weighted = lanes * (places | np.uint32(1))
    return jnp.stack([lanes.sum(dtype=jnp.uint32), weighted.sum(dtype=jnp.uint32)])
