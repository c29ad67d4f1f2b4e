"""The devices, and programs on all of them."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.layers.cache import KVCache
from jllama.layers.qtensor import QTensor
from jllama.layers.shards import AXIS
from jllama.machine import joining
from jllama.model import Params
from jllama.sharding.cuts import WHOLE, array_spec, cut_axis, map_leaves, specs

_HEADS: Any = PartitionSpec(None, AXIS)
CACHE = KVCache(keys=_HEADS, values=_HEADS, length=WHOLE)  # type: ignore[arg-type]


def mesh_of(devices: int) -> Mesh:
    """That many of all processes' devices, the same number of each process.

    Raises:
      JllamaError: there are fewer, or they can't be shared out like this.
    """
    there, processes = jax.devices(), jax.process_count()
    if devices > len(there):
        hint = f"use --tensor_parallel={len(there)}"
        if there[0].platform == "cpu":
            each = "" if processes == 1 else " in each process"
            hint += f", or set JAX_NUM_CPU_DEVICES={-(-devices // processes)}{each} to try it on a CPU"
        wanted = f"tensor_parallel={devices} needs so many devices"
        raise JllamaError(f"{wanted} and JAX sees {len(there)}: {hint}")
    if devices % processes:
        raise JllamaError(
            f"tensor_parallel={devices} can't be shared out to {processes} processes: use a multiple of that"
        )
    each, own = devices // processes, itertools.groupby(there, lambda device: device.process_index)
    return Mesh(np.asarray([device for _, group in own for device in list(group)[:each]]), (AXIS,))


def acquaint(mesh: Mesh | None) -> None:
    """A first sum over a mesh of several processes: native code may say on stdout whom it found for it."""
    if mesh is None or jax.process_count() == 1:
        return
    zeros: Any = np.zeros(mesh.size, np.float32)
    zeros = put(NamedSharding(mesh, PartitionSpec(AXIS)), zeros)
    with joining.quiet():
        jax.block_until_ready(jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, WHOLE))(zeros))


def mesh_under(tree: Any) -> Mesh | None:
    """The mesh that a tree's arrays lie on; None: on one device."""
    sharding = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    if isinstance(sharding, NamedSharding) and AXIS in sharding.mesh.axis_names:
        return sharding.mesh  # type: ignore[return-value]
    return None


def devices_under(tree: Any) -> int:
    """How many devices hold a tree's arrays together."""
    mesh = mesh_under(tree)
    return 1 if mesh is None else mesh.size


def bytes_on_each(tree: Any) -> int:
    """Memory that a tree's arrays take on each of the devices that hold them, or on the only one."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def on_mesh(mesh: Mesh, tree: Any) -> Any:
    """Placements of a tree of specs."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), tree, is_leaf=lambda node: isinstance(node, PartitionSpec)
    )


def everywhere(run: Callable[..., Any], mesh: Mesh | None, out: Any) -> Callable[..., Any]:
    """`run(*trees)` as each device of a mesh runs it, on its part of parameters and caches.

    All other arguments, and what `out` (specs) does not say otherwise, are the same on all of them.
    """
    if mesh is None:
        return run

    def part(*trees: Any) -> Any:
        return run(*jax.tree.map(_localised(mesh.size), trees, is_leaf=_is_params))

    def whole(*trees: Any) -> Any:
        given = jax.tree.map(partial(_argument_spec, devices=mesh.size), trees, is_leaf=_is_special)
        # Replication is ours to keep: custom kernels could not say it.
        return jax.shard_map(part, mesh=mesh, in_specs=given, out_specs=out, check_vma=False)(*trees)

    return whole


def _is_params(node: Any) -> bool:
    return isinstance(node, Params)


def _is_special(node: Any) -> bool:
    return isinstance(node, Params | KVCache)


def _argument_spec(node: Any, devices: int) -> Any:
    if isinstance(node, Params):
        return specs(node, devices)
    if not isinstance(node, KVCache):
        return WHOLE
    rows: Any = None if node.rows is None else WHOLE
    return dataclasses.replace(CACHE, rows=rows)


def _localised(devices: int) -> Callable[[Any], Any]:
    """Of parameters whose arrays are a device's own: with shapes of quantised leaves that say so."""

    def shape(path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, QTensor):
            return leaf
        axis = cut_axis(path, leaf, devices)
        sizes = [n // devices if i == axis else n for i, n in enumerate(leaf.shape)]
        return dataclasses.replace(leaf, shape=tuple(sizes))

    return lambda node: map_leaves(shape, node) if _is_params(node) else node


def empty_cache(config: ModelConfig, params: Params, **room: Any) -> KVCache:
    """`KVCache.empty(config, **room)` on the devices that parameters lie on."""
    mesh = mesh_under(params)
    return KVCache.empty(config, **room, placement=mesh and NamedSharding(mesh, _HEADS))


def beside(params: Params, state: Any) -> Any:
    """A tree of small arrays and a cache, bound to where parameters lie."""
    mesh = mesh_under(params)
    if mesh is None:
        return jax.device_put(state, next(iter(jax.tree.leaves(params)[0].devices())))
    spread = jax.tree.map(partial(_argument_spec, devices=mesh.size), state, is_leaf=_is_special)
    return jax.tree.map(
        lambda where, part: jax.tree.map(partial(put, where), part), on_mesh(mesh, spread), state
    )


def put(sharding: NamedSharding, array: Array) -> Array:
    if getattr(array, "sharding", None) == sharding:
        return array
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def local_shapes(params: Params, devices: int) -> Params:
    """Shapes and dtypes of what one device has of parameters, which may be shapes themselves."""

    def shape(array: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        names = (*spec, *[None] * len(array.shape))
        sizes = (n // devices if name == AXIS else n for n, name in zip(array.shape, names, strict=False))
        return jax.ShapeDtypeStruct(tuple(sizes), array.dtype)

    own = jax.tree.map(shape, params, specs(params, devices))
    return _localised(devices)(own)


def own_devices(mesh: Mesh) -> dict[int, jax.Device]:
    """This process's devices, by their places in the mesh."""
    here = jax.process_index()
    return {i: device for i, device in enumerate(mesh.devices.flat) if device.process_index == here}


def joined(path: tuple[Any, ...], whole: Any, parts: list[Any], mesh: Mesh) -> Any:
    """One leaf of `Params` on a mesh.

    Args:
      path: its path.
      whole: has its `shape`, as a widened configuration has it.
      parts: this process's devices' own, where they lie.
      mesh: all devices.
    """
    axis = cut_axis(path, whole, mesh.size)
    if not isinstance(parts[0], QTensor):
        return _join(WHOLE if axis is None else PartitionSpec(*[None] * axis, AXIS), mesh, *parts)

    def join(*arrays: Array) -> Array:
        return _join(array_spec(axis, len(whole.shape)), mesh, *arrays)

    return dataclasses.replace(jax.tree.map(join, *parts), shape=whole.shape)


def _join(spec: PartitionSpec, mesh: Mesh, *arrays: Array) -> Array:
    shape = list(arrays[0].shape)
    for axis, name in enumerate(spec):
        shape[axis] *= mesh.size if name == AXIS else 1
    return jax.make_array_from_single_device_arrays(tuple(shape), NamedSharding(mesh, spec), list(arrays))
