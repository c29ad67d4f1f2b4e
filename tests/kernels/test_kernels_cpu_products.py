"""Products of the C++ kernels against NumPy, on every instruction set that this machine has."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels import cpu
from jllama.layers.qtensor import embed_rows
from tests.support.helpers import whole
from tests.support.kernels_cpu import (
    FORMATS,
    SIX,
    WIDER,
    activations,
    every_machine,
    has_tiles,
    products,
    random_levels,
    random_weight,
    rounds,
    suffix_of,
)

some_rows = jax.jit(partial(embed_rows, dtype=jnp.float32))


def product(weight: jax.Array, x: jax.Array) -> np.ndarray:
    wide = np.asarray(weight, np.float64).reshape(-1, weight.shape[-1])
    return (np.asarray(x, np.float64) @ wide.T).reshape(*x.shape[:-1], *weight.shape[:-1])


@every_machine
@pytest.mark.parametrize(("bits", "group", "offset"), [*FORMATS, *WIDER, *SIX])
def test_quantised_products(machine, bits, group, offset):
    rng = np.random.default_rng([bits, group, offset])
    for rows in ((1,), (16,), (3, 7), (50,)):
        w = random_weight(rng, (*rows, 192), bits, group, offset)
        batches = ((1,), (2, 1), (5,), (3, 4), (29,), (70,))
        many = [activations(rng, *batch, 192) for batch in batches]
        many = [x.at[..., 32:64].set(0) if len(x) in (2, 29) else x for x in many]  # a block of no size
        for x, y in zip(many, products(cpu.prepare(w), many, machine), strict=True):
            exact = product(whole(w), x)
            if has_tiles(machine) and len(x) == 70:
                np.testing.assert_array_less(np.abs(y - exact), tile_bound(w, x))
            else:
                np.testing.assert_allclose(y, exact, atol=2e-6 * np.abs(exact).max() + 1e-6)


@every_machine
def test_products_of_levels(machine):
    rng = np.random.default_rng(0)
    w = random_levels(rng, (50, 192))
    packed = cpu.prepare(w)
    assert (packed.bits, packed.levels) == (4, True)
    many = [activations(rng, batch, 192) for batch in (1, 2, 3, 9, 29, 70)]
    for x, y in zip(many, products(packed, many, machine), strict=True):
        exact = product(whole(w), x)
        bound = tile_bound(w, x) if has_tiles(machine) and len(x) == 70 else 2e-6 * np.abs(exact).max()
        assert (np.abs(y - exact) < bound).all()
    most, *fewer = products(packed, [many[4], *(many[4][:some] for some in (1, 2, 3, 9, 16))], machine)
    for few in fewer:
        np.testing.assert_array_equal(few, most[: len(few)])


def tile_bound(w, x) -> np.ndarray:
    """At most three parts in 2^16 of every product are lost: of either factor, and of both second halves."""
    return 3 * 2.0**-16 * product(np.abs(whole(w)), np.abs(x)) + 1e-6


@pytest.mark.parametrize("rows", [1, 16, 20, 300])
@pytest.mark.parametrize(
    "kind", [(8, 32, False), (8, 16, True), (4, 32, True), (4, 96, False), *SIX[1:3], None]
)
def test_tiles_lose_no_row_and_no_column(rows, kind):
    """Odd numbers of tiles of either, sums in several turns, both halves of the factors."""
    rng = np.random.default_rng(rows)
    for columns, batch in ((576, 70), (288, 113), (96, 530)):
        x = rng.normal(size=(batch, columns)).astype(np.float32)
        if kind is None:
            w = jnp.asarray(rng.normal(size=(rows, columns)).astype(jnp.bfloat16))
            (y,), exact = products(w, [x], "plain_tiles"), product(w, x.astype(jnp.bfloat16))
            bound = 1e-6
        else:
            w = random_weight(rng, (rows, columns), *kind)
            (y,), exact = products(cpu.prepare(w), [x], "plain_tiles"), product(whole(w), x)
            bound = 8e-6  # without the second half of either factor it is 1e-3
        assert np.sqrt(np.square(y - exact).mean() / np.square(exact).mean()) < bound


@pytest.mark.parametrize("kind", [(8, 32, False), (4, 32, True), None])
def test_a_nan_stays_one_in_tiles_and_in_its_row(kind):
    rng = np.random.default_rng(0)
    dense = jnp.asarray(rng.normal(size=(40, 96)), jnp.bfloat16)
    w = dense if kind is None else cpu.prepare(random_weight(rng, (40, 96), *kind))
    x = rng.normal(size=(70, 96)).astype(np.float32)
    target = f"jllama_product{suffix_of('plain_tiles')}"
    healthy = np.array(cpu.quantized_linear(w, jnp.asarray(x), target=target))
    x[66, 5] = np.uint32(0x7FFFFFFF).view(np.float32)  # rounding its bits would make it -0
    healthy[66] = np.nan
    np.testing.assert_array_equal(cpu.quantized_linear(w, jnp.asarray(x), target=target), healthy)


@every_machine
def test_activations_are_rounded_to_half_a_step_of_16_bits(machine):
    rng = np.random.default_rng(0)
    w = random_weight(rng, (50, 192), 8, 32, True)
    many = [rng.normal(size=(batch, 192)).astype(np.float32) for batch in (1, 3, 29)]
    for x, y in zip(many, products(cpu.prepare(w), many, machine), strict=True):
        largest = np.abs(x).reshape(len(x), -1, 32).max(-1).repeat(32, -1)
        bound = product(np.abs(whole(w)), largest / 32639 / 2)
        error = np.abs(y - product(whole(w), x))
        assert (error < bound).all()
        assert error.max() > 0.01 * bound.max()  # so near to it that the bound says something


@every_machine
@pytest.mark.parametrize("kind", [(8, 32, False), (8, 16, True), (4, 32, True), (4, 96, False), *SIX])
def test_a_row_is_the_same_number_among_few_and_many(machine, kind):
    """They meet the weights by different instructions, and threads in any order; only tile registers, for
    very many rows, make numbers of their own."""
    rng = np.random.default_rng(0)
    w = cpu.prepare(random_weight(rng, (70, 576), *kind))
    x = rng.normal(size=(97, 576)).astype(np.float32)
    very_many = (97, (65, 80) if has_tiles(machine) else (1, 29, 65))
    for most, fewer in ((29, (1, 3, 16)), (40, (1, 17, 32)), very_many):
        many, *results = products(w, [x[:most], *(x[:some] for some in fewer)], machine)
        for some, few in zip(fewer, results, strict=True):
            np.testing.assert_array_equal(few, many[:some])


@every_machine
@pytest.mark.parametrize(("bits", "offset"), [(8, False), (6, False), (6, True), (4, False), (4, True)])
def test_the_largest_numbers_of_a_block_fit_their_sums(machine, bits, offset):
    """Halves of 8 bits are 127, a low one -128 too; AVX2 sums up their products with 4 bits in 16."""
    w = random_weight(np.random.default_rng(0), (16, 64), bits, 32, offset)
    ends = {8: (-128, 127), 6: (-32, 31), 4: (0, 255)}[bits]
    values = np.repeat(np.array(ends, w.values.dtype), 8)[:, None].repeat(w.values.shape[1], 1)
    w = dataclasses.replace(w, values=jnp.asarray(values))
    steps = np.array([[32639] * 32, [-32639] * 32, [32639, *[32384] * 31], [-32639, *[-32384] * 31]])
    x = jnp.asarray(np.tile(steps / 16384, 2).astype(np.float32))
    together, *alone = products(cpu.prepare(w), [x, *x[:, None]], machine)
    for y in (together, np.concatenate(alone)):
        np.testing.assert_allclose(y, product(whole(w), x), rtol=1e-5)


@every_machine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_products(machine, dtype):
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (5, 31), (16, 64), (70, 300), (129, 33)):
        w = jnp.asarray(rng.normal(size=(rows, columns)).astype(jnp.dtype(dtype)))
        many = [rng.normal(size=(batch, columns)).astype(np.float32) for batch in (1, 2, 3, 9, 16, 17, 40)]
        for x, y in zip(many, products(w, many, machine), strict=True):
            # Many rows meet bfloat16 in bfloat16 where an instruction multiplies many of them.
            rounded = dtype == "bfloat16" and len(x) > 16 and rounds(machine, columns)
            exact = product(w, x.astype(jnp.bfloat16) if rounded else x)
            np.testing.assert_allclose(y, exact, atol=2e-6 * np.abs(exact).max())


@every_machine
def test_a_zero_beside_an_activation_does_not_silence_it(machine):
    """Two bfloat16, the second of them 0, look like a subnormal float32, which XLA's threads take for 0."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(16, 64)), rng.normal(size=(40, 64)).astype(np.float32)
    x[:, 1::2] = 0
    w, x = jnp.asarray(w, jnp.bfloat16), jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32)
    y = cpu.quantized_linear(w, x, target=f"jllama_product{suffix_of(machine)}")
    np.testing.assert_allclose(y, product(w, x), atol=1e-5)


