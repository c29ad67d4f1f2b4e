"""Which converter makes a leaf: dense, kept in GGUF's blocks, or quantised while it is loaded."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jllama import kernels
from jllama.checkpoint.formats.stored import Checkpoint, Reader
from jllama.checkpoint.layout import Leaf
from jllama.checkpoint.leaves.dense import DenseConverter
from jllama.checkpoint.leaves.gguf_blocks import QuantizedConverter, form_of
from jllama.families.tensor_names import EMBED, HEAD
from jllama.kernels.target import of_platform
from jllama.layers.qtensor import QTensor
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
            form = form_of(leaf, checkpoint, all_types=reads_tiles(where))
            return dense(leaf, where) if form is None else place(stored(leaf, form), where)

        return keep, [dense]
    wide = DenseConverter(checkpoint, reader, np.dtype(np.float32), bar)

    def shrink(leaf: Leaf, where: Any) -> Any:
        scheme = scheme_for(leaf, mode)
        return dense(leaf, where) if scheme is None else place(quantize(wide(leaf), scheme), where)

    return shrink, [dense, wide]


def scheme_for(leaf: Leaf, mode: str) -> Scheme | None:
    """How a mode, a key of `SCHEMES`, quantises a leaf; None: not at all."""
    matrices, tables = SCHEMES[mode]
    if not leaf.is_matrix:
        return None
    return tables if leaf.parts[0].name in (EMBED, HEAD) else matrices


def placed(leaf: Any, where: Any = None, *, pack: bool = True) -> Any:
    """An array or a quantised leaf where it is to lie; `pack`: in the layout that kernels read there.

    Bound to a device only if one is named: a program compiled for arrays that are not is compiled anew for
    those that are, and what it returned with the weights' help would be.
    """
    if isinstance(leaf, QTensor) and pack and reads_tiles(where):
        leaf = kernels.cpu.tiles(leaf)
        return leaf if where is None else jax.device_put(leaf, where)
    return jax.device_put(leaf, where)


def reads_tiles(where: Any) -> bool:
    """Whether the kernels of a place, None for JAX's default device, read the layout "tiles"."""
    target = of_platform(getattr(where or jax.devices()[0], "platform", "cpu"))
    return target.platform == "cpu" and target.kernels and kernels.cpu.refusal() is None
