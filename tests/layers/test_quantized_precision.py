"""Products with quantised weights that XLA computes, and gates: float32 inside, one rounding at most."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.layers.linear import EXACT, linear
from jllama.layers.mlp import ACTIVATIONS, MLP, mlp
from jllama.layers.qtensor import QTensor, dequantize


def weight(rows=64, columns=512, seed=0, scale=1e-2) -> QTensor:
    rng = np.random.default_rng(seed)
    return QTensor(
        values=jnp.asarray(rng.integers(-127, 128, (rows, columns)), jnp.int8),
        scales=jnp.full((rows, columns // 32), scale, jnp.float32),
        offsets=None,
        shape=(rows, columns),
        bits=8,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_sums_are_kept_in_float32(dtype, rows, size):
    w = weight(scale=2.0**-7)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, rows, 512)) * size, dtype)
    ours = np.asarray(linear(w, x, dtype=jnp.float32), np.float64)
    full = np.asarray(dequantize(w, dtype), np.float64)
    truth = np.asarray(x, np.float64) @ full.T
    assert np.abs(ours - truth).max() < 1e-5 * np.abs(truth).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_is_told_to_multiply_float32_as_it_is(dtype):
    """Else it rounds to 10 bits of mantissa (TF32)."""
    x = jnp.ones((1, 5, 512), dtype)
    for w in (weight(), dequantize(weight(), dtype)):
        products = [e for e in _equations(jax.make_jaxpr(linear)(w, x)) if e.primitive.name == "dot_general"]
        assert products
        assert {e.params["precision"] for e in products} == {(EXACT, EXACT)}


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 64])
def test_float32_on_a_gpu(rows):
    w = weight(rows=256)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, rows, 512)), jnp.float32)
    truth = np.asarray(x, np.float64) @ np.asarray(dequantize(w), np.float64).T
    assert np.abs(np.asarray(jax.jit(linear)(w, x)) - truth).max() < 1e-6 * np.abs(truth).max()


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_a_gate_in_16_bits_is_applied_in_float32(activation):
    """Rounded once: where the product with `up` is stored."""
    gate, up = (np.random.default_rng(n).normal(size=(1, 200, 1)) for n in (1, 2))
    x = jnp.asarray(np.concatenate([gate, up], axis=-1), jnp.bfloat16)
    p = MLP(
        gate_up_proj=jnp.eye(2, dtype=jnp.bfloat16)[
            :, None, :
        ],  # [2, F=1, D=2]: one is the gate, one is `up`
        down_proj=jnp.ones((1, 1), jnp.bfloat16),
    )
    wide = np.asarray(x, np.float32)
    wanted = ACTIVATIONS[activation](jnp.asarray(wide[..., :1])) * wide[..., 1:]
    np.testing.assert_array_equal(mlp(p, x, activation), wanted.astype(jnp.bfloat16))
