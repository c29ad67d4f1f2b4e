"""Keeps GGUF's blocks: a leaf becomes a `QTensor` of the same numbers, of 8 or 4 bits each."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jllama.checkpoint.formats.stored import Checkpoint, Reader
from jllama.checkpoint.layout import Leaf, Part
from jllama.checkpoint.leaves.block_types import TYPES, BlockType, Form, common_form, widened
from jllama.checkpoint.leaves.dense import CHUNK, aligned_empty, all_finite, deinterleave, not_finite, runs_of
from jllama.errors import JllamaError
from jllama.layers.qtensor import QTensor


class QuantizedConverter:
    """Reads a leaf's blocks, without ever expanding them."""

    def __init__(self, checkpoint: Checkpoint, reader: Reader) -> None:
        self._checkpoint, self._reader = checkpoint, reader

    def __call__(self, leaf: Leaf, form: Form) -> QTensor:
        """The leaf on the host, in the layout "rows", in what `form_of` says.

        Raises:
          JllamaError: a scale or offset that is not finite, or a file that can't be read.
        """
        arrays = {
            name: aligned_empty((*leaf.shape[:-1], length), dtype)
            for name, (length, dtype) in form.outline(leaf.shape[-1]).items()
        }
        for part in leaf.parts:
            targets = {name: array[part.place] for name, array in arrays.items()}
            self._fill(targets, part, leaf.shape, form)
        rows = math.prod(leaf.shape[:-1])
        return _qtensor({name: array.reshape(rows, -1) for name, array in arrays.items()}, leaf, form)

    def _fill(self, targets: dict[str, np.ndarray], part: Part, shape: tuple[int, ...], form: Form) -> None:
        stored = self._checkpoint.tensors[part.name]
        raw = np.empty((part.height, part.width // stored.encoding.block * stored.encoding.size), np.uint8)
        row, column = (part.rows or (0,))[0], (part.columns or (0,))[0]
        self._reader.read_rows(stored, row, column, raw)
        if part.rotary and self._checkpoint.rotary_interleaved:
            deinterleave(raw, shape[2], raw.shape[1])
        blocks = raw.reshape(len(raw), -1, stored.encoding.size)
        at = 0
        for runs in zip(*map(runs_of, targets.values()), strict=True):
            rows = [run.reshape(-1, run.shape[-1]) for run in runs]
            fill(dict(zip(targets, rows, strict=True)), blocks[at:], TYPES[stored.encoding.name], form)
            at += len(rows[0])
        for numbers in targets.values():
            if numbers.dtype.kind == "f" and not all_finite(numbers):
                raise JllamaError(not_finite(stored, numbers, numbers.dtype))


def fill(targets: dict[str, np.ndarray], blocks: np.ndarray, kind: BlockType, form: Form) -> None:
    """Blocks, uint8 `[>= R, n, bytes]`, into arrays of R rows each, a few rows at a time."""
    rows = len(targets["values"])
    step = max(1, CHUNK // (blocks.shape[1] * blocks.shape[2]))
    for start in range(0, rows, step):
        end = min(start + step, rows)
        pieces = widened(kind.take_apart(blocks[start:end]), kind.form, form)
        for name, target in targets.items():
            target[start:end] = getattr(pieces, name)


def form_of(leaf: Leaf, checkpoint: Checkpoint) -> Form | None:
    """How the leaf is kept quantised: in what all of its tensors fit in exactly; None: it can't be."""
    kinds = types_of(leaf, checkpoint)
    if not leaf.is_matrix or not kinds <= set(TYPES):
        return None
    return common_form({TYPES[kind].form for kind in kinds})


def types_of(leaf: Leaf, checkpoint: Checkpoint) -> set[str]:
    """Of its tensors, as GGUF names them."""
    return {checkpoint.tensors[part.name].encoding.name for part in leaf.parts}


def outline(leaf: Leaf, form: Form, layout: str, levels: bool = False) -> QTensor:
    """The quantised leaf without its numbers: format and groups; the shapes are those of "rows"."""
    layout = "rows" if layout == "records" and form.scales != "int8" else layout
    rows = math.prod(leaf.shape[:-1])
    arrays: dict[str, Any] = {
        name: jax.ShapeDtypeStruct((rows, length), dtype)
        for name, (length, dtype) in form.outline(leaf.shape[-1]).items()
    }
    return dataclasses.replace(_qtensor(arrays, leaf, form), layout=layout, levels=levels)


def _qtensor(arrays: dict[str, Any], leaf: Leaf, form: Form) -> QTensor:
    return QTensor(**{"offsets": None, **arrays}, shape=leaf.shape, bits=form.bits)
