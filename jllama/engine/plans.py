"""Calls of `Slots` as int32 plans, from the process that leads to those that follow."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jllama.engine.rows import Piece, Row
from jllama.layers.sampling import Sampling

_RECORDS: tuple[type, ...] = (Piece, Row, Sampling)
_DTYPES = tuple(map(np.dtype, ("int32", "uint32", "float32", "bool", "int64")))
NONE, NUMBER, LIST, ARRAY, ZEROS, RECORD, LAST = range(7)
UNSENT = ("constraint",)  # fields of records that the host of process 0 alone asks


def packed_call(slots: int, operation: int, arguments: tuple[Any, ...]) -> np.ndarray:
    """Which slots do what: int32 `[n]`."""
    words: list[int] = [slots, operation]
    _put(words, list(arguments))
    return np.array(words, np.int64).astype(np.int32)


def unpacked_call(words: np.ndarray, last: Any) -> tuple[int, int, list[Any]]:
    """The slots, the operation and its arguments; `last` stands where the leader gave its latest logits."""
    slots, operation, *rest = words.tolist()
    return slots, operation, _Reader(rest, last).value()


def _put(words: list[int], value: Any) -> None:
    if value is None:
        words.append(NONE)
    elif isinstance(value, jax.Array):
        words.append(LAST)
    elif isinstance(value, int | np.integer):
        words += [NUMBER, int(value)]
    elif isinstance(value, np.ndarray):
        _put_array(words, value)
    elif isinstance(value, _RECORDS):
        words += [RECORD, _RECORDS.index(type(value))]
        for field in dataclasses.fields(value):  # type: ignore[arg-type]
            _put(words, None if field.name in UNSENT else getattr(value, field.name))
    else:
        words += [LIST, len(value)]
        for item in value:
            _put(words, item)


def _put_array(words: list[int], array: np.ndarray) -> None:
    """Zeros, such as nobody's biases, take no room."""
    head = [_DTYPES.index(array.dtype), array.ndim, *array.shape]
    if not array.any():
        words += [ZEROS, *head]
        return
    wide = array.astype(np.int32) if array.dtype.itemsize != 4 else np.ascontiguousarray(array).view(np.int32)
    words += [ARRAY, *head, *wide.reshape(-1).tolist()]


class _Reader:
    def __init__(self, words: list[int], last: Any) -> None:
        self._words, self._last = iter(words), last

    def value(self) -> Any:
        tag = next(self._words)
        if tag in (NONE, LAST):
            return self._last if tag == LAST else None
        if tag in (ARRAY, ZEROS):
            return self._array(tag == ZEROS)
        count = next(self._words)
        if tag == RECORD:
            kind = _RECORDS[count]
            return kind(**{field.name: self.value() for field in dataclasses.fields(kind)})
        return count if tag == NUMBER else [self.value() for _ in range(count)]

    def _array(self, is_zero: bool) -> np.ndarray:
        dtype = _DTYPES[next(self._words)]
        shape = [next(self._words) for _ in range(next(self._words))]
        if is_zero:
            return np.zeros(shape, dtype)
        flat = np.array([next(self._words) for _ in range(int(np.prod(shape)))], np.int32)
        return (flat.view(dtype) if dtype.itemsize == 4 else flat.astype(dtype)).reshape(shape)
