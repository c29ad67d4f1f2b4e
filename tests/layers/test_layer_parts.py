"""Small functions of the layers by their definitions, and what a cache keeps and refuses."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.errors import JllamaError
from jllama.layers import attention as attention_module
from jllama.layers.attention import (
    PLAIN_NORM,
    Attention,
    normed_heads,
    one_token,
    rotated_heads,
    scaled_queries,
    visible_positions,
)
from jllama.layers.cache import KVCache
from jllama.layers.linear import linear
from jllama.layers.norm import rms_norm
from jllama.layers.qtensor import QTensor, _six_bits
from jllama.layers.quantization import SCHEMES, Scheme, quantize
from jllama.layers.rope import Rope, attention_factor, inverse_frequencies, query_scale, rope_frequencies
from jllama.layers.sampling import (
    LIKELIEST,
    WINDOW,
    Sampling,
    Scores,
    TokenCounts,
    largest,
    largest_and_sum,
    sample,
)
from jllama.layers.shards import AXIS, Shards


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
        ({"logit_bias": {1: -0.5, 3: 0.0}}, False),
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


def test_queries_are_scaled_in_float32_and_rounded_once():
    qkv = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 1, 4, 8)), jnp.bfloat16)
    scale = jnp.asarray([[1.0, 1.003, 1.3]] * 2, jnp.float32)  # 1.003 is none of bfloat16's
    made = scaled_queries(qkv, scale)
    wide = qkv[:, :, :, :2].astype(jnp.float32) * scale[:, :, None, None, None]
    np.testing.assert_array_equal(made[:, :, :, :2], wide.astype(jnp.bfloat16))
    np.testing.assert_array_equal(made[:, :, :, 2:], qkv[:, :, :, 2:])
    assert scaled_queries(qkv, None) is qkv


def test_queries_are_normed_before_they_are_scaled(monkeypatch):
    """A norm would take the scale away again."""
    qkv = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 1, 3, 4)), jnp.float32)
    seen = []

    def attend_fn(given, cache, rope, scores, only):
        seen.append(given)
        return given[:, :, :, :1], cache

    def largest_one(weight, x, shards=None):
        return weight * x / jnp.max(jnp.abs(x), axis=-1, keepdims=True)

    monkeypatch.setattr(
        attention_module, "linear", lambda w, x, bias=None, shards=None: qkv if w == "qkv" else x
    )
    p = Attention(qkv_proj="qkv", o_proj="o", q_norm=jnp.float32(2), k_norm=jnp.float32(3))
    scale = jnp.asarray([[1.0, 0.5]], jnp.float32)
    attention_module.attention(
        p, None, "cache", rope=None, norm=largest_one, query_scale=scale, attend_fn=attend_fn
    )
    (given,) = seen
    largest = np.abs(given).max(axis=-1)[0, :, 0]  # [T, G + 2]
    np.testing.assert_allclose(largest[:, 0], [2.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(largest[:, 1], [3.0, 3.0], rtol=1e-6)
    np.testing.assert_array_equal(given[:, :, :, 2], qkv[:, :, :, 2])


def test_a_window_counts_the_token_itself():
    start = jnp.array([2], jnp.int32)
    assert visible_positions(start, 2, 5, None)[0].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert visible_positions(start, 2, 5, 2)[0].tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    assert visible_positions(start, 1, 5, 1)[0].tolist() == [[0, 0, 1, 0, 0]]


@pytest.mark.parametrize("x", [0.001, 1.0])
def test_a_norm_of_heads_has_an_epsilon_of_a_millionth(x):
    ones = jnp.ones(4)
    np.testing.assert_allclose(PLAIN_NORM(ones, x * ones), ones * x / math.sqrt(x * x + 1e-6), rtol=1e-6)


def test_a_norm_over_several_devices_is_of_all_they_have():
    """Each of two has half of what is normalised; here both have the same."""
    two = SimpleNamespace(
        count=2, total=lambda part: part + 3 * part
    )  # the other's squares are three times these
    x, weight = jnp.array([[3.0, 4.0]]), jnp.array([2.0, 1.0])
    mean = (25 / 2 + 3 * 25 / 2) / 2
    made = rms_norm(weight, x, 1e-6, shards=two)
    np.testing.assert_allclose(made, [[6 / math.sqrt(mean), 4 / math.sqrt(mean)]], rtol=1e-6)


@pytest.mark.parametrize(("together", "over"), [(False, [None, None]), (True, ["shards", "shards"])])
def test_a_head_by_itself_is_normed_where_it_lies(together, over):
    seen = []

    def norm(weight, x, shards=None):
        seen.append(shards)
        return x

    q, k = (jnp.ones((1, 2, 4)), jnp.ones((1, 4))) if together else (jnp.ones(4), jnp.ones(4))
    p = Attention(qkv_proj=None, o_proj=None, q_norm=q, k_norm=k)
    qkv = jnp.arange(16.0).reshape(1, 1, 1, 4, 4)
    np.testing.assert_array_equal(normed_heads(p, qkv, norm, "shards"), qkv)
    assert seen == over


def test_the_largest_of_all_devices_and_the_sum_of_all():
    """Of equal ones the first device's; what is no number on one of them shows on all."""
    each = jax.vmap(Shards(count=3).largest_and_sum, axis_name=AXIS)
    values, index = jnp.array([[1.0, 5.0], [4.0, 5.0], [2.0, -1.0]]), jnp.array([[7, 1], [3, 2], [9, 0]])
    device, found, total = each(values, index, jnp.array([[1.0, 0.0], [10.0, 1.0], [100.0, jnp.nan]]))
    assert (device.tolist(), found.tolist()) == ([[1, 0]] * 3, [[3, 1]] * 3)
    np.testing.assert_array_equal(total, [[111.0, np.nan]] * 3)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_bias_is_added_before_the_rounding(rows):
    """1 + 2^-8 and 2^-8, each rounded by itself, would be 1."""
    weight = jnp.array([[1.0, 2.0**-8]], jnp.bfloat16)
    x, bias = jnp.ones((1, rows, 2), jnp.bfloat16), jnp.array([2.0**-8], jnp.bfloat16)
    assert linear(weight, x, bias).astype(jnp.float32).tolist() == [[[1 + 2.0**-7]] * rows]
    assert linear(weight, x).astype(jnp.float32).tolist() == [[[1.0]] * rows]
    assert linear(weight, x, bias, dtype=jnp.float32).tolist() == [[[1 + 2.0**-7]] * rows]


