"""Quantised leaves: GGUF's blocks kept as they are stored, or full weights quantised while they are loaded."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jllama.checkpoint.dense import DenseConverter, aligned_empty, deinterleave
from jllama.checkpoint.layout import Leaf
from jllama.checkpoint.names import EMBED, HEAD
from jllama.checkpoint.stored import Checkpoint, Reader
from jllama.errors import JllamaError
from jllama.layers.quantized import QTensor
from jllama.quantization import SCHEMES, quantize

BLOCK = 32  # weights of a block of the types below
# Bits, and the bytes of a block where its scale, its offset and its values begin: ggml's `block_q8_0` etc.
_STORED: dict[str, tuple[int, int, int | None, int]] = {
    "Q8_0": (8, 0, None, 2),
    "Q4_0": (4, 0, None, 2),
    "Q4_1": (4, 0, 2, 4),
}


class StoredConverter:
    """Keeps GGUF's Q8_0, Q4_0 and Q4_1 matrices as blocks; anything else goes to `dense`."""

    def __init__(self, checkpoint: Checkpoint, reader: Reader, device: Any, dense: DenseConverter) -> None:
        self._checkpoint, self._reader, self._device, self._dense = checkpoint, reader, device, dense

    def __call__(self, leaf: Leaf) -> Any:
        """The leaf on the device.

        Raises:
          JllamaError: a scale that is not finite, or a file that can't be read.
        """
        types = {self._checkpoint.tensors[part.name].encoding.name for part in leaf.parts}
        kind = types.pop()
        if types or kind not in _STORED or len(leaf.shape) < 2:
            return self._dense(leaf)
        return self._split(self._blocks(leaf), leaf, kind)

    def _blocks(self, leaf: Leaf) -> np.ndarray:
        """The leaf's raw blocks, uint8 `[R, C / 32, bytes of a block]`, rows in the leaf's order."""
        encoding = self._checkpoint.tensors[leaf.parts[0].name].encoding
        row_bytes = leaf.shape[-1] // BLOCK * encoding.size
        host = np.empty((*leaf.shape[:-1], row_bytes), np.uint8)
        for part in leaf.parts:
            stored = self._checkpoint.tensors[part.name]
            raw = np.empty((part.shape[0], row_bytes), np.uint8)
            self._reader.read(stored, 0, raw)
            host[part.place] = raw.reshape(host[part.place].shape)
            if part.rotary and self._checkpoint.rotary_interleaved:
                deinterleave(host[part.place], leaf.shape[2], row_bytes)
        return host.reshape(-1, leaf.shape[-1] // BLOCK, encoding.size)

    def _split(self, blocks: np.ndarray, leaf: Leaf, kind: str) -> QTensor:
        bits, scale_at, offset_at, values_at = _STORED[kind]
        rows = blocks.shape[0]
        values = aligned_empty((rows, leaf.shape[-1] * bits // 8), np.dtype(np.int8 if bits == 8 else np.uint8))
        values.view(np.uint8).reshape(rows, blocks.shape[1], -1)[...] = blocks[:, :, values_at:]
        return QTensor(
            values=jax.device_put(values, self._device),
            scales=self._halves(blocks, scale_at, leaf),
            offsets=None if offset_at is None else self._halves(blocks, offset_at, leaf),
            shape=leaf.shape,
            bits=bits,
        )

    def _halves(self, blocks: np.ndarray, at: int, leaf: Leaf) -> jax.Array:
        halves = aligned_empty(blocks.shape[:2], np.dtype(np.float16))
        halves.view(np.uint8).reshape(*blocks.shape[:2], 2)[...] = blocks[:, :, at : at + 2]
        if not np.isfinite(halves).all():
            names = ", ".join(self._checkpoint.spell(part.name) for part in leaf.parts)
            raise JllamaError(f"{names}: a scale is NaN or infinite; download the file again")
        return jax.device_put(halves, self._device)


class QuantizingConverter:
    """Quantises every matrix as soon as `dense` has read it; vectors stay as they are."""

    def __init__(self, mode: str, dense: DenseConverter, vectors: DenseConverter) -> None:
        """`dense` reads matrices in float32, `vectors` the rest in the run dtype."""
        self._mode, self._dense, self._vectors = mode, dense, vectors

    def __call__(self, leaf: Leaf) -> Any:
        """The leaf on the device.

        Raises:
          JllamaError: as the dense converter, or a row that the groups do not divide.
        """
        if len(leaf.shape) < 2 or leaf.parts[0].name.endswith("bias"):
            return self._vectors(leaf)
        matrices, tables = SCHEMES[self._mode]
        return quantize(self._dense(leaf), tables if leaf.parts[0].name in (EMBED, HEAD) else matrices)


Converter = Callable[[Leaf], Any]
