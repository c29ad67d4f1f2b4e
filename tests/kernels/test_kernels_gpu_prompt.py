"""Short chunks by the kernels themselves, with `-m gpu`; `test_kernels_gpu_short.py` has plain twins."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels, model
from jllama.kernels.target import Target
from tests.kernels.test_kernels_gpu import LLAMA_8B, TINYLLAMA, clean, distance, filled, near, weights, wide

GPU, MAX_LEN, DRAWS = Target("gpu"), 1024, 3
# Tokens of the chunk, of which so many are a prompt's, behind so many.
CHUNKS = [(16, 11, 0), (16, 16, 300), (32, 29, 61), (64, 37, 7), (128, 128, 0), (128, 100, 640)]
LONG = [(256, 256, 0), (256, 200, 500)]  # of 16-bit weights


@functools.partial(jax.jit, static_argnums=0)
def plain_chunk(config, params, tokens, cache, valid):
    return model.forward(config, params, tokens, cache, n_valid=valid, last_only=True)


def parted(cache, held, valid, T):
    """A prompt's own keys and values of each layer, and those outside of the chunk."""
    leaves = [np.asarray(leaf, np.float32) for leaf in cache.keys + cache.values]
    others = np.r_[:held, held + T : MAX_LEN]
    return [leaf[:, :, held : held + valid] for leaf in leaves], [leaf[:, :, others] for leaf in leaves]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("config", "stored", "chunk"),
    [
        *((TINYLLAMA, stored, chunk) for stored in ("bf16", "int8", "int4", "q4") for chunk in CHUNKS),
        *((TINYLLAMA, "bf16", chunk) for chunk in LONG),
        *((LLAMA_8B, stored, CHUNKS[3]) for stored in ("bf16", "int4")),
    ],
)
def test_a_short_chunk(config, stored, chunk):
    """The same bits each time, as near to float32 as the plain model; what is outside of the chunk stays."""
    (T, valid, held), params = chunk, weights(config, stored)
    cache, count = filled(config, MAX_LEN, held), jnp.array([valid], jnp.int32)
    assert kernels.short_refusal(config, params, jnp.zeros((1, T), jnp.int32), cache, GPU) is None
    how = dict(target=GPU, last_only=True)
    run = jax.jit(lambda *given: kernels.forward(config, *given, n_valid=count, **how))
    found = []
    for draw in range(DRAWS):
        tokens = jax.random.randint(jax.random.key(draw), (1, T), 0, config.vocab_size, jnp.int32)
        logits, new = run(params, tokens, cache)
        again, _ = run(params, tokens, cache)
        np.testing.assert_array_equal(again, logits)
        assert int(new.length[0]) == held + valid
        twin, twin_cache = plain_chunk(config, params, tokens, clean(cache), count)
        with jax.default_matmul_precision("highest"):
            exact, exact_cache = plain_chunk(config, wide(params), tokens, wide(clean(cache)), count)
        (ours, rest), (theirs, _), (true, _) = (
            parted(each, held, valid, T) for each in (new, twin_cache, exact_cache)
        )
        for before, after in zip(parted(cache, held, valid, T)[1], rest, strict=True):
            np.testing.assert_array_equal(after, before)
        pairs = [(distance(a, c), distance(b, c)) for a, b, c in zip(ours, theirs, true, strict=True)]
        found.append([(distance(logits, exact), distance(twin, exact)), *pairs])
    near(found)
