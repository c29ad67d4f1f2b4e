"""NEON kernels in the plain run: compiled, and a few calls under QEMU. `pytest -m neon` has all others."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels import cpu
from jllama.kernels.cpu import build
from jllama.model import forward
from tests.support import aarch64
from tests.support.helpers import random_params, whole
from tests.support.kernels_cpu import (
    BASE,
    activations,
    filled_cache,
    kernel_step,
    random_weight,
    weights_like,
)


@pytest.fixture(scope="module")
def suffix() -> str:
    if reason := aarch64.lacking():
        pytest.skip(reason)
    build.register(aarch64.connected("neon_dotprod", "-O0"), "_on_aarch64")
    return "_on_aarch64"


@pytest.mark.parametrize("bits", [8, 4])
def test_a_product(suffix, bits):
    rng = np.random.default_rng(bits)
    w = random_weight(rng, (50, 96), bits, 32, True)
    for x in (activations(rng, rows, 96) for rows in (1, 3, 20)):
        exact = np.asarray(x, np.float64) @ np.asarray(whole(w), np.float64).T
        y = cpu.quantized_linear(cpu.prepare(w), x, target=f"jllama_product{suffix}")
        np.testing.assert_allclose(y, exact, atol=2e-6 * np.abs(exact).max())


def test_a_step(suffix):
    rng, config = np.random.default_rng(0), dataclasses.replace(BASE, num_hidden_layers=1)
    given = random_params(config)
    params = weights_like(given, rng, lambda shape: random_weight(rng, shape, 4, 32, True))
    cache = filled_cache(config, rng, (4, 9), 16, "float32")
    tokens = jnp.asarray([[3], [5]], jnp.int32)
    for weights, lost in ((given, 2e-5), (params, 2e-4)):
        wanted, _ = forward(config, weights, tokens, cache)
        got, _ = kernel_step(config, cpu.prepare(weights), tokens, cache, suffix)
        np.testing.assert_allclose(got, wanted, atol=lost * np.abs(wanted).max())


@pytest.mark.neon
@pytest.mark.parametrize("variant", aarch64.PROCESSORS)
def test_a_processor_runs_what_it_has(variant):
    """The one without dot products ends a program that has them: what runs on it has none."""
    name = f"_{variant}_on_the_least"
    build.register(aarch64.connected(variant, processor=aarch64.PROCESSORS["neon"]), name)
    w = cpu.prepare(random_weight(np.random.default_rng(0), (16, 96), 8, 32, False))
    call = partial(cpu.quantized_linear, w, jnp.ones((1, 96)), target=f"jllama_product{name}")
    if variant == "neon":
        assert np.isfinite(call()).all()
        return
    with pytest.raises(jax.errors.JaxRuntimeError, match="has ended"):
        jax.block_until_ready(call())
