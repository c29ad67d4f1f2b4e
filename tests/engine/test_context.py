"""Dynamic RoPE depends on the length of the whole text: each way into the model must know it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels, model
from jllama.config import ModelConfig
from jllama.engine.decoder import read_prompt
from jllama.layers.cache import KVCache
from tests.support.decoding import CPU, XLA, empty_slots, short_chunks
from tests.support.helpers import random_params
from tests.support.small_models import SMALL_MODELS

CONFIG = ModelConfig.from_hf(SMALL_MODELS["dynamic"] | {"max_position_embeddings": 16})
TOKENS = np.random.default_rng(5).integers(0, 97, (2, 30)).astype(np.int32)
SAME = 2e-5
forward = jax.jit(model.forward, static_argnums=0, static_argnames="last_only")


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def empty(batch=1):
    return KVCache.empty(CONFIG, batch=batch, max_len=40, dtype="float32")


def ints(*values):
    return jnp.asarray(values, jnp.int32)


def test_a_second_prompt_counts_what_the_cache_holds(params):
    """10 tokens within the trained 16, then 14 more beyond them."""
    slots = empty_slots(CONFIG, params, max_len=40)
    read_prompt(slots, TOKENS[0, :10])
    ours = read_prompt(slots, TOKENS[0, :24], 10)
    _, cache = forward(CONFIG, params, TOKENS[:1, :10], empty())
    wanted, _ = forward(CONFIG, params, TOKENS[:1, 10:24], cache, context=ints(24))
    wrong, _ = forward(CONFIG, params, TOKENS[:1, 10:24], cache, context=ints(14))
    np.testing.assert_allclose(ours, wanted[:, -1], rtol=0, atol=SAME)
    assert np.abs(ours - wrong[:, -1]).max() > 100 * SAME


def by_chunks(slots, prompt):
    return read_prompt(slots, prompt)[0]


def scored(slots, prompt):
    start = 0
    while start < len(prompt):
        size = slots.next_chunk(len(prompt) - start, scored=True)
        logits, _ = slots.read_scored(0, prompt, start, size)
        start += size
    return logits[0]


@pytest.mark.parametrize("read", [by_chunks, scored])
def test_every_chunk_of_a_prompt_knows_the_length_of_the_whole(params, monkeypatch, read):
    """Of 24 tokens the first 16 are no longer than the trained length."""
    short_chunks(monkeypatch)
    slots = empty_slots(CONFIG, params, max_len=40)
    assert slots.next_chunk(24) == 16
    ours = read(slots, TOKENS[0, :24])

    def wanted(first):
        _, cache = forward(CONFIG, params, TOKENS[:1, :16], empty(), context=ints(first))
        return forward(CONFIG, params, TOKENS[:1, 16:24], cache, context=ints(24))[0][0, -1]

    np.testing.assert_allclose(ours, wanted(24), rtol=0, atol=SAME)
    assert np.abs(ours - wanted(16)).max() > 100 * SAME


@pytest.mark.parametrize("target", [XLA, CPU])
def test_padding_is_no_part_of_the_text(params, target):
    """Without `context` it is what the cache holds and the tokens that count."""
    n_valid = ints(20, 9)
    _, held = forward(CONFIG, params, TOKENS[:, :3], empty(2))
    ours, _ = kernels.forward(
        CONFIG, params, jnp.asarray(TOKENS), held, n_valid=n_valid, last_only=False, target=target
    )
    told, _ = forward(CONFIG, params, TOKENS, held, n_valid=n_valid, context=ints(23, 12))
    for row, count in enumerate(n_valid.tolist()):
        np.testing.assert_allclose(ours[row, :count], told[row, :count], rtol=0, atol=SAME)
    longer, _ = forward(CONFIG, params, TOKENS, held, n_valid=n_valid, context=ints(33, 33))
    assert np.abs(told[0, :20] - longer[0, :20]).max() > 100 * SAME
