"""Rotary embedding of every type against the float64 reference, far beyond the original length too."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jllama.families.keys import HfKeys
from jllama.families.rope import rope_from_hf
from jllama.layers.rope import Rope, apply_rope, attention_factor, inverse_frequencies, rope_tables
from tests.support import reference
from tests.support.small_models import SMALL_MODELS

POSITIONS = np.array([0, 1, 15, 16, 31, 32, 63, 64, 2047, 2048, 4095, 4096, 8191])
# Position 8191 as float32 times a float32 frequency: 2⁻²³ · 8191 radians, and as much again in the frequency.
ANGLE = 2e-3
TYPES = {name: keys["rope_parameters"] for name, keys in SMALL_MODELS.items() if "head_dim_" not in name}
TYPES |= {
    "llama31": dict(
        rope_type="llama3",
        rope_theta=500000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    "yarn_long": dict(rope_type="yarn", rope_theta=1e6, factor=16.0, original_max_position_embeddings=4096),
    "yarn_ramp_past_the_end": dict(
        rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=4096
    ),
    "yarn_mscale_alone": dict(
        rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16, mscale=0.7
    ),
}
TRAINED = 64


def ours(name: str) -> Rope:
    return rope_from_hf(HfKeys({"rope_parameters": TYPES[name], "max_position_embeddings": TRAINED}, {}))


@pytest.mark.parametrize("head_dim", [6, 26, 128])
@pytest.mark.parametrize("name", TYPES)
def test_tables(name, head_dim):
    length = int(POSITIONS.max()) + 1
    positions = jnp.asarray(POSITIONS, jnp.int32)[None]
    cos, sin = rope_tables(ours(name), head_dim, positions, jnp.asarray([length], jnp.int32))
    assert cos.shape == sin.shape == (1, len(POSITIONS), head_dim // 2)
    assert cos.dtype == sin.dtype == jnp.float32
    angles = np.outer(POSITIONS, reference.rope_frequencies(TYPES[name], head_dim, TRAINED, length))
    magnitude = reference.rope_magnitude(TYPES[name])
    np.testing.assert_allclose(cos[0], np.cos(angles) * magnitude, rtol=0, atol=ANGLE)
    np.testing.assert_allclose(sin[0], np.sin(angles) * magnitude, rtol=0, atol=ANGLE)


@pytest.mark.parametrize("name", [name for name in TYPES if TYPES[name]["rope_type"] != "dynamic"])
def test_frequencies_are_exact(name):
    truth = reference.rope_frequencies(TYPES[name], 32, TRAINED, 8192)
    np.testing.assert_allclose(inverse_frequencies(ours(name), 32), truth, rtol=1e-12)
    assert attention_factor(ours(name)) == pytest.approx(reference.rope_magnitude(TYPES[name]), rel=1e-12)


def test_dynamic_stretches_each_row_by_its_own_text():
    """Up to the trained length it is the plain embedding; beyond, the base grows."""
    lengths = [10, TRAINED, TRAINED + 1, 500]
    positions = jnp.broadcast_to(jnp.arange(10, dtype=jnp.int32), (4, 10))
    cos, _ = rope_tables(ours("dynamic"), 16, positions, jnp.asarray(lengths, jnp.int32))
    for row, length in enumerate(lengths):
        frequencies = reference.rope_frequencies(TYPES["dynamic"], 16, TRAINED, length)
        np.testing.assert_allclose(cos[row], np.cos(np.outer(np.arange(10), frequencies)), atol=1e-5)
    np.testing.assert_allclose(cos[0], cos[1], atol=1e-6)
    assert np.abs(np.asarray(cos[1] - cos[3])).max() > 1e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rotation_is_float32_at_position_4095(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 3, 2, 26)), dtype)
    positions = jnp.asarray([[4095, 70000]], jnp.int32)
    cos, sin = rope_tables(Rope(), 26, positions, jnp.asarray([70001], jnp.int32))
    rotated = apply_rope(x, cos, sin)
    assert rotated.dtype == dtype
    frequencies = reference.rope_frequencies({"rope_theta": 10000.0}, 26, 2048, 70001)
    wide = np.asarray(x, np.float64)[0].reshape(2, 6, 26)
    for t, (position, angle) in enumerate([(4095, 5e-4), (70000, 1e-2)]):
        for vector, truth in zip(np.asarray(rotated, np.float64)[0, t].reshape(6, 26), wide[t], strict=True):
            wanted = reference.rotate(truth[None], np.array([position]), frequencies, 1.0)[0]
            rounding = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}[dtype]
            np.testing.assert_allclose(vector, wanted, rtol=rounding, atol=4 * angle)


def test_scores_depend_on_distance_alone():
    """The property RoPE exists for."""
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def score(query_position: int, key_position: int) -> float:
        def turned(x, position):
            at = jnp.asarray([[position]], jnp.int32)
            return apply_rope(x, *rope_tables(Rope(), 16, at, jnp.asarray([64], jnp.int32)))

        return float(jnp.sum(turned(q, query_position) * turned(k, key_position)))

    assert score(7, 3) == pytest.approx(score(50, 46), abs=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-2


def test_gguf_frequency_factors_divide():
    factors = (1.0, 2.0, 4.0)
    plain = inverse_frequencies(Rope(), 6)
    stretched = inverse_frequencies(dataclasses.replace(Rope(), frequency_factors=factors), 6)
    np.testing.assert_allclose(stretched, plain / np.array(factors))


@pytest.mark.parametrize(
    "rope",
    [
        Rope(rope_type="yarn", original_max_position_embeddings=16, attention_factor=2**64),
        Rope(rope_type="dynamic", original_max_position_embeddings=2**40, factor=2, rope_theta=10**20),
    ],
    ids=lambda rope: rope.rope_type,
)
def test_whole_numbers_beyond_int32(rope):
    positions, context = jnp.zeros((1, 3), jnp.int32), jnp.array([3], jnp.int32)
    assert all(np.isfinite(table).all() for table in rope_tables(rope, 8, positions, context))
