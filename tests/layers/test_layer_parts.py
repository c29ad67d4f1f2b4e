"""Small functions of the layers by their definitions, and what a cache keeps and refuses."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.errors import JllamaError
from jllama.layers.attention import one_token, rotated_heads, visible_positions
from jllama.layers.cache import KVCache
from jllama.layers.qtensor import QTensor
from jllama.layers.quantization import Scheme, quantize
from jllama.layers.rope import Rope, attention_factor, inverse_frequencies, rope_frequencies
from jllama.layers.sampling import LIKELIEST, Sampling, Scores, TokenCounts, largest, largest_and_sum


def test_scores_are_log_probabilities_of_the_logits_as_they_are():
    logits = np.array([[0.0, 2.0, 1.0], [5.0, 5.0, -1.0]], np.float32)
    made = Scores.of(jnp.asarray(logits), jnp.array([2, 0], jnp.int32))
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(made.chosen, [logs[0, 2], logs[1, 0]], rtol=1e-6)
    assert made.ids.tolist() == [[1, 2, 0], [0, 1, 2]]
    np.testing.assert_allclose(made.values, -np.sort(-logs, axis=1), rtol=1e-6)
    wide = Scores.of(jnp.arange(40, dtype=jnp.float32)[None], jnp.array([0], jnp.int32))
    assert wide.ids.shape == (1, LIKELIEST)
    assert wide.ids[0, 0] == 39


def test_tokens_are_counted_in_the_prompt_and_the_answer():
    prompt = jnp.array([[1, 1, 3, 0], [2, 9, 9, 9]], jnp.int32)
    made = TokenCounts.of_prompt(prompt, jnp.array([3, 1], jnp.int32), 5)
    assert made.prompt.tolist() == [[False, True, False, True, False], [False, False, True, False, False]]
    assert made.answer.sum() == 0
    for active in ([True, False], [True, True]):
        made = made.add(jnp.array([4, 2], jnp.int32), jnp.array(active))
    assert made.answer.tolist() == [[0, 0, 0, 0, 2], [0, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("changes", "greedy"),
    [
        ({}, True),
        ({"top_k": 3}, True),
        ({"top_p": 0.5}, True),
        ({"min_p": 0.5}, True),
        ({"temperature": 0.1}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": -0.1}, False),
        ({"logit_bias": {1: 0.0}}, True),
        ({"logit_bias": {1: 0.5}}, False),
        ({"logit_bias": {}}, True),
    ],
)
def test_what_takes_the_largest_logit_and_nothing_else(changes, greedy):
    made = Sampling.build(batch=2, vocab_size=4, **changes)
    assert made.is_greedy() is greedy
    assert made.logit_bias.shape == (2, 4)
    assert made.top_k.dtype == np.int32
    if bias := changes.get("logit_bias"):
        assert made.logit_bias[1].tolist() == [0.0, bias[1], 0.0, 0.0]


@pytest.mark.parametrize("count", [1, 257])
def test_the_first_of_the_largest(count):
    logits = jnp.zeros((2, count)).at[1, count - 1].set(1.0)
    assert largest(logits).tolist() == [0, count - 1]
    ids, total = largest_and_sum(logits)
    assert (ids.tolist(), total.tolist()) == ([0, count - 1], [0.0, 1.0])
    assert largest(jnp.full((1, count), -jnp.inf)).tolist() == [0]


def test_one_token_of_each_row():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    assert one_token(x, jnp.array([2, 0], jnp.int32)).tolist() == [[x[0, 2].tolist()], [x[1, 0].tolist()]]


def test_queries_and_keys_are_rotated_and_values_are_not():
    qkv = jnp.arange(2 * 3 * 1 * 4 * 2, dtype=jnp.float32).reshape(2, 3, 1, 4, 2)
    q, k, v = rotated_heads(qkv, None)
    assert (q.shape, k.shape, v.shape) == ((2, 3, 1, 2, 2), (2, 3, 1, 2), (2, 3, 1, 2))
    np.testing.assert_array_equal(q, qkv[:, :, :, :2])
    np.testing.assert_array_equal(k, qkv[:, :, :, 2])
    np.testing.assert_array_equal(v, qkv[:, :, :, 3])
    half = (jnp.zeros((2, 3, 1)), jnp.ones((2, 3, 1)))  # a quarter turn
    q, k, v = rotated_heads(qkv, half)
    np.testing.assert_allclose(k[..., 0], -qkv[:, :, :, 2, 1])
    np.testing.assert_allclose(k[..., 1], qkv[:, :, :, 2, 0])
    np.testing.assert_allclose(q[..., 0], -qkv[:, :, :, :2, 1])
    np.testing.assert_array_equal(v, qkv[:, :, :, 3])


def test_a_window_counts_the_token_itself():
    start = jnp.array([2], jnp.int32)
    assert visible_positions(start, 2, 5, None)[0].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert visible_positions(start, 2, 5, 2)[0].tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    assert visible_positions(start, 1, 5, 1)[0].tolist() == [[0, 0, 1, 0, 0]]


# Rotary embedding.


def test_frequencies_of_each_type():
    plain = 100.0 ** -np.array([0, 0.5])
    np.testing.assert_allclose(inverse_frequencies(Rope(rope_theta=100.0), 4), plain)
    linear = Rope(rope_type="linear", rope_theta=100.0, factor=4.0)
    np.testing.assert_allclose(inverse_frequencies(linear, 4), plain / 4)
    divided = Rope(rope_theta=100.0, frequency_factors=(2.0, 5.0))
    np.testing.assert_allclose(inverse_frequencies(divided, 4), plain / [2, 5])
    context = jnp.array([5, 20], jnp.int32)
    assert rope_frequencies(linear, 4, context).shape == (1, 2)
    dynamic = Rope(rope_type="dynamic", rope_theta=100.0, factor=2.0, original_max_position_embeddings=10)
    made = rope_frequencies(dynamic, 4, context)
    np.testing.assert_allclose(made[0], plain, rtol=1e-6)
    theta = 100.0 * (2.0 * 20 / 10 - 1) ** (4 / 2)
    np.testing.assert_allclose(made[1], theta ** -np.array([0, 0.5]), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        (dict(), 0.1 * math.log(4) + 1),
        (dict(factor=1.0), 1.0),
        (dict(attention_factor=3.0), 3.0),
        (dict(mscale=2.0, mscale_all_dim=1.0), (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)),
        (dict(mscale=2.0), 0.1 * math.log(4) + 1),
        (dict(rope_type="linear"), 1.0),
    ],
)
def test_how_yarn_scales_attention(changes, factor):
    rope = Rope(**dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64) | changes)
    assert attention_factor(rope) == pytest.approx(factor)


# The cache.


def cache(length=(2, 5), max_len=8):
    shape = dataclasses.make_dataclass("Shape", ["num_hidden_layers", "num_key_value_heads", "head_dim"])(
        2, 3, 4
    )
    made = KVCache.empty(shape, batch=len(length), max_len=max_len, dtype="float32")
    return made.holding(np.array(length, np.int32))


def test_what_a_cache_says_of_itself():
    made = cache()
    assert (made.batch, made.max_len, made.layer(0).max_len, len(made.keys)) == (2, 8, 8, 2)
    assert repr(made) == "KVCache(2 layers, [B, K, S, H] = [2, 3, 8, 4], float32)"
    assert made.advance(jnp.array([3, 9], jnp.int32)).length.tolist() == [5, 8]
    assert made.rewind(3).length.tolist() == [2, 3]
    assert made.rewind(jnp.array([0, 4], jnp.int32)).length.tolist() == [0, 4]
    view = made.at(jnp.array([1], jnp.int32))
    assert (view.length.tolist(), view.rows.tolist(), view.batch) == ([5], [1], 1)
    back = made.advance(jnp.zeros(2, jnp.int32)).with_rows_of(view.advance(jnp.array([1], jnp.int32)))
    assert (back.length.tolist(), back.rows) == ([2, 6], None)
    changed = made.replace(1, dataclasses.replace(made.layer(1), keys=made.keys[1] + 1))
    assert [float(leaf.max()) for leaf in changed.keys] == [0.0, 1.0]


@pytest.mark.parametrize("length", [-1, 1.5, [1, 2, 3], [[1, 2]], True])
def test_a_length_that_is_none(length):
    with pytest.raises(JllamaError, match=r"the length to rewind to is .*; it must be int32 \[2\], from 0"):
        cache().rewind(np.asarray(length))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((0, 8, "float32"), "batch=0"),
        ((1, 0, "float32"), "max_len=0"),
        ((1.5, 8, "float32"), "batch=1.5"),
        ((1, 8, "int32"), "dtype='int32'"),
        ((1, 8, "x"), "dtype='x'"),
    ],
)
def test_a_cache_of_no_size(sizes, words):
    shape = dataclasses.make_dataclass("Shape", ["num_hidden_layers", "num_key_value_heads", "head_dim"])(
        1, 1, 2
    )
    batch, max_len, dtype = sizes
    with pytest.raises(JllamaError, match=words):
        KVCache.empty(shape, batch=batch, max_len=max_len, dtype=dtype)


# Quantisation.


@pytest.mark.parametrize(
    ("columns", "scheme", "fits"),
    [
        (32, Scheme(bits=4, group=32), True),
        (48, Scheme(bits=4, group=32), False),
        (5, Scheme(bits=8, group=None), True),
        (5, Scheme(bits=4, group=None), False),
        (6, Scheme(bits=8, group=4), False),
        (8, Scheme(bits=8, group=4), True),
    ],
)
def test_rows_are_cut_into_whole_groups(columns, scheme, fits):
    w = jnp.ones((2, columns))
    if fits:
        made = quantize(w, scheme)
        assert (made.bits, made.group, made.shape, made.ndim) == (
            scheme.bits,
            scheme.group or columns,
            (2, columns),
            2,
        )
    else:
        with pytest.raises(JllamaError, match=f"rows of {columns} weights can't be cut into groups of"):
            quantize(w, scheme)


def test_a_quantised_leaf_is_a_pytree_of_its_arrays():
    made = quantize(jnp.ones((2, 4)), Scheme(bits=8, group=None))
    leaves, tree = jax.tree.flatten(made)
    assert len(leaves) == 2
    assert isinstance(jax.tree.unflatten(tree, leaves), QTensor)
