"""Caches whose rows lie scattered in larger arrays, as slots have them."""

import dataclasses

import jax.numpy as jnp
import numpy as np


def scattered(cache):
    """A `KVCache` or `LayerCache` of B rows that lie, in another order, among B + 2; poison in the others."""
    B = cache.length.shape[0]
    rows = np.roll(np.arange(B + 2), 2)[:B][::-1].astype(np.int32)

    def changed(leaf):
        all_rows = np.full((B + 2, *leaf.shape[1:]), np.nan, leaf.dtype)
        all_rows[rows] = leaf
        return jnp.asarray(all_rows)

    return _each(cache, changed, rows)


def gathered(cache, like):
    """The rows of `like` again, after a call gave `cache`; nothing else may have been written."""
    rows = np.asarray(like.rows)
    return _each(cache, lambda leaf: _own(np.asarray(leaf, np.float32), rows).astype(leaf.dtype), None)


def _own(leaf, rows):
    assert np.isnan(np.delete(leaf, rows, axis=0)).all(), "a row of another text was written"
    return jnp.asarray(leaf[rows])


def _each(cache, change, rows):
    def changed(leaves):
        return tuple(map(change, leaves)) if isinstance(leaves, tuple) else change(leaves)

    keys, values = changed(cache.keys), changed(cache.values)
    return dataclasses.replace(cache, keys=keys, values=values, rows=rows)
