"""Which bytes of a checkpoint make a device's part of each leaf."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jllama import sharding
from jllama.checkpoint.layout import Leaf, Part, layout
from jllama.config import ModelConfig
from jllama.errors import JllamaError

Make = Callable[[tuple[Any, ...], Leaf, Any], Any]


def split_layout(config: ModelConfig, devices: int) -> Any:
    """`layout` of the model as that many devices hold it together, from the tensors of its checkpoint.

    Of repeated key heads the parts are not those of the tensors: `shard_layout` says which they are.
    """
    tree = layout(sharding.widened(config, devices))
    if config.tie_word_embeddings and tree.lm_head is not None:
        tree = dataclasses.replace(tree, lm_head=tree.embed_tokens)
    return tree


def shard_layout(config: ModelConfig, devices: int, index: int) -> Any:
    """`Params` with a `Leaf` for each array of one device: its shape there, what it takes of the tensors."""
    whole = split_layout(config, devices)
    own = layout(sharding.local(sharding.widened(config, devices), devices))

    def leaf(path: tuple[Any, ...], wide: Leaf, small: Leaf) -> Leaf:
        if sharding.cut_axis(path, wide, devices) is None:
            return wide
        shape = small.shape if path[-1].name != "lm_head" else (wide.shape[0] // devices, wide.shape[1])
        cut = partial(_cut, config=config, devices=devices, index=index)
        parts = (cut(path[-1].name, a, b) for a, b in zip(wide.parts, small.parts, strict=True))
        return Leaf(shape=shape, parts=tuple(parts))

    return jax.tree_util.tree_map_with_path(leaf, whole, own)


def _count(config: ModelConfig, leaf: str, tensor: str) -> int:
    """Between how many equal things the rows of a leaf's tensor can be cut."""
    if leaf == "lm_head":
        return config.vocab_size
    N, K, F = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    return dict(q_proj=N, q_norm=N, k_proj=K, k_norm=K, v_proj=K, gate_proj=F, up_proj=F)[tensor]


def _cut(leaf: str, wide: Part, small: Part, *, config: ModelConfig, devices: int, index: int) -> Part:
    """A part of a wide leaf as one device takes it; it goes where `small` says."""
    if leaf in ("o_proj", "down_proj"):
        each = wide.shape[1] // devices
        return dataclasses.replace(wide, columns=(index * each, (index + 1) * each))
    count = _count(config, leaf, wide.name.split(".")[-2])
    first, last = _share(count, devices, index)
    height = _rows(wide, count, devices) // count
    shape = (count * height, *wide.shape[1:])
    return dataclasses.replace(wide, shape=shape, place=small.place, rows=(first * height, last * height))


def _rows(wide: Part, count: int, devices: int) -> int:
    """Rows of the checkpoint's tensor: a widened layout has those of repeated heads, too."""
    return wide.shape[0] // max(devices // count, 1)


def _share(count: int, devices: int, index: int) -> tuple[int, int]:
    """Which of `count` things are a device's: an equal part or, where there are fewer, the one it shares."""
    if count % devices == 0:
        return index * count // devices, (index + 1) * count // devices
    return index * count // devices, index * count // devices + 1


def leaf_rows(whole: Leaf, own: Leaf) -> np.ndarray:
    """Rows of a leaf, flattened to `[rows, C]` (a norm or bias to `[numbers, 1]`), that a device's has.

    Args:
      whole: of `layout`, as the checkpoint's configuration has it.
      own: of `shard_layout`.

    Returns:
      int64, in the order of the device's leaf.
    """
    out = whole.shape[:-1] if whole.is_matrix else whole.shape
    there = np.arange(np.prod(out)).reshape(out)
    mine = np.empty(own.shape[: len(out)], np.int64)
    for before, part in zip(whole.parts, own.parts, strict=True):
        first, last = part.rows or (0, before.shape[0])
        mine[part.place] = there[before.place].reshape(-1)[first:last].reshape(mine[part.place].shape)
    return mine.reshape(-1)


def each_leaf(config: ModelConfig, placement: Any, mesh: Mesh | None, make: Make) -> Any:
    """`Params` of what `make(path, leaf, where)` makes of each leaf.

    Args:
      config: the checkpoint's.
      placement: where leaves lie; a `Params` of places (any of its branches may be one leaf), or one for all.
      mesh: devices that hold the model together: each leaf is made of this process's own devices' parts.

    Raises:
      JllamaError: `placement` has branches that the parameters lack.
    """
    if mesh is not None:
        return _each_part(config, mesh, make)
    tree = layout(config)
    return jax.tree_util.tree_map_with_path(make, tree, _for_each_leaf(placement, tree))


def _each_part(config: ModelConfig, mesh: Mesh, make: Make) -> Any:
    devices = sharding.own_devices(mesh)
    trees = (shard_layout(config, mesh.size, index) for index in devices)

    def leaf(path: tuple[Any, ...], whole: Leaf, *parts: Leaf) -> Any:
        made: list[Any] = []
        for part, device in zip(parts, devices.values(), strict=True):
            alike = bool(made) and part == parts[0]  # read once, whatever lies whole on each
            made.append(jax.device_put(made[0], device) if alike else make(path, part, device))
        return sharding.joined(path, whole, made, mesh)

    return jax.tree_util.tree_map_with_path(leaf, split_layout(config, mesh.size), *trees)


def numbers(config: ModelConfig, mesh: Mesh | None) -> int:
    """How many numbers the leaves that this process makes consist of."""
    if mesh is None:
        trees = [layout(config)]
    else:
        trees = [shard_layout(config, mesh.size, index) for index in sharding.own_devices(mesh)]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trees))


def device_share(config: ModelConfig, devices: int) -> float:
    """Which part of a model's numbers each device has; more than an equal one."""
    own, whole = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for tree in (shard_layout(config, devices, 0), layout(config))
    )
    return own / whole


def _for_each_leaf(placement: Any, tree: Any) -> Any:
    """The placement of each leaf.

    Raises:
      JllamaError: it has branches that the parameters lack.
    """
    try:
        return jax.tree.broadcast(placement, tree, is_leaf=lambda node: node is None)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise JllamaError(f"placement: neither one place nor Params of places ({reason})") from None