@pytest.mark.parametrize(("bits", "group", "offset"), [*FORMATS, *WIDER, *SIX])
def test_tiles_hold_the_same_numbers(bits, group, offset):
    rng = np.random.default_rng(1)
    for rows in (1, 16, 39):
        w = random_weight(rng, (rows, 192), bits, group, offset)
        packed = cpu.prepare(w)
        assert (packed.layout, packed.bits) == ("tiles", bits)
        np.testing.assert_array_equal(whole(w), whole(packed))
        tokens = jnp.asarray([[0, rows - 1, rows, -1]], jnp.int32)
        np.testing.assert_array_equal(some_rows(w, tokens), some_rows(packed, tokens))


def test_tiles_hold_levels():
    rng = np.random.default_rng(1)
    for rows in (1, 39):
        w = random_levels(rng, (rows, 96))
        packed = cpu.prepare(w)
        np.testing.assert_array_equal(whole(w), whole(packed))
        tokens = jnp.asarray([[0, rows - 1, rows, -1]], jnp.int32)
        np.testing.assert_array_equal(some_rows(w, tokens), some_rows(packed, tokens))
    other = cpu.prepare(dataclasses.replace(w, values=w.values.at[38, 95].set(2)))
    assert (other.bits, other.levels) == (8, False)


def test_a_number_that_6_bits_do_not_hold_keeps_8():
    w = random_weight(np.random.default_rng(0), (40, 64), 6, 32, False)
    assert cpu.prepare(w).bits == 6
    for number in (-33, 32):
        packed = cpu.prepare(dataclasses.replace(w, values=w.values.at[39, 63].set(number)))
        assert packed.bits == 8
        np.testing.assert_array_equal(whole(packed)[39, 63], number * np.float32(w.scales[39, 1]))
    narrow = random_weight(np.random.default_rng(0), (40, 48), 6, 16, False)  # no whole blocks of 32
    assert cpu.prepare(narrow).bits == 8


@pytest.mark.parametrize(("group", "layout"), [(8, "rows"), (48, "rows"), (16, "tiles"), (96, "tiles")])
def test_groups_that_the_kernels_do_not_read_stay_in_rows(group, layout):
    w = random_weight(np.random.default_rng(0), (16, 192), 8, group, False)
    assert cpu.prepare(w).layout == layout
