"""Which converter makes a leaf: dense, kept in GGUF's blocks, or quantised while it is loaded."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jllama import kernels
from jllama.checkpoint.formats.stored import Checkpoint, Reader
from jllama.checkpoint.layout import Leaf
from jllama.checkpoint.leaves.dense import DenseConverter
from jllama.checkpoint.leaves.gguf_blocks import QuantizedConverter
from jllama.families.tensor_names import EMBED, HEAD
from jllama.kernels.target import of_platform
from jllama.layers.qtensor import QTensor
from jllama.layers.quantization import SCHEMES, Scheme, quantize
from jllama.machine.progress import ByteBar

Converter = Callable[[Leaf], Any]


def converter_for(
    mode: str,
    checkpoint: Checkpoint,
    reader: Reader,
    dtype: np.dtype,
    device: Any,
    bar: ByteBar,
    place: Callable[[QTensor], Any],
) -> tuple[Converter, list[DenseConverter]]:
    """A function from a leaf to what stands for it on the device, and what to close at the end.

    Args:
      mode: `none` expands everything, `auto` keeps GGUF's Q8_0, Q4_0 and Q4_1 (whether to ask for that is
        for `automatic_mode` to say), a key of `SCHEMES` quantises every matrix.
      place: brings a quantised leaf to the device.
    """
    dense = DenseConverter(checkpoint, reader, dtype, device, bar)
    if mode == "none":
        return dense, [dense]
    if mode == "auto":
        stored = QuantizedConverter(checkpoint, reader)

        def keep(leaf: Leaf) -> Any:
            return place(stored(leaf)) if leaf.is_matrix and stored.keeps(leaf) else dense(leaf)

        return keep, [dense]
    wide = DenseConverter(checkpoint, reader, np.dtype(np.float32), device, bar)

    def shrink(leaf: Leaf) -> Any:
        scheme = scheme_for(leaf, mode)
        return dense(leaf) if scheme is None else place(quantize(wide(leaf), scheme))

    return shrink, [dense, wide]


def scheme_for(leaf: Leaf, mode: str) -> Scheme | None:
    """How a mode, a key of `SCHEMES`, quantises a leaf; None: not at all."""
    matrices, tables = SCHEMES[mode]
    if not leaf.is_matrix:
        return None
    return tables if leaf.parts[0].name in (EMBED, HEAD) else matrices


def placed(leaf: Any, *, device: Any = None, pack: bool = True) -> Any:
    """An array or a quantised leaf on the device; `pack`: in the layout that its kernels read.

    Bound to a device only if one is named: a program compiled for arrays that are not is compiled anew for
    those that are, and what it returned with the weights' help would be.
    """
    if isinstance(leaf, QTensor) and pack and _reads_tiles(device or jax.devices()[0]):
        return kernels.cpu.tiles(leaf)
    return jax.device_put(leaf, device)


def _reads_tiles(place: Any) -> bool:
    target = of_platform(getattr(place, "platform", "cpu"))
    return target.platform == "cpu" and target.kernels and kernels.cpu.refusal() is None
