"""Parameters in one place become parts on several devices."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jllama.config import ModelConfig
from jllama.layers.qtensor import QTensor
from jllama.model import Params
from jllama.sharding.cuts import map_leaves, spec_of, widened, with_own_scales
from jllama.sharding.mesh import on_mesh, put


def split_params(config: ModelConfig, params: Params, mesh: Mesh) -> Params:
    """Parameters that lie in one place, on all devices of a mesh.

    Args:
      config: theirs.
      params: quantised leaves in the layout "rows".
      mesh: has as many devices as `check` allowed.

    Returns:
      The parameters of `widened(config, mesh.size)`.
    """
    return with_head(config, map_leaves(partial(split_leaf, config=config, mesh=mesh), params), mesh)


def with_head(config: ModelConfig, params: Params, mesh: Mesh) -> Params:
    """Parameters on a mesh with a head of their own, if they had none and theirs can be cut."""
    if widened(config, mesh.size).tie_word_embeddings == config.tie_word_embeddings:
        return params
    head = split_leaf((jax.tree_util.GetAttrKey("lm_head"),), params.embed_tokens, config, mesh)
    return dataclasses.replace(params, lm_head=head)


def split_leaf(path: tuple[Any, ...], leaf: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """One leaf of `split_params`."""
    name, t = path[-1].name, mesh.size
    repeats = max(t // config.num_key_value_heads, 1)
    if name in ("qkv_proj", "qkv_bias") and repeats > 1:
        leaf = _by_rows(partial(_with_repeated_keys, repeats=repeats), leaf, -1)
    if name == "q_norm" and leaf.ndim > 1:
        leaf = leaf.reshape(leaf.shape[0] * repeats, -1, leaf.shape[-1])
    if name == "k_norm" and leaf.ndim > 1:
        leaf = jnp.repeat(leaf, repeats, axis=0)
    if isinstance(leaf, QTensor) and name in ("o_proj", "down_proj"):
        leaf = with_own_scales(leaf, t)
    spec = spec_of(path, leaf, t)
    if isinstance(leaf, QTensor) and name == "gate_up_proj":
        leaf = _by_rows(partial(_device_by_device, devices=t), leaf, None)
    return jax.tree.map(put, on_mesh(mesh, spec), leaf)


def _by_rows(function: Callable[[Array], Array], leaf: Any, ndim: int | None) -> Any:
    """A function of arrays `[*out, n]` on a leaf; of a quantised one on each of its arrays."""
    if not isinstance(leaf, QTensor):
        return function(leaf)
    out = leaf.shape[:-1]
    changed = jax.tree.map(lambda a: function(a.reshape(*out, a.shape[1])), leaf)
    shape = leaf.shape if ndim is None else (*changed.values.shape[:-1], leaf.shape[-1])
    flat = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), changed)
    return dataclasses.replace(flat, shape=shape)


def _with_repeated_keys(qkv: Array, repeats: int) -> Array:
    """`[K, G + 2, ...]` as `[K * repeats, G / repeats + 2, ...]`: a key head for each part of its queries."""
    K, G = qkv.shape[0], qkv.shape[1] - 2
    queries = qkv[:, :G].reshape(K * repeats, G // repeats, *qkv.shape[2:])
    return jnp.concatenate([queries, jnp.repeat(qkv[:, G:], repeats, axis=0)], axis=1)


def _device_by_device(gate_up: Array, devices: int) -> Array:
    """`[2, F, n]` with the gate and up rows of each device behind one another."""
    two, F, n = gate_up.shape
    return jnp.swapaxes(gate_up.reshape(two, devices, F // devices, n), 0, 1)
