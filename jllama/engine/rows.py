"""What the slots are given of a request, on the host: in which chunks, and how packed for one program."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jllama.layers.sampling import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What a request brings along, as host arrays."""

    prompt: np.ndarray  # int32 [n]
    sampling: Sampling  # of one row
    key: np.ndarray  # uint32 [2]
    limit: int  # tokens that it may generate
    stop_ids: Sequence[int]
    floor: int = 0  # tokens before one of them may come
    scores: bool = False  # log-probabilities are told


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is read next of a prompt."""

    slot: int
    tokens: np.ndarray  # int32 [n]
    start: int  # positions of the slot that hold the tokens before
    context: int  # the length of the whole prompt


def chunk_size(left: int, sizes: Sequence[int]) -> int:
    """Of the given sizes that of the chunk which begins a prompt's last `left` tokens; it may be padded.

    Padding up to twice the rest beats several small calls; beyond that the next smaller size goes first.
    """
    above = [size for size in sizes if left <= size <= 2 * left]
    below = [size for size in sizes if size <= left]
    return min(above) if above else max(below) if below else min(sizes)


def stacked(rows: Sequence[Sampling], size: int) -> Sampling:
    """The rows' settings as one of `size` rows; the last ones repeat the first."""
    filled = [*rows, *[rows[0]] * (size - len(rows))]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *filled) if size > 1 else rows[0]


def packed(pieces: Sequence[Piece], size: int, width: int) -> np.ndarray:
    """The `chunk` of programs that read `size` tokens, with room for `width`."""
    chunk = np.zeros((len(pieces), 4 + width), np.int32)
    for row, piece in zip(chunk, pieces, strict=True):
        row[:4] = piece.slot, piece.start, min(len(piece.tokens), size), piece.context
        row[4 : 4 + len(piece.tokens)] = piece.tokens
    return chunk
