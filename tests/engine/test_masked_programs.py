"""The two halves of a step: logits of some rows, and the choice among those that a mask leaves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.engine.masked_programs import choose, feeder
from jllama.engine.state import NO_TOKEN, Way
from tests.support.decoding import CPU, empty_slots, started
from tests.support.helpers import full_logits

PROMPTS = [[3, 7], [1, 4, 9], [2]]


@pytest.fixture
def state(tiny_config, tiny_params):
    """Three slots behind their prompts and first tokens."""
    slots = empty_slots(tiny_config, tiny_params, 3, max_len=16)
    started(slots, PROMPTS, limit=5, stop_ids=[11])
    return slots.state


def numbers(*rows, live):
    return np.array([*rows, live], np.int32)


def test_rows_that_run_are_fed_and_no_other(tiny_config, tiny_params, state):
    V, token = tiny_config.vocab_size, int(state.token[2])
    cache, logits = state.cache, jnp.full((3, V), 7.0)
    new, made = feeder(CPU, True)(tiny_config, tiny_params, state, logits, numbers(2, 0, live=1))
    assert logits.is_deleted()
    assert all(leaf.is_deleted() for leaf in (*cache.keys, *cache.values))
    assert new.cache.length.tolist() == [2, 3, 2]
    assert (np.asarray(made[:2]) == 7.0).all()
    wanted = full_logits(tiny_config, tiny_params, [[*PROMPTS[2], token]])[0, -1]
    np.testing.assert_allclose(made[2], wanted, rtol=0, atol=2e-5)
    assert [new.token[2], new.generated.tolist(), new.done.tolist()] == [token, [1] * 3, [False] * 3]
    over = dataclasses.replace(new, done=jnp.array([False, False, True]))
    again, kept = feeder(CPU, True)(tiny_config, tiny_params, over, made, numbers(2, 0, live=2))
    assert again.cache.length.tolist() == [3, 3, 2], "who is done takes no more"
    np.testing.assert_allclose(kept[2], wanted, rtol=0, atol=2e-5)
    assert not (np.asarray(kept[0]) == 7.0).any()


def masks(*tokens):
    words = np.zeros((len(tokens), 2), np.int32)
    for row, token in zip(words, tokens, strict=True):
        row[token // 32] = np.uint32(1 << token % 32).astype(np.int32)
    return words


def test_each_row_takes_a_token_of_its_mask_from_its_own_logits(tiny_config, state):
    V, before = tiny_config.vocab_size, jax.tree.map(np.array, state)
    logits = jnp.zeros((3, V)).at[2, 40].set(9.0).at[0, 5].set(9.0)
    way = Way(CPU, scores=True)
    new, burst = choose(state, logits, masks(40, 11, 8), numbers(2, 0, 1, live=2), how=way)
    assert state.cache.keys[0].is_deleted()
    assert burst.tokens.tolist() == [[40], [11], [NO_TOKEN]]
    assert (burst.done.tolist()[:2], burst.healthy.tolist()) == ([False, True], [True] * 3)
    assert new.token.tolist() == [11, before.token[1], 40]
    assert (new.generated.tolist(), new.done.tolist()) == ([2, 1, 2], [True, False, False])
    assert new.scores is None
    assert burst.scores.chosen.shape == (3, 1)
    rest = np.log(np.exp(9.0) + V - 1)  # whatever the mask says
    np.testing.assert_allclose(burst.scores.chosen[:2, 0], [9.0 - rest, -rest], atol=2e-6)
    counts = new.counts.answer - before.counts.answer
    assert [np.flatnonzero(row).tolist() for row in np.asarray(counts)] == [[11], [], [40]]
    np.testing.assert_array_equal(new.cache.length, before.cache.length)


def test_what_is_no_number_ends_its_row_alone(tiny_config, state):
    logits = jnp.zeros((3, tiny_config.vocab_size)).at[1, 3].set(jnp.nan)
    new, burst = choose(state, logits, masks(40, 8, 9), numbers(2, 0, 1, live=3), how=Way(CPU))
    assert burst.healthy.tolist() == [True, True, False]
    assert new.healthy.tolist() == [True, False, True]
    assert new.done.tolist() == [False, True, False]