@pytest.mark.parametrize("count", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 299, 300])
def test_the_last_of_those_that_top_k_leaves_may_come_and_none_behind(count):
    """Of equal logits the lower ids come first; a draw a little below 1 takes the last one that is left."""
    V, uniform = 300, jnp.array([1 - 1e-6], jnp.float32)
    counts = TokenCounts.of_prompt(jnp.zeros((1, 1), jnp.int32), jnp.array([0], jnp.int32), V)
    sampling = Sampling.build(batch=1, vocab_size=V, temperature=1.0, top_k=count)
    assert sample(jnp.zeros((1, V)), sampling, counts, uniform).tolist() == [count - 1]
    assert sample(jnp.zeros((1, V)), sampling, counts, 0 * uniform).tolist() == [0]


def test_nobodys_bias_is_everybodys():
    """One array serves all who ask for none: it can't be written."""
    one, other = (Sampling.build(batch=2, vocab_size=7) for _ in range(2))
    assert one.logit_bias is other.logit_bias
    assert not one.logit_bias.flags.writeable
    own = Sampling.build(batch=2, vocab_size=7, logit_bias={3: 1.0})
    assert own.logit_bias.tolist() == [[0, 0, 0, 1, 0, 0, 0]] * 2
    assert not one.logit_bias.any()


# Rotary embedding.


def test_the_lists_of_longrope_change_behind_the_original_length():
    lists = dict(short_factor=(1.0, 2.0), long_factor=(4.0, 8.0))
    rope = Rope(rope_type="longrope", rope_theta=100.0, original_max_position_embeddings=10, **lists)
    plain = np.array([1.0, 0.1])
    made = rope_frequencies(rope, 4, jnp.array([1, 10, 11], jnp.int32))
    np.testing.assert_allclose(made, [plain / [1, 2], plain / [1, 2], plain / [4, 8]], rtol=1e-6)
    for lack in lists:  # one list alone is meant for every length
        alone = dataclasses.replace(rope, **{lack: None})
        one = rope_frequencies(alone, 4, jnp.array([1, 11], jnp.int32))
        kept = np.array(lists["long_factor" if lack == "short_factor" else "short_factor"])
        np.testing.assert_allclose(one, [plain / kept] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "stretch"),
    [
        (dict(beta_fast=640.0), [0, 1 / 7, 2 / 7, 3 / 7]),  # the ramp would end behind the head
        (dict(beta_fast=1.0, original_max_position_embeddings=7, truncate=False), [0, 1, 1, 1]),  # no ramp
        (dict(beta_fast=1e9, original_max_position_embeddings=62), [0, 0.25, 0.5, 0.75]),
    ],
)
def test_where_yarn_begins_to_stretch(changes, stretch):
    """From pair `low`, not below 0, to pair `high`, not beyond the head."""
    rope = Rope(rope_type="yarn", rope_theta=10.0, factor=4.0, original_max_position_embeddings=4096)
    made = inverse_frequencies(dataclasses.replace(rope, **changes), 8)
    plain, by = 10.0 ** -(np.arange(4) / 4), np.array(stretch)
    np.testing.assert_allclose(made, by * plain / 4 + (1 - by) * plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        (dict(), math.sqrt(1 + math.log(4) / math.log(64))),
        (dict(factor=1.0), 1.0),
        (dict(attention_factor=3.0), 3.0),
    ],
)
def test_how_longrope_scales_attention(changes, factor):
    rope = Rope(**dict(rope_type="longrope", factor=4.0, original_max_position_embeddings=64) | changes)
    assert attention_factor(rope) == pytest.approx(factor)


