"""Products of the C++ kernels against NumPy, on every instruction set that this machine has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels import cpu
from jllama.layers.qtensor import dequantize, embed_rows
from tests.support.kernels_cpu import (
    FORMATS,
    WIDER,
    activations,
    every_machine,
    has_pairs,
    random_weight,
    suffix_of,
)


def product(weight: jax.Array, x: jax.Array) -> np.ndarray:
    wide = np.asarray(weight, np.float64).reshape(-1, weight.shape[-1])
    return (np.asarray(x, np.float64) @ wide.T).reshape(*x.shape[:-1], *weight.shape[:-1])


@every_machine
@pytest.mark.parametrize(("bits", "group", "offset"), [*FORMATS, *WIDER])
def test_quantised_products(machine, bits, group, offset):
    rng = np.random.default_rng([bits, group, offset])
    for rows in ((1,), (16,), (3, 7), (50,)):
        w = random_weight(rng, (*rows, 192), bits, group, offset)
        packed = cpu.prepare(w)
        for batch in ((1,), (2, 1), (5,), (3, 4), (29,)):
            x = activations(rng, *batch, 192)
            y = cpu.quantized_linear(packed, x, target=f"jllama_product{suffix_of(machine)}")
            exact = product(dequantize(w), x)
            np.testing.assert_allclose(y, exact, atol=2e-6 * np.abs(exact).max() + 1e-6)


@every_machine
def test_activations_are_rounded_to_half_a_step_of_16_bits(machine):
    rng = np.random.default_rng(0)
    w = random_weight(rng, (50, 192), 8, 32, True)
    for batch in (1, 3, 29):
        x = rng.normal(size=(batch, 192)).astype(np.float32)
        largest = np.abs(x).reshape(batch, -1, 32).max(-1).repeat(32, -1)
        bound = product(jnp.abs(dequantize(w)), jnp.asarray(largest / 32639 / 2))
        target = f"jllama_product{suffix_of(machine)}"
        y = cpu.quantized_linear(cpu.prepare(w), jnp.asarray(x), target=target)
        error = np.abs(y - product(dequantize(w), jnp.asarray(x)))
        assert (error < bound).all()
        assert error.max() > 0.01 * bound.max()  # so near to it that the bound says something


@every_machine
@pytest.mark.parametrize("kind", [(8, 32, False), (8, 16, True), (4, 32, True), (4, 96, False)])
def test_a_row_is_the_same_number_among_few_and_many(machine, kind):
    """One row, few and many meet the weights by different instructions, and threads in any order."""
    rng = np.random.default_rng(0)
    w = cpu.prepare(random_weight(rng, (70, 576), *kind))
    x = jnp.asarray(rng.normal(size=(29, 576)), jnp.float32)
    target = f"jllama_product{suffix_of(machine)}"
    many = np.asarray(cpu.quantized_linear(w, x, target=target))
    for some in (1, 3, 16):
        few = cpu.quantized_linear(w, x[:some], target=target)
        np.testing.assert_array_equal(few, many[:some])


@every_machine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_products(machine, dtype):
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (5, 31), (16, 64), (70, 300), (129, 33)):
        w = jnp.asarray(rng.normal(size=(rows, columns)), dtype)
        for batch in (1, 2, 3, 9, 16, 17, 40):
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
