"""The two halves of a step: logits of some rows, and the choice among those that a mask leaves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.engine.masked_programs import changing_of
from jllama.engine.state import NO_TOKEN, Way
from tests.support.decoding import CPU, empty_slots, started
from tests.support.helpers import full_logits

PROMPTS = [[3, 7], [1, 4, 9], [2]]
WAY = Way(CPU, scores=True)


@pytest.fixture
def slots(tiny_config, tiny_params):
    """Three slots behind their prompts and first tokens."""
    made = empty_slots(tiny_config, tiny_params, 3, max_len=16)
    started(made, PROMPTS, limit=5, stop_ids=[11])
    return made


def rows(*chosen):
    return np.array(chosen, np.int32)


def test_rows_that_run_are_fed_and_no_other(tiny_config, tiny_params, slots):
    steps, state = slots.masked, slots.state
    cache, token = state.cache, int(state.token[2])
    new = steps.feed(state, rows(2, 0), 1, WAY)
    assert all(leaf.is_deleted() for leaf in (*cache.keys, *cache.values))
    assert new.cache.length.tolist() == [2, 3, 2]
    assert not np.asarray(steps._logits[:2]).any()
    wanted = full_logits(tiny_config, tiny_params, [[*PROMPTS[2], token]])[0, -1]
    np.testing.assert_allclose(steps._logits[2], wanted, rtol=0, atol=2e-5)
    assert (int(new.token[2]), new.generated.tolist(), new.done.tolist()) == (token, [1] * 3, [False] * 3)
    over = dataclasses.replace(new, done=jnp.array([False, False, True]))
    again = steps.feed(over, rows(2, 0), 2, WAY)
    assert again.cache.length.tolist() == [3, 3, 2], "who is done takes no more"
    np.testing.assert_allclose(steps._logits[2], wanted, rtol=0, atol=2e-5)
    assert np.asarray(steps._logits[0]).any()


def masks(*tokens):
    words = np.zeros((len(tokens), 2), np.int32)
    for row, token in zip(words, tokens, strict=True):
        row[token // 32] = np.uint32(1 << token % 32).astype(np.int32)
    return words


def chosen(slots, logits, allowed, which, live):
    """One choice of rows whose logits are there."""
    slots.masked._logits, slots.masked._fed[:] = logits, True
    return slots.masked.choose(slots.state, which, live, masks(*allowed), WAY)


@pytest.mark.parametrize("which", [(2, 0), (2, 0, 1)])
def test_each_row_takes_a_token_of_its_mask_from_its_own_logits(tiny_config, slots, which):
    """Whether it is one of some or of all slots, whose order is their own."""
    V, before = tiny_config.vocab_size, jax.tree.map(np.array, slots.state)
    logits = jnp.zeros((3, V)).at[2, 40].set(9.0).at[0, 5].set(9.0)
    new, burst = chosen(slots, logits, (40, 11), rows(*which), 2)
    assert all(leaf.is_deleted() for leaf in changing_of(slots.state).values())
    assert not slots.state.keys.is_deleted()  # what is only read
    assert burst.tokens.tolist() == [[40], [11], *[[NO_TOKEN]] * (len(which) - 2)]
    assert (burst.done.tolist()[:2], burst.healthy.tolist()) == ([False, True], [True] * len(which))
    assert new.token.tolist() == [11, before.token[1], 40]
    assert (new.generated.tolist(), new.done.tolist()) == ([2, 1, 2], [True, False, False])
    assert new.scores is None
    rest = np.log(np.exp(9.0) + V - 1)  # whatever the mask says
    np.testing.assert_allclose(burst.scores.chosen[:2, 0], [9.0 - rest, -rest], atol=2e-6)
    counts = new.counts.answer - before.counts.answer
    assert [np.flatnonzero(row).tolist() for row in np.asarray(counts)] == [[11], [], [40]]
    np.testing.assert_array_equal(new.cache.length, before.cache.length)
    assert not slots.masked.pending(which[:2])


def test_a_row_that_fills_a_program_stays_as_it_is(tiny_config, slots):
    before = jax.tree.map(np.array, slots.state)
    new, burst = chosen(slots, jnp.zeros((3, tiny_config.vocab_size)), (40,), rows(2, 0), 1)
    assert burst.tokens.tolist() == [[40], [NO_TOKEN]]
    assert new.token.tolist() == [*before.token[:2], 40]
    assert (new.generated.tolist(), new.done.tolist()) == ([1, 1, 2], [False] * 3)
    assert slots.masked.pending([0])


def test_what_is_no_number_ends_its_row_alone(tiny_config, slots):
    logits = jnp.zeros((3, tiny_config.vocab_size)).at[1, 3].set(jnp.nan)
    new, burst = chosen(slots, logits, (40, 8, 9), rows(2, 0, 1), 3)
    assert burst.healthy.tolist() == [True, True, False]
    assert new.healthy.tolist() == [True, False, True]
    assert new.done.tolist() == [False, True, False]


def test_what_a_stretch_changes_is_updated_in_place(tiny_config, slots):
    steps, before = slots.masked, changing_of(slots.state)
    steps._fed[:], steps._logits = True, jnp.zeros((3, tiny_config.vocab_size))
    logits, cache = steps._logits, slots.state.cache
    new = steps.accept(slots.state, 1, rows(4, 5), WAY)
    assert logits.is_deleted()
    assert all(leaf.is_deleted() for leaf in (*before.values(), *cache.keys, *cache.values))
    assert (new.token.tolist()[1], new.generated.tolist()) == (5, [1, 3, 1])
    assert np.asarray(steps._logits).any(axis=1).tolist() == [False, True, False]
