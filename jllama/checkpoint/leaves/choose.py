"""Which converter makes a leaf: dense, kept in GGUF's blocks, or quantised while it is loaded."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jllama import kernels, sharding
from jllama.checkpoint.formats.stored import Checkpoint, Reader
from jllama.checkpoint.layout import Leaf, layout
from jllama.checkpoint.leaves.dense import DenseConverter
from jllama.checkpoint.leaves.gguf_blocks import QuantizedConverter, form_of
from jllama.checkpoint.shards import shard_layout
from jllama.config import ModelConfig
from jllama.families.tensor_names import EMBED, HEAD
from jllama.kernels.target import of_platform
from jllama.layers.qtensor import QTensor, recorded
from jllama.layers.quantization import SCHEMES, Scheme, quantize
from jllama.machine.progress import ByteBar

Converter = Callable[[Leaf, Any], Any]  # a leaf, and where it is to lie: one of `jax.device_put`'s


def converter_for(
    mode: str,
    checkpoint: Checkpoint,
    reader: Reader,
    dtype: np.dtype,
    bar: ByteBar,
    place: Callable[[QTensor, Any], Any],
) -> tuple[Converter, list[DenseConverter]]:
    """A function from a leaf to what stands for it where it is to lie, and what to close at the end.

    Args:
      mode: `none` expands everything, `auto` keeps GGUF's blocks as `form_of` says (whether to ask for that
        is for `automatic_mode` to say), a key of `SCHEMES` quantises every matrix.
      place: brings a quantised leaf there.
    """
    dense = DenseConverter(checkpoint, reader, dtype, bar)
    if mode == "none":
        return dense, [dense]
    if mode == "auto":
        stored = QuantizedConverter(checkpoint, reader)

        def keep(leaf: Leaf, where: Any) -> Any:
            form = form_of(leaf, checkpoint)
            if form is None:
                return dense(leaf, where)
            kept = place(stored(leaf, form), where)
            bar.advance(math.prod(leaf.shape) * dtype.itemsize)
            return kept

        return keep, [dense]
    wide = DenseConverter(checkpoint, reader, np.dtype(np.float32), bar, counted=dtype)

    def shrink(leaf: Leaf, where: Any) -> Any:
        scheme = scheme_for(leaf, mode)
        if scheme is None:
            return dense(leaf, where)
        if scheme.group is None and leaf.parts[0].columns:
            return place(_columns(quantize(wide(_uncut(leaf)), scheme), leaf), where)
        return place(quantize(wide(leaf), scheme), where)

    return shrink, [dense, wide]


def _uncut(leaf: Leaf) -> Leaf:
    """A leaf with whole rows, which share a scale."""
    (part,) = leaf.parts
    return Leaf(shape=part.shape, parts=(dataclasses.replace(part, columns=None),))


def _columns(whole: QTensor, leaf: Leaf) -> QTensor:
    """Of 8-bit rows the columns that a device's leaf has, with the scales of the whole rows."""
    first, last = leaf.parts[0].columns or (0, whole.shape[-1])
    return dataclasses.replace(whole, values=whole.values[:, first:last], shape=leaf.shape)


def check_cuts(mode: str, config: ModelConfig, checkpoint: Checkpoint, mesh: Mesh | None) -> None:
    """Refuses groups that share a scale where several devices would each get a part of them.

    Raises:
      JllamaError: names the leaf, and the numbers of devices that would do.
    """
    if mesh is not None:
        sharding.check(config, mesh.size, cut_blocks(mode, config, checkpoint))


def cut_blocks(mode: str, config: ModelConfig, checkpoint: Checkpoint | None = None) -> list[sharding.Blocks]:
    """The rows that several devices part, as far as weights in them share a scale.

    Args:
      mode: a key of `SCHEMES`, `none`, or `auto`: as `checkpoint` has them, or nothing without one.
    """
    if mode == "none" or (mode == "auto" and checkpoint is None):
        return []
    found: dict[sharding.Blocks, None] = {}  # each once, in the layers' order
    for path, leaf in jax.tree_util.tree_leaves_with_path(layout(config)):
        C, axis = leaf.shape[-1], sharding.cut_axis(path, leaf, 1)
        if axis != len(leaf.shape) - 1 or not leaf.is_matrix:
            continue
        if mode == "auto":
            assert checkpoint is not None
            form = form_of(leaf, checkpoint)
            counts = [length for length, _ in form.outline(C).values()] if form else []
        else:
            scheme = scheme_for(leaf, mode)
            counts = [C // scheme.group] if scheme and scheme.group else []
        found[sharding.Blocks(path[-1].name, C, tuple(counts))] = None
    return list(found)


def scheme_for(leaf: Leaf, mode: str) -> Scheme | None:
    """How a mode, a key of `SCHEMES`, quantises a leaf; None: not at all."""
    matrices, tables = SCHEMES[mode]
    if not leaf.is_matrix:
        return None
    return tables if leaf.parts[0].name in (EMBED, HEAD) else matrices


def quantized_bytes(config: ModelConfig, mode: str, devices: int) -> int:
    """What each of several devices, or the only one, takes of weights that a mode quantises.

    Args:
      config: the checkpoint's.
      mode: a key of `SCHEMES`; what it leaves alone is bfloat16.

    Raises:
      JllamaError: groups that share a scale can't be cut into so many parts.
    """
    tree = layout(config) if devices == 1 else shard_layout(config, devices, 0)

    def stored(leaf: Leaf) -> Any:
        scheme, whole = scheme_for(leaf, mode), jax.ShapeDtypeStruct(leaf.shape, jax.numpy.bfloat16)
        return whole if scheme is None else jax.eval_shape(lambda w: quantize(w, scheme), whole)

    arrays = jax.tree.leaves([stored(leaf) for leaf in jax.tree.leaves(tree)])
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


def placed(leaf: Any, where: Any = None, *, pack: bool = True, alone: bool = True) -> Any:
    """An array or a quantised leaf where it is to lie; `pack`: in the layout that kernels read there.

    `alone`: that place has the whole model, else a part of it, which no kernel reads in tiles. Bound to a
    device only if one is named: a program compiled for arrays that are not is compiled anew for those that
    are, and what it returned with the weights' help would be.
    """
    layout = kernel_layout(where) if isinstance(leaf, QTensor) and pack else "rows"
    if layout == "tiles" and alone:
        leaf = kernels.cpu.tiles(leaf)
        return leaf if where is None else jax.device_put(leaf, where)
    return jax.device_put(recorded(leaf) if layout == "records" else leaf, where)


def kernel_layout(where: Any) -> str:
    """The layout of a `QTensor` that kernels of a place, None for JAX's default device, read, or will read
    once they are compiled.
    """
    target = of_platform(getattr(where or jax.devices()[0], "platform", "cpu"))
    if not target.kernels or (target.layout == "tiles" and kernels.cpu.refusal(waits=False) is not None):
        return "rows"
    return target.layout
