"""Random weights of a configuration, made on the device: for benchmarks without a checkpoint."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jllama.checkpoint.layout import Leaf, layout
from jllama.config import ModelConfig
from jllama.model import Params

Finish = Callable[[tuple[Any, ...], Leaf, Array], Any]


def random_params(
    config: ModelConfig, dtype="bfloat16", *, seed: int = 0, finish: Finish | None = None
) -> Params:
    """Weights that keep the activations in range: normal, with a variance of one over the row's length.

    Norm weights are near what changes nothing, and biases small. What `finish(path, leaf, array)` makes of an
    array takes its place before the next one is made.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(layout(config))
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), len(leaves))
    centre = 1.0 - config.norm_offset
    made = []
    for (path, leaf), key in zip(leaves, keys, strict=True):
        array = _leaf(leaf, key, dtype, centre)
        made.append(array if finish is None else finish(path, leaf, array))
    return jax.tree.unflatten(tree, made)


def _leaf(leaf: Leaf, key: Array, dtype, norm_centre: float) -> Array:
    if leaf.parts[0].is_norm:
        return _normal(key, leaf.shape, jnp.dtype(dtype), 0.1, norm_centre)
    is_bias = leaf.parts[0].is_bias
    scale = 0.02 if is_bias else 1 / math.sqrt(leaf.shape[-1])
    return _normal(key, leaf.shape, jnp.dtype(dtype), scale, 0.0)


@partial(jax.jit, static_argnames=("shape", "dtype", "scale", "mean"))
def _normal(key: Array, shape: tuple[int, ...], dtype, scale: float, mean: float) -> Array:
    return (jax.random.normal(key, shape, jnp.bfloat16) * jnp.bfloat16(scale) + jnp.bfloat16(mean)).astype(
        dtype
    )