def test_queries_grow_with_each_span_of_the_length_of_training():
    rope = Rope(llama_4_scaling_beta=0.5, original_max_position_embeddings=4)
    made = query_scale(rope, jnp.array([[0, 3, 4], [7, 8, 400]], jnp.int32))
    np.testing.assert_allclose(made, 1 + 0.5 * np.log([[1, 1, 2], [2, 3, 101]]), rtol=1e-6)
    assert query_scale(Rope(), jnp.zeros((1, 1), jnp.int32)) is None
    assert query_scale(None, jnp.zeros((1, 1), jnp.int32)) is None


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
        ((1, 8, None), "dtype=None"),
        ((1, 2**31, "float32"), "max_len=2147483648 of a cache is beyond 2147483647"),
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


def test_8_bits_are_the_nearest_of_127_steps_to_either_side():
    """To even between two; what is largest takes the last step; a row of zeros has a scale of zero."""
    row = [127.0, -127.0, 0.4, 0.6, 0.5, 1.5, -2.5, 126.6]
    rows = jnp.array([row, [-2 * value for value in row], [0.0] * 8])
    made = quantize(rows, SCHEMES["int8"][0])
    values = [127, -127, 0, 1, 0, 2, -2, 127]
    assert made.values.tolist() == [values, [-value for value in values], [0] * 8]
    assert made.scales.tolist() == [[1.0], [2.0], [0.0]]
    assert (made.values.dtype, made.scales.dtype, made.offsets) == (jnp.int8, jnp.float32, None)
    halves = quantize(rows, Scheme(bits=8, group=4))
    assert halves.scales.shape == (3, 2)
    np.testing.assert_allclose(halves.scales[0], [1.0, 126.6 / 127], rtol=1e-6)


def test_4_bits_are_the_nearest_of_15_steps_from_the_smallest():
    """Element i of a group lies in the low half of byte i, the one half a group further in the high half."""
    row = [0.0, 15.0, 3.4, 7.6, -8.0, 22.0, -8.0, 22.0]
    made = quantize(jnp.array([row, [0.25] * 8]), Scheme(bits=4, group=4))
    assert made.values.tolist() == [[0 | 3 << 4, 15 | 8 << 4, 0 | 0 << 4, 15 | 15 << 4], [0] * 4]
    assert made.scales.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert made.offsets.tolist() == [[0.0, -8.0], [0.25, 0.25]]
    dtypes = (made.values.dtype, made.scales.dtype, made.offsets.dtype)
    assert dtypes == (jnp.uint8, jnp.float16, jnp.float16)


def test_4_bits_are_nearest_with_the_scale_as_it_is_stored():
    """Whatever float16 made of scale and offset: beside 1000 the offset is many steps off."""
    w = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32) * np.float32(2.0**-13)
    w[:2] = [[1000.3], [1000.1]] + np.arange(64, dtype=np.float32) / 256
    made = quantize(jnp.asarray(w), Scheme(bits=4, group=32))
    packed = np.asarray(made.values).reshape(40, 2, 16)
    nibbles = np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.float64)
    scale, offset = (np.asarray(leaf, np.float64)[:, :, None] for leaf in (made.scales, made.offsets))
    steps = (w.reshape(40, 2, 32) - offset) / scale
    inside = (steps > 0) & (steps < 15)
    assert (np.abs(steps - nibbles)[inside] < 0.5 + 1e-3).all()
    assert (nibbles[steps <= 0] == 0).all()
    assert (nibbles[steps >= 15] == 15).all()
    assert (~inside).any()
    assert (steps < -1).any()
    assert (steps > 16).any()


def test_what_is_offered():
    """4 bits would spoil the embedding and the unembedding."""
    whole = Scheme(bits=8, group=None)
    assert {"int8": (whole, whole), "int4": (Scheme(bits=4, group=32), whole)} == SCHEMES


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


def test_numbers_of_six_bits_lie_as_it_is_said():
    """Low halves as of 4 bit; then byte 4h + i has the high bits of element 16h + 4k + i at bit 2k."""
    numbers = np.random.default_rng(0).integers(-32, 32, (3, 2, 32))
    raised = numbers + 32
    packed = np.zeros((3, 2, 24), np.uint8)
    packed[..., :16] = raised[..., :16] & 15 | (raised[..., 16:] & 15) << 4
    for h, i, k in np.ndindex(2, 4, 4):
        packed[..., 16 + 4 * h + i] |= (raised[..., 16 * h + 4 * k + i] >> 4 << 2 * k).astype(np.uint8)
    found = _six_bits(jnp.asarray(packed.reshape(3, 48)))
    np.testing.assert_array_equal(found, numbers.reshape(3, 64))
