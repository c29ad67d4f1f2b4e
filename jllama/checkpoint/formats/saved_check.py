"""Checks the header of a quantised checkpoint against its configuration, before anything is read."""

import math
from pathlib import Path
from typing import Any

import jax

from jllama.checkpoint.formats.safetensors import read_header
from jllama.checkpoint.formats.stored import Stored
from jllama.checkpoint.layout import Leaf
from jllama.errors import JllamaError
from jllama.layers.records import UNIT

_FIRST_NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_DENSE = ("F64", "F32", "F16", "BF16")
_SCALES = ("F32", "F16")
_PARTS = ("values", "scales", "offsets", "scale_units", "offset_units")
_BITS = {"I8": 8, "U8": 4}


def leaf_name(path: tuple[Any, ...]) -> str:
    """A leaf's path in `Params`, as the file spells it: two norms have the names of the first files."""
    steps = [str(getattr(step, "name", getattr(step, "idx", step))) for step in path]
    return ".".join(_FIRST_NAMES.get(step, step) for step in steps)


def check_saved(path: Path, tree: Any) -> dict[str, tuple[str, ...]]:
    """Which leaves of `layout(config)` are quantised, and in which parts.

    Raises:
      JllamaError: names every leaf that is missing, extra, misshapen or of a type that does not fit.
    """
    stored = {tensor.name: tensor for tensor in _header(path)}
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    quantized: dict[str, tuple[str, ...]] = {}
    wrong, known = [], set()
    for at, leaf in leaves:
        name = leaf_name(at)
        kinds = tuple(kind for kind in _PARTS if f"{name}.{kind}" in stored)
        if name not in stored and kinds:
            quantized[name] = kinds
        fits = _quantized_fits if name in quantized else _dense_fits
        known |= {name} if name not in quantized else {f"{name}.{kind}" for kind in kinds}
        if not fits(stored, name, leaf):
            wrong.append(f"{name}, which should be {list(leaf.shape)}")
    wrong += [f"{name}, which is too much" for name in stored if name not in known]
    if wrong:
        raise JllamaError(
            f"{path} does not fit its config.json ({', '.join(wrong)}): quantise the model again"
        )
    return quantized


def _header(path: Path) -> list[Stored]:
    try:
        return read_header(path)
    except JllamaError as error:
        raise JllamaError(f"{error}, or quantise the model again") from None


def _dense_fits(stored: dict[str, Stored], name: str, leaf: Leaf) -> bool:
    tensor = stored.get(name)
    return tensor is not None and tensor.shape == leaf.shape and tensor.encoding.name in _DENSE


def _quantized_fits(stored: dict[str, Stored], name: str, leaf: Leaf) -> bool:
    """As `QTensor` says: values, scales and perhaps offsets, in groups along the last axis."""
    values, scales, offsets = (stored.get(f"{name}.{part}") for part in _PARTS[:3])
    if not leaf.is_matrix or values is None or scales is None or values.encoding.name not in _BITS:
        return False
    rows, columns, bits = math.prod(leaf.shape[:-1]), leaf.shape[-1], _BITS[values.encoding.name]
    if values.shape != (rows, columns * bits // 8) or columns * bits % 8:
        return False
    groups = scales.shape[1] if len(scales.shape) == 2 else 0
    if groups < 1 or columns % groups or (bits == 4 and columns // groups % 2):
        return False
    types = {tensor.encoding.name for tensor in (scales, offsets) if tensor is not None}
    shapes = {tensor.shape for tensor in (scales, offsets) if tensor is not None}
    return shapes == {(rows, groups)} and len(types) == 1 and _levels_fit(stored, name, rows, columns)


def _levels_fit(stored: dict[str, Stored], name: str, rows: int, columns: int) -> bool:
    """8-bit scales have a unit for each `UNIT` weights, and so have offsets beside them; others have none."""
    scales, offsets, *units = (stored.get(f"{name}.{part}") for part in _PARTS[1:])
    if scales is None or scales.encoding.name != "I8":
        return scales is not None and scales.encoding.name in _SCALES and units == [None, None]
    if columns % UNIT or scales.shape[1] % (columns // UNIT) or (offsets is None) != (units[1] is None):
        return False
    wanted = ("F16", (rows, columns // UNIT))
    return units[0] is not None and all(
        (unit.encoding.name, unit.shape) == wanted for unit in units if unit is not None
    )
