"""Products of the C++ kernels against NumPy, on every instruction set that this machine has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels import cpu
from jllama.layers.qtensor import dequantize, embed_rows
from tests.support.kernels_cpu import FORMATS, WIDER, every_machine, has_pairs, random_weight, suffix_of


def rounded(x: jax.Array) -> jax.Array:
    """Activations as the kernels see them: 8 bits in blocks of 32."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True) / 127
    return (jnp.round(blocks / jnp.maximum(scale, 1e-30)) * scale).reshape(x.shape)


def product(weight: jax.Array, x: jax.Array) -> np.ndarray:
    wide = np.asarray(weight, np.float64).reshape(-1, weight.shape[-1])
    return (np.asarray(x, np.float64) @ wide.T).reshape(*x.shape[:-1], *weight.shape[:-1])


@every_machine
@pytest.mark.parametrize(("bits", "group", "offset"), [*FORMATS, *WIDER])
def test_quantised_products(machine, bits, group, offset):
    rng = np.random.default_rng([bits, group, offset])  # no activation near the middle of two steps
    for rows in ((1,), (16,), (3, 7), (50,)):
        w = random_weight(rng, (*rows, 192), bits, group, offset)
        packed = cpu.prepare(w)
        for batch in ((1,), (2, 1), (5,), (3, 4)):
            x = jnp.asarray(rng.normal(size=(*batch, 192)), jnp.float32)
            y = cpu.quantized_linear(packed, x, target=f"jllama_product{suffix_of(machine)}")
            exact = product(dequantize(w), rounded(x))
            np.testing.assert_allclose(y, exact, atol=2e-6 * np.abs(exact).max() + 1e-6)


@every_machine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_products(machine, dtype):
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (5, 31), (16, 64), (70, 300), (129, 33)):
        w = jnp.asarray(rng.normal(size=(rows, columns)), dtype)
        for batch in (1, 2, 3, 9, 17, 40):
            x = jnp.asarray(rng.normal(size=(batch, columns)), jnp.float32)
            y = cpu.quantized_linear(w, x, target=f"jllama_product{suffix_of(machine)}")
            # Many rows meet bfloat16 in bfloat16 where an instruction multiplies pairs of them.
            pairs = dtype == "bfloat16" and batch > 16 and columns % 2 == 0 and has_pairs(machine)
            exact = product(w, x.astype(jnp.bfloat16) if pairs else x)
            np.testing.assert_allclose(y, exact, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize(("bits", "group", "offset"), [*FORMATS, *WIDER])
def test_tiles_hold_the_same_numbers(bits, group, offset):
    rng = np.random.default_rng(1)
    for rows in (1, 16, 39):
        w = random_weight(rng, (rows, 192), bits, group, offset)
        packed = cpu.prepare(w)
        assert packed.layout == "tiles"
        np.testing.assert_array_equal(dequantize(w), dequantize(packed))
        tokens = jnp.asarray([[0, rows - 1, rows, -1]], jnp.int32)
        np.testing.assert_array_equal(
            embed_rows(w, tokens, jnp.float32), embed_rows(packed, tokens, jnp.float32)
        )


@pytest.mark.parametrize(("group", "layout"), [(8, "rows"), (48, "rows"), (16, "tiles"), (96, "tiles")])
def test_groups_that_the_kernels_do_not_read_stay_in_rows(group, layout):
    w = random_weight(np.random.default_rng(0), (16, 192), 8, group, False)
    assert cpu.prepare(w).layout == layout
