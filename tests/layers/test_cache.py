"""The key-value cache: what is written where, what is dropped, and that an old cache stays valid."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jllama.errors import JllamaError
from jllama.layers.cache import KVCache, _write_block


@dataclasses.dataclass(frozen=True)
class Shape:
    num_hidden_layers: int = 2
    num_key_value_heads: int = 3
    head_dim: int = 4


def empty(batch: int = 2, max_len: int = 5, dtype: str = "float32") -> KVCache:
    return KVCache.empty(Shape(), batch=batch, max_len=max_len, dtype=dtype)


def entries(batch: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    shape = (2, batch, count, 3, 4)
    keys, values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return keys, values


def counts(*values: int) -> jax.Array:
    return jnp.asarray(values, jnp.int32)


def test_empty():
    cache = empty(dtype="bfloat16")
    assert len(cache.keys) == len(cache.values) == 2
    assert cache.keys[0].shape == cache.values[1].shape == (2, 3, 5, 4)
    assert cache.keys[0].dtype == cache.values[0].dtype == jnp.bfloat16
    assert cache.max_len == 5
    np.testing.assert_array_equal(cache.length, [0, 0])
    assert cache.length.dtype == jnp.int32


def append(cache, layer, keys, values):
    return cache.replace(layer, cache.layer(layer).append(keys, values))


def test_append_writes_behind_each_row_and_only_its_layer():
    cache = dataclasses.replace(empty(), length=counts(0, 2))
    keys, values = entries(2, 2)
    new = append(cache, 1, keys, values)
    for row, at in ((0, 0), (1, 2)):
        np.testing.assert_array_equal(new.keys[1][row, :, at : at + 2], keys[row].swapaxes(0, 1))
        np.testing.assert_array_equal(new.values[1][row, :, at : at + 2], values[row].swapaxes(0, 1))
    assert int(jnp.sum(new.keys[1] != 0)) == keys.size, "nothing else is written"
    np.testing.assert_array_equal(new.keys[0], cache.keys[0])
    np.testing.assert_array_equal(new.length, cache.length)
    assert float(jnp.abs(cache.keys[1]).sum()) == 0, "the old cache stays as it was"


def test_begin_is_append_to_an_empty_cache():
    keys, values = entries(2, 3)
    own = empty().layer(1)
    appended, begun = own.append(keys, values), own.begin(keys, values)
    np.testing.assert_array_equal(begun.keys, appended.keys)
    np.testing.assert_array_equal(begun.values, appended.values)


def test_what_does_not_fit_is_dropped():
    keys, values = entries(2, 3)
    full = append(empty(), 0, *entries(2, 5, seed=1)).advance(counts(5, 4))
    new = append(full, 0, keys, values)
    np.testing.assert_array_equal(new.keys[0][:, :, :4], full.keys[0][:, :, :4])
    np.testing.assert_array_equal(new.keys[0][0], full.keys[0][0])
    np.testing.assert_array_equal(new.keys[0][1, :, 4], keys[1, 0])
    np.testing.assert_array_equal(new.values[0][1, :, 4], values[1, 0])
    np.testing.assert_array_equal(new.advance(counts(3, 3)).length, [5, 5])


@pytest.mark.parametrize("count", [2, 5])
def test_one_row_is_written_as_a_block_wherever_it_begins(count):
    """A cache of one row on a CPU: from the first position to behind the end, where nothing changes."""
    old, new = (
        np.random.default_rng(size).normal(size=(1, 2, size, 3)).astype(np.float32) for size in (5, count)
    )
    write = jax.jit(_write_block)
    for start in range(7):
        wanted = old.copy()
        for at in range(start, min(start + count, 5)):
            wanted[:, :, at] = new[:, :, at - start]
        np.testing.assert_array_equal(write(old, new, np.array([start], np.int32)), wanted)


def test_rewind_only_shortens():
    cache = empty().advance(counts(4, 2))
    np.testing.assert_array_equal(cache.rewind(counts(3, 3)).length, [3, 2])
    np.testing.assert_array_equal(cache.length, [4, 2])


@pytest.mark.parametrize(
    "length",
    [counts(-1, 2), [3, -1], counts(1, 1, 1), counts(1, 1)[None], np.ones(2), -1, 10**30, "2"],
    ids=str,
)
def test_a_length_that_is_none_is_refused(length):
    with pytest.raises(JllamaError, match=r"the length to rewind to is .*int32 \[2\]"):
        empty().advance(counts(4, 2)).rewind(length)


@pytest.mark.parametrize("length", [1, np.int64(1), [1, 1], counts(1), np.array([1, 2**40 - 2**40 + 1])])
def test_one_length_serves_all_rows(length):
    cache = empty().advance(counts(4, 2))
    np.testing.assert_array_equal(cache.rewind(length).length, [1, 1])
    assert cache.rewind(2**40).length.tolist() == [4, 2]
    np.testing.assert_array_equal(jax.jit(KVCache.rewind)(cache, counts(1, 1)).length, [1, 1])


@pytest.mark.parametrize(
    "size",
    [dict(max_len=-4), dict(max_len=0), dict(batch=0), dict(batch=1.0), dict(max_len="8")]
    + [dict(dtype=name) for name in ("int8", "nonsense", "complex64")],
    ids=str,
)
def test_a_cache_of_no_size_or_no_floats_is_refused(size):
    with pytest.raises(JllamaError, match=f"{next(iter(size))}=.* must be"):
        empty(**size)


def test_append_rounds_to_the_cache_dtype():
    keys, values = entries(2, 1)
    new = append(empty(dtype="float16"), 0, keys, values)
    assert new.keys[0].dtype == jnp.float16
    np.testing.assert_array_equal(new.keys[0][:, :, 0], keys[:, 0].astype(np.float16))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 6)), max_size=6))
def test_any_history_equals_a_plain_list(history):
    """Append T, advance by n ≤ T, rewind: the valid positions are those of a Python list."""
    cache, plain = empty(batch=1, max_len=6), []
    for step, (count, valid, keep) in enumerate(history):
        keys, values = entries(1, 4, seed=step)  # always 4 rows: one compilation
        cache = append(cache, 0, keys, values).advance(counts(min(count, valid)))
        plain = [*plain, *keys[0, : min(count, valid)]][:6]
        cache, plain = cache.rewind(counts(keep)), plain[:keep]
        assert int(cache.length[0]) == len(plain)
        if plain:
            np.testing.assert_array_equal(cache.keys[0][0, :, : len(plain)], np.stack(plain, axis=1))
