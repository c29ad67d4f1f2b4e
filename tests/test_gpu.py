"""The engine on an NVIDIA GPU: `pytest -m gpu`. Kernels have tests of their own in test_kernels_gpu.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels
from jllama.checkpoint import load_params, read_config
from jllama.checkpoint.random_params import random_params
from jllama.config import ModelConfig
from jllama.hub.references import resolve
from jllama.layers.cache import KVCache
from tests.support.decoding import GPU, XLA, empty_slots, texts
from tests.test_goldens import check_real_model

pytestmark = pytest.mark.gpu

CONFIG = ModelConfig(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=1024,
)
MAX_LEN = 512
# Of the logit range, kernel path against XLA path: both round to 16 bits at other places.
KERNEL_BOUND = {"bfloat16": 2e-2, "float16": 3e-3}


@pytest.mark.parametrize("name", ["story", "smollm2"])
def test_float32_equals_the_goldens(request, name):
    """The same greedy tokens as Hugging Face's own code on a CPU."""
    fixture = {"story": "story_dir", "smollm2": "smollm2_gguf"}[name]
    files = resolve(str(request.getfixturevalue(fixture)), progress=False)
    config = read_config(files)
    check_real_model(config, load_params(files, config, "float32", progress=False), f"{name}.npz")


def answers(params, dtype, prompts, *, count=64, **settings):
    """Generated ids of each row, by the engine."""
    slots = empty_slots(CONFIG, params, len(prompts), MAX_LEN, dtype)
    keys = [(0, row) for row in range(len(prompts))]
    return texts(slots, prompts, keys=keys, limit=count, **settings)


PROMPTS = [np.random.default_rng(row).integers(4096, size=20 + 7 * row).tolist() for row in range(4)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_same_seed_gives_the_same_tokens_on_every_run(dtype):
    params = random_params(CONFIG, dtype)
    for prompts in (PROMPTS[:1], PROMPTS):
        first = answers(params, dtype, prompts, temperature=1.0, top_p=0.9)
        for _ in range(3):
            np.testing.assert_array_equal(answers(params, dtype, prompts, temperature=1.0, top_p=0.9), first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neighbours_change_nothing_bit_for_bit(dtype):
    """At a fixed batch size; the sampled tokens would show any difference sooner or later."""
    params = random_params(CONFIG, dtype)
    together = answers(params, dtype, PROMPTS, temperature=1.0)
    others = [PROMPTS[0], *(list(range(5 + row)) for row in range(3))]
    np.testing.assert_array_equal(answers(params, dtype, others, temperature=1.0)[0], together[0])


def step_logits(params, dtype, length):
    """One decode step behind a random cache, by the kernel where there is one and by XLA alone."""
    key = jax.random.key(3)
    cache = KVCache.empty(CONFIG, batch=1, max_len=MAX_LEN, dtype=dtype)
    fill = tuple(
        tuple(
            jax.random.normal(jax.random.fold_in(key, 2 * i + kind), a.shape).astype(dtype)
            for i, a in enumerate(arrays)
        )
        for kind, arrays in enumerate((cache.keys, cache.values))
    )
    cache = dataclasses.replace(cache, keys=fill[0], values=fill[1], length=jnp.array([length], jnp.int32))
    token, n_valid = jnp.array([[17]], jnp.int32), jnp.array([1], jnp.int32)

    def run(target):
        step = jax.jit(
            lambda params, cache: kernels.forward(
                CONFIG, params, token, cache, n_valid=n_valid, target=target
            )
        )
        return step(params, cache)

    assert kernels.refusal(CONFIG, params, token, cache, GPU) is None
    return run(GPU), run(XLA)


@pytest.mark.parametrize("dtype", KERNEL_BOUND)
@pytest.mark.parametrize("length", [0, 1, 100, MAX_LEN - 1, MAX_LEN])
def test_kernel_and_xla_agree(dtype, length):
    (ours, cache), (theirs, plain) = step_logits(random_params(CONFIG, dtype), dtype, length)
    scale = float(theirs.max() - theirs.min())
    assert bool(jnp.isnan(ours).all()) == bool(jnp.isnan(theirs).all()) == (length == MAX_LEN)
    if length < MAX_LEN:
        assert float(jnp.abs(ours - theirs).max()) <= KERNEL_BOUND[dtype] * scale
    assert cache.length.tolist() == plain.length.tolist() == [min(length + 1, MAX_LEN)]
    for mine, other in zip((*cache.keys, *cache.values), (*plain.keys, *plain.values), strict=True):
        difference = jnp.abs(mine.astype(jnp.float32) - other.astype(jnp.float32)).max()
        assert float(difference) <= 0.1
    if length == MAX_LEN:  # nothing was overwritten
        np.testing.assert_array_equal(cache.keys[0], plain.keys[0])
