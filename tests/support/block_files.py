"""Random blocks of GGUF's types, written by hand: the gguf package can't quantise K types."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType as GgmlType
from gguf.quants import dequantize as by_package

from jllama.checkpoint.leaves.block_types import TYPES, Form, common_form, widened
from jllama.families.tensor_names import from_hf, to_gguf
from jllama.layers.qtensor import QTensor
from tests.support.checkpoint_files import finish, gguf_writer

# Where a block's float16 numbers begin, and what they are at most; the rest is random bytes.
_HALVES = {
    "Q8_0": {0: 1 / 128},
    "Q4_0": {0: 1 / 8},
    "Q4_1": {0: 1 / 8, 2: 1},
    "Q5_0": {0: 1 / 16},
    "Q5_1": {0: 1 / 16, 2: 1},
    "IQ4_NL": {0: 1 / 128},
    "Q4_K": {0: 1 / 1024, 2: 1 / 128},
    "Q5_K": {0: 1 / 2048, 2: 1 / 128},
    "Q6_K": {208: 1 / 4096},
}


def random_blocks(
    rng: np.random.Generator, kind: str, rows: int, columns: int, size: float = 1
) -> np.ndarray:
    """uint8 `[rows, bytes]`: numbers of magnitude `size`, of either sign."""
    block, nbytes = gguf.GGML_QUANT_SIZES[GgmlType[kind]]
    raw = rng.integers(0, 256, (rows, columns // block, nbytes), np.uint8)
    for at, most in _HALVES[kind].items():
        numbers = rng.uniform(-most * size, most * size, (rows, columns // block, 1))
        raw[:, :, at : at + 2] = numbers.astype(np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


def numbers_of(raw: np.ndarray, kind: str) -> np.ndarray:
    """What the gguf package reads, float32 `[rows, columns]`."""
    return by_package(raw, GgmlType[kind])


def weight_of(raw: np.ndarray, kind: str, form: Form | None = None) -> QTensor:
    """The blocks as a weight in the layout "rows", in their own form or a wider one."""
    block_type = TYPES[kind]
    own = block_type.form
    form = form or own
    blocks = raw.reshape(len(raw), -1, gguf.GGML_QUANT_SIZES[GgmlType[kind]][1])
    pieces = widened(block_type.take_apart(blocks), own, form)._asdict()
    columns = blocks.shape[1] * gguf.GGML_QUANT_SIZES[GgmlType[kind]][0]
    arrays: Any = {name: None if array is None else jnp.asarray(array) for name, array in pieces.items()}
    return QTensor(**arrays, shape=(len(raw), columns), bits=form.bits)


def random_weight(seed: int, kinds: Sequence[str], shape: tuple[int, ...]) -> QTensor:
    """A weight of random blocks in the layout "rows"; as many rows of each of these types."""
    rng, (rows, columns) = np.random.default_rng(seed), (math.prod(shape[:-1]), shape[-1])
    form = common_form({TYPES[kind].form for kind in kinds})
    parts = []
    for kind, taken in zip(kinds, np.array_split(np.arange(rows), len(kinds)), strict=True):
        raw = random_blocks(rng, kind, len(taken), columns, size=2 * columns**-0.5)
        parts.append(dataclasses.replace(weight_of(raw, kind, form), shape=shape))
    return jax.tree.map(lambda *arrays: jnp.asarray(np.concatenate(arrays)), *parts)


def write_mixed_gguf(
    path: Path,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kinds: Mapping[str, str],
    seed: int,
) -> Path:
    """Random blocks for every matrix; `kinds`: the type by a part of its name, the first that fits."""
    rng = np.random.default_rng(seed)
    writer = gguf_writer(path, keys)
    for name, like in tensors.items():
        stored = to_gguf(str(from_hf(name)))
        if like.ndim < 2:
            writer.add_tensor(stored, np.ascontiguousarray(like, np.float32))
            continue
        kind = next(kind for part, kind in kinds.items() if part in name)
        raw = random_blocks(rng, kind, *like.shape, size=2 * like.shape[1] ** -0.5)
        writer.add_tensor(stored, raw, raw_dtype=GgmlType[kind])
    finish(writer)
    return path
