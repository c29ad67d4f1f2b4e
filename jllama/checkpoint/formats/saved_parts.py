"""Reads of a quantised directory's arrays what a device takes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jllama import sharding
from jllama.checkpoint.formats.saved_check import leaf_name
from jllama.checkpoint.formats.stored import Reader, Stored
from jllama.checkpoint.layout import Leaf
from jllama.checkpoint.leaves.dense import aligned_empty
from jllama.checkpoint.shards import leaf_rows

_WHOLE_NUMBERS = {"I8": np.dtype(np.int8), "U8": np.dtype(np.uint8)}
_TABLE = jax.tree_util.GetAttrKey("embed_tokens")


def stored_name(path: tuple[Any, ...], leaves: Mapping[str, Leaf]) -> str:
    """The name of a leaf in the file, which has a tied head once."""
    name = leaf_name(path)
    return name if name in leaves else leaf_name((_TABLE,))


def read_part(reader: Reader, stored: Mapping[str, Stored], whole: Leaf, own: Leaf, name: str) -> np.ndarray:
    """An array of the leaf `whole`, or of a quantised one's, as far as a device's `own` has it.

    Returns:
      `[rows, n]` of a quantised leaf, else of the device's leaf's shape.

    Raises:
      JllamaError: the file can't be read, or groups can't be cut.
    """
    tensor = stored[name]
    dtype = _WHOLE_NUMBERS.get(tensor.encoding.name, tensor.encoding.plain)
    assert dtype is not None
    height = math.prod(whole.shape[:-1] if whole.is_matrix else whole.shape)
    flat = dataclasses.replace(tensor, shape=(height, math.prod(tensor.shape) // height))
    rows = np.arange(height) if own is whole else leaf_rows(whole, own)
    values = stored.get(name.rpartition(".")[0] + ".values")
    first, last = _columns(flat, whole, own, values is not None and values.encoding.name == "U8")
    out = aligned_empty((len(rows), last - first), dtype)
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        reader.read_rows(flat, int(rows[start]), first, out[start:end].view(np.uint8))
    return out if len(tensor.shape) == 2 and tensor.shape != whole.shape else out.reshape(own.shape)


def _columns(flat: Stored, whole: Leaf, own: Leaf, is_packed: bool) -> tuple[int, int]:
    """Which columns of an array are a device's: a single one serves any, unless weights share bytes."""
    n, taken = flat.shape[1], own.parts[0].columns
    if taken is None or (n == 1 and not is_packed):
        return 0, n
    C, each = whole.shape[-1], taken[1] - taken[0]
    sharding.check_groups(flat.name, C, [n], C // each)
    return taken[0] * n // C, taken[1] * n // C
