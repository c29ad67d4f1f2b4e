"""`forward` past the end of the cache: an error where lengths are known, NaN where they are traced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jllama
from jllama import kernels
from jllama.layers.cache import KVCache
from tests.support.decoding import CPU
from tests.support.helpers import full_logits

PAST = [  # lengths of the rows, new tokens, how many of them count
    ([6], 1, None),
    ([3], 4, None),
    ([0], 7, None),
    ([2, 5], 3, [3, 2]),
    ([6, 0], 2, [1, 2]),
]
WITHIN = [([5], 1, None), ([0], 6, None), ([6, 4], 3, [0, 2]), ([2, 5], 9, [4, 1])]
S = 6


def ints(values):
    return jnp.asarray(values, jnp.int32)


def call(config, params, lengths, T, n_valid, run=jllama.forward, **more):
    """Logits and the cache of T tokens behind `lengths` others."""
    tokens = ints(np.random.default_rng(T).integers(0, config.vocab_size, (len(lengths), T)))
    cache = KVCache.empty(config, batch=len(lengths), max_len=S, dtype="float32").holding(np.int32(lengths))
    n_valid = None if n_valid is None else ints(n_valid)
    return run(config, params, tokens, cache, n_valid=n_valid, **more)


def by_kernel(config, params, tokens, cache, *, n_valid, last_only=False):
    n_valid = ints([tokens.shape[1]] * len(tokens)) if n_valid is None else n_valid
    return kernels.forward(config, params, tokens, cache, n_valid=n_valid, last_only=last_only, target=CPU)


@pytest.mark.parametrize("run", [jllama.forward, by_kernel])
@pytest.mark.parametrize(("lengths", "T", "n_valid"), PAST)
def test_known_lengths_are_refused(tiny_config, tiny_params, run, lengths, T, n_valid):
    need = max(np.add(lengths, T if n_valid is None else n_valid))
    with pytest.raises(jllama.JllamaError, match=f"{need} tokens and the cache has 6 positions.*max_len"):
        call(tiny_config, tiny_params, lengths, T, n_valid, run)


@pytest.mark.parametrize(("lengths", "T", "n_valid"), WITHIN)
def test_a_cache_may_be_filled_to_its_end(tiny_config, tiny_params, lengths, T, n_valid):
    """Padding may pass the end."""
    logits, cache = call(tiny_config, tiny_params, lengths, T, n_valid)
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(cache.length, np.add(lengths, T if n_valid is None else n_valid))


@pytest.mark.parametrize("run", [jllama.forward, by_kernel])
@pytest.mark.parametrize(("lengths", "T", "n_valid"), [*PAST, *WITHIN])
def test_traced_lengths_give_nan_for_just_the_tokens_without_a_place(
    tiny_config, tiny_params, run, lengths, T, n_valid
):
    jitted = jax.jit(run, static_argnums=0, static_argnames="last_only")
    logits, cache = call(tiny_config, tiny_params, lengths, T, n_valid, jitted)
    counts = np.full(len(lengths), T) if n_valid is None else np.asarray(n_valid)
    token = np.arange(T)[None]
    lost = (token < counts[:, None]) & (np.asarray(lengths)[:, None] + token >= S)
    np.testing.assert_array_equal(np.isnan(logits).all(axis=-1), lost)
    np.testing.assert_array_equal(np.isnan(logits).any(axis=-1), lost)
    np.testing.assert_array_equal(cache.length, np.minimum(lengths + counts, S))
    last, _ = call(tiny_config, tiny_params, lengths, T, n_valid, jitted, last_only=True)
    row = np.arange(len(lengths))
    np.testing.assert_array_equal(np.isnan(last).all(axis=(1, 2)), lost[row, np.maximum(counts - 1, 0)])


def test_what_fits_is_as_it_would_be_in_a_larger_cache_and_nothing_is_overwritten(tiny_config, tiny_params):
    tokens = ints(np.arange(9)[None])
    empty = KVCache.empty(tiny_config, batch=1, max_len=S, dtype="float32")
    jitted = jax.jit(jllama.forward, static_argnums=0)
    logits, full = jitted(tiny_config, tiny_params, tokens, empty)
    np.testing.assert_allclose(logits[:, :S], full_logits(tiny_config, tiny_params, tokens)[:, :S], atol=2e-5)
    _, after = jitted(tiny_config, tiny_params, tokens, full)
    jax.tree.map(np.testing.assert_array_equal, full, after)


def test_vmap_and_grad_see_the_end_too(tiny_config, tiny_params):
    def loss(params, length):
        cache = KVCache.empty(tiny_config, batch=1, max_len=S, dtype="float32").holding(length)
        return jnp.mean(jllama.forward(tiny_config, params, ints([[1, 2]]), cache)[0])

    losses = jax.vmap(functools.partial(loss, tiny_params))(ints([[0], [4], [5]]))
    np.testing.assert_array_equal(np.isnan(losses), [False, False, True])
    with pytest.raises(jllama.JllamaError, match="7 tokens"):
        jax.grad(loss)(tiny_params, np.int32([5]))


@pytest.mark.parametrize(
    "tokens",
    [
        [[1, 2]],
        ints([1, 2]),
        ints([[1], [2]]),
        ints([[]]),
        np.ones((1, 2), np.float32),
        np.ones((1, 2), bool),
        5,
    ],
    ids=["a list", "1-D", "two rows", "no token", "floats", "truth values", "a number"],
)
def test_tokens_of_another_shape_or_kind_are_refused(tiny_config, tiny_params, tokens):
    cache = KVCache.empty(tiny_config, batch=1, max_len=S, dtype="float32")
    with pytest.raises(jllama.JllamaError, match=r"they must be an int32 array \[B, T\] .* B = 1 rows"):
        jllama.forward(tiny_config, tiny_params, tokens, cache)


def test_arguments_in_another_order_are_refused(tiny_config, tiny_params):
    tokens, cache = ints([[1]]), KVCache.empty(tiny_config, batch=1, max_len=S, dtype="float32")
    with pytest.raises(jllama.JllamaError, match=r"cache is a .*, not a KVCache: forward takes config"):
        jllama.forward(tiny_config, tiny_params, cache, tokens)
    with pytest.raises(jllama.JllamaError, match="cache is a NoneType"):
        jllama.forward(tiny_config, tiny_params, tokens, None)
    with pytest.raises(jllama.JllamaError, match=r"config is a .*, not a ModelConfig"):
        jllama.forward(tiny_params, tiny_config, tokens, cache)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_tokens_may_be_whole_numbers_of_any_width(tiny_config, tiny_params, dtype):
    cache = KVCache.empty(tiny_config, batch=1, max_len=S, dtype="float32")
    wide, _ = jllama.forward(tiny_config, tiny_params, np.array([[1, 2]], dtype), cache)
    plain, _ = jllama.forward(tiny_config, tiny_params, ints([[1, 2]]), cache)
    np.testing.assert_array_equal(wide, plain)
