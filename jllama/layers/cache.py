"""The key-value cache: an immutable pytree. Every operation returns a new cache; the old one stays valid."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama.errors import JllamaError

MOST_POSITIONS = 2**31 - 1  # positions are int32


class CacheShape(Protocol):
    """What a cache must know of a model (a `ModelConfig` is one)."""

    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCache:
    """Rotated keys and values of one layer, at exactly the rank that the attention products consume.

    A reshape between the update and the product would make XLA copy the whole cache at each step.
    """

    keys: Array  # [B, K, S, H], unfilled positions included
    values: Array  # [B, K, S, H]
    length: Array  # int32 [B]: how many positions of each row held a token when this call began
    rows: Array | None = None  # int32 [B]: see `KVCache`

    @property
    def max_len(self) -> int:
        """S: how many positions there are."""
        return self.keys.shape[2]

    @property
    def places(self) -> Array:
        """int32 `[B]`: which rows of `keys` and `values` the call's rows lie in."""
        return (
            jnp.asarray(np.arange(self.length.shape[0], dtype=np.int32)) if self.rows is None else self.rows
        )

    def append(self, keys: Array, values: Array) -> "LayerCache":
        """Writes `[B, T, K, H]` behind the valid positions of each row; `KVCache.advance` makes them valid.

        Positions past the end are dropped: nothing valid is ever overwritten.
        """
        with jax.named_scope("cache_append"):
            return dataclasses.replace(
                self,
                keys=_write(self.keys, keys, self.length, self.rows),
                values=_write(self.values, values, self.length, self.rows),
            )

    def own(self) -> tuple[Array, Array]:
        """Keys and values `[B, K, S, H]` of this call's rows."""
        if self.rows is None:
            return self.keys, self.values
        return self.keys[self.rows], self.values[self.rows]

    def begin(self, keys: Array, values: Array) -> "LayerCache":
        """`append` where every row is empty: one block write of `[B, T, K, H]`, T at most `max_len`."""

        def write(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice(old, jnp.swapaxes(new, 1, 2).astype(old.dtype), (0, 0, 0, 0))

        with jax.named_scope("cache_begin"):
            return dataclasses.replace(self, keys=write(self.keys, keys), values=write(self.values, values))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """What every layer keeps of the tokens so far."""

    keys: tuple[Array, ...]  # L of [B, K, S, H]
    values: tuple[Array, ...]  # L of [B, K, S, H]
    length: Array  # int32 [B]: how many positions of each row hold a token
    # int32 [B], all different: the rows of `keys` and `values`, which may have more, that a call's B rows lie
    # in. None: the first in the first, and so on.
    rows: Array | None = None

    def __repr__(self) -> str:
        keys = self.keys[0]
        return f"KVCache({len(self.keys)} layers, [B, K, S, H] = {list(keys.shape)}, {keys.dtype})"

    @classmethod
    def empty(
        cls, config: CacheShape, *, batch: int, max_len: int, dtype="bfloat16", placement=None
    ) -> "KVCache":
        """A cache of `max_len` positions for `batch` rows, filled with nothing.

        Its `length` lies on the host: who asks whether it is empty need not wait for the device. Keys and
        values lie where `placement`, a `jax.sharding.Sharding`, says.

        Raises:
          JllamaError: `batch` or `max_len` is no whole number from 1, or `dtype` is none of floats.
        """
        _check_size(batch, max_len, dtype)
        shape = (batch, config.num_key_value_heads, max_len, config.head_dim)
        keys, values = _zeros(placement)(shape, jnp.dtype(dtype), config.num_hidden_layers)
        return cls(keys=keys, values=values, length=np.zeros((batch,), np.int32))  # type: ignore[arg-type]

    @property
    def batch(self) -> int:
        """B: the rows of a call on it."""
        return self.length.shape[0]

    @property
    def max_len(self) -> int:
        """S: how many positions there are."""
        return self.keys[0].shape[2]

    def layer(self, index: int) -> LayerCache:
        """The part of one layer."""
        return LayerCache(
            keys=self.keys[index], values=self.values[index], length=self.length, rows=self.rows
        )

    def at(self, rows: Array) -> "KVCache":
        """The same arrays, seen through some of their rows (int32 `[b]`, all different)."""
        return dataclasses.replace(self, length=self.length[rows], rows=rows)

    def with_rows_of(self, view: "KVCache") -> "KVCache":
        """The whole cache again after a call on `self.at(...)` gave `view`."""
        length = self.length.at[view.rows].set(view.length, unique_indices=True)
        return dataclasses.replace(view, length=length, rows=None)

    def replace(self, index: int, new: LayerCache) -> "KVCache":
        """With other keys and values for one layer."""
        return dataclasses.replace(
            self,
            keys=(*self.keys[:index], new.keys, *self.keys[index + 1 :]),
            values=(*self.values[:index], new.values, *self.values[index + 1 :]),
        )

    def advance(self, count: Array) -> "KVCache":
        """Makes the next `count` (int32 `[B]`) positions of each row valid, up to the end."""
        return dataclasses.replace(self, length=jnp.minimum(self.length + count, self.max_len))

    def holding(self, length: np.ndarray) -> "KVCache":
        """With just the first `length` (int32 `[B]`, kept on the host) positions of each row valid."""
        return dataclasses.replace(self, length=length)  # type: ignore[arg-type]

    def rewind(self, length: Array) -> "KVCache":
        """Forgets all but the first `length` (int32 `[B]`, or one number for all) positions of each row.

        A row that holds fewer stays as it is.

        Raises:
          JllamaError: `length` has another shape, no whole numbers or, where it is known, a negative one.
        """
        kept = _checked_length(length, rows=self.batch, max_len=self.max_len)
        return dataclasses.replace(self, length=jnp.minimum(self.length, kept))


def _check_size(batch: int, max_len: int, dtype) -> None:
    for name, value in (("batch", batch), ("max_len", max_len)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise JllamaError(f"{name}={value!r} of a cache must be a whole number from 1")
        if value > MOST_POSITIONS:
            raise JllamaError(f"{name}={value} of a cache is beyond {MOST_POSITIONS}: give less")
    try:
        is_float = dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        is_float = False
    if not is_float:
        raise JllamaError(f"dtype={dtype!r} of a cache must be float32, bfloat16 or float16")


def _checked_length(length: Array, *, rows: int, max_len: int) -> Array:
    """int32 `[B]`, `[1]` or `[]`; what is traced is known by its shape alone."""
    is_known = not isinstance(length, jax.core.Tracer)
    found = np.asarray(length) if is_known else length
    sound = found.shape in ((), (1,), (rows,)) and jnp.issubdtype(found.dtype, jnp.integer)
    if not sound or (is_known and found.min() < 0):
        given = f"{found.dtype} {list(found.shape)}" if not sound else f"{found.min()}"
        raise JllamaError(f"the length to rewind to is {given}; it must be int32 [{rows}], from 0")
    return jnp.asarray(np.minimum(found, max_len), jnp.int32) if is_known else length


def _write(old: Array, new: Array, start: Array, rows: Array | None) -> Array:
    """`[B, T, K, H]` into `[B, K, S, H]` from `start`, int32 `[B]`, on; what passes the end is dropped."""
    new = jnp.swapaxes(new, 1, 2).astype(old.dtype)
    if rows is not None:
        return _write_at(old, new, start, rows)
    if len(new) == 1 and new.shape[2] <= old.shape[2]:
        # XLA on a CPU copies the whole cache for a scatter, one of 16-bit floats by way of float32.
        return jax.lax.platform_dependent(old, new, start, cpu=_write_block, default=_write_rows)
    return _write_rows(old, new, start)


def _write_rows(old: Array, new: Array, start: Array) -> Array:
    return _write_at(old, new, start, jnp.arange(new.shape[0], dtype=jnp.int32), is_sorted=True)


def _write_at(old: Array, new: Array, start: Array, row: Array, is_sorted: bool = False) -> Array:
    head, token = (jnp.arange(size, dtype=jnp.int32) for size in new.shape[1:3])
    # All three axes are indexed: with a slice between them XLA would transpose the whole cache.
    where = (row[:, None, None], head[None, :, None], start[:, None, None] + token[None, None, :])
    return old.at[where].set(new, mode="drop", unique_indices=True, indices_are_sorted=is_sorted)


def _write_block(old: Array, new: Array, start: Array) -> Array:
    """`_write_rows` of a single row, as one block."""
    T, S = new.shape[2], old.shape[2]
    first = jnp.minimum(start[0], S - T)  # of the block; up to `start` it keeps what is there
    there = jax.lax.dynamic_slice_in_dim(old, first, T, axis=2)
    token = jnp.arange(T, dtype=jnp.int32) + (first - start[0])
    block = jnp.where((token >= 0)[None, None, :, None], jnp.take(new, token, axis=2, mode="clip"), there)
    return jax.lax.dynamic_update_slice_in_dim(old, block, first, axis=2)


@functools.cache
def _zeros(placement) -> Callable[..., tuple[tuple[Array, ...], tuple[Array, ...]]]:
    """In one call: one for each layer would cost a small model's start a tenth of a second."""

    def zeros(shape: tuple[int, ...], dtype, layers: int) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        keys, values = ([jnp.zeros(shape, dtype) for _ in range(layers)] for _ in range(2))
        return tuple(keys), tuple(values)

    return jax.jit(zeros, static_argnums=(0, 1, 2), out_shardings=placement)
