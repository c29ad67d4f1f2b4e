"""What passes from step to step: randomness, the cache, the end of a row, how many steps come next."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.engine.decoder import Decoder, _next_steps
from jllama.engine.prefill import prefill
from jllama.engine.state import NO_TOKEN, Way, take_token
from jllama.engine.step import decode_burst
from jllama.errors import JllamaError
from jllama.layers.cache import KVCache
from tests.support.decoding import CPU, start

V, S, HOW = 61, 16, Way(CPU)


def begin(config, *, batch=1, limit=9, logits=0.0, stop_ids=(), **settings):
    """A state whose first token came from the same logits everywhere, and that token."""
    cache = KVCache.empty(config, batch=batch, max_len=S, dtype="float32")
    return start(
        cache.holding(np.full((batch,), 3, np.int32)),
        jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (batch, V)),
        prompts=[[0, 0, 0]] * batch,
        keys=np.arange(2 * batch, dtype=np.uint32).reshape(batch, 2),
        limit=limit,
        stop_ids=stop_ids,
        **settings,
    )


def test_each_token_has_a_random_number_of_its_own(tiny_config):
    """On flat logits the draw shows it: token = floor(u * V), u from the row's key and the position."""
    state, *_ = begin(tiny_config, batch=2, temperature=1.0)
    drawn = [state.token]
    for _ in range(8):
        state = take_token(state, jnp.zeros((2, V), jnp.float32), HOW)
        drawn.append(state.token)
    for row, key in enumerate(np.arange(4, dtype=np.uint32).reshape(2, 2)):
        base = jax.random.wrap_key_data(jnp.asarray(key))
        uniform = [jax.random.uniform(jax.random.fold_in(base, position)) for position in range(9)]
        assert [int(tokens[row]) for tokens in drawn] == [int(u * V) for u in uniform]
    assert len({int(tokens[0]) for tokens in drawn}) > 3


def test_the_prompts_cache_is_donated_to_the_state(tiny_config, tiny_params):
    cache = KVCache.empty(tiny_config, batch=1, max_len=S, dtype="float32")
    logits, filled = prefill(tiny_config, tiny_params, cache, [[1, 2, 3]])
    assert all(leaf.is_deleted() for leaf in (*cache.keys, *cache.values))
    state, *_ = start(filled, logits)
    assert all(leaf.is_deleted() for leaf in (*filled.keys, *filled.values))
    assert not state.cache.keys[0].is_deleted()


def test_the_loop_ends_with_the_last_row(tiny_config, tiny_params):
    """A further step would write keys behind the rows that are done."""
    state, first, _ = begin(tiny_config, batch=2, limit=1)
    assert np.asarray(first.done).all()
    before = jax.tree.map(np.array, state.cache)
    state, block = decode_burst(tiny_config, tiny_params, state, np.int32(5), HOW)
    assert (np.asarray(block.tokens) == NO_TOKEN).all()
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, state.cache))


def test_the_loop_takes_as_many_steps_as_it_is_told(tiny_config, tiny_params):
    state, *_ = begin(tiny_config, limit=100)
    for steps, held in ((1, 4), (5, 9)):
        state, block = decode_burst(tiny_config, tiny_params, state, np.int32(steps), HOW)
        assert state.cache.length.tolist() == [held]
        assert (np.asarray(block.tokens) != NO_TOKEN).sum() == steps


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_token_of_a_block_that_is_not_finite_is_handed_out(tiny_config, tiny_params, bad):
    state, first, how = begin(tiny_config, logits=[bad] + [0.0] * (V - 1))
    assert np.asarray(first.done).all()
    seen = []
    with pytest.raises(JllamaError, match="not finite"):
        seen.extend(Decoder(tiny_config, tiny_params, state, first, how))
    assert seen == []


def test_nor_of_a_later_one(tiny_config, tiny_params):
    state, first, how = begin(tiny_config, limit=100)
    broken = dataclasses.replace(tiny_params, norm=tiny_params.norm * jnp.nan)
    seen = []
    with pytest.raises(JllamaError, match="not finite"):
        seen.extend(Decoder(tiny_config, broken, state, first, how))
    assert [block.tolist() for block in seen] == [first.tokens.tolist()]


def test_a_row_that_is_not_finite_ends_for_good_and_its_neighbour_goes_on(tiny_config, tiny_params):
    state, *_ = begin(tiny_config, batch=2, limit=100)
    keys = state.cache.keys[0].at[0, :, 0].set(jnp.nan)
    cache = dataclasses.replace(state.cache, keys=(keys, *state.cache.keys[1:]))
    state, block = decode_burst(
        tiny_config, tiny_params, dataclasses.replace(state, cache=cache), np.int32(5), HOW
    )
    assert (block.healthy.tolist(), block.done.tolist()) == ([False, True], [True, False])
    assert state.generated.tolist() == [2, 6]


@pytest.mark.parametrize(
    ("steps", "seconds", "then"),
    [
        (1, 0.01, 2),
        (4, 0.049, 8),
        (16, 0.01, 16),
        (8, 0.05, 8),
        (8, 0.2, 8),
        (8, 0.201, 4),
        (16, 9.0, 8),
        (1, 9.0, 1),
    ],
)
def test_blocks_double_while_they_are_fast_and_halve_when_slow(steps, seconds, then):
    assert _next_steps(steps, seconds, target=0.1) == then


def test_a_rows_limit_and_stop_ids(tiny_config):
    """Which token is its last; what comes later does not count."""
    chosen = jnp.zeros((1, V), jnp.float32).at[0, 7].set(1.0)
    for more, count in ((dict(limit=3), 3), (dict(stop_ids=[7]), 1), (dict(limit=1), 1)):
        state, *_ = begin(tiny_config, logits=chosen, **more)
        for _ in range(4):
            state = take_token(state, chosen, HOW)
        assert state.generated.tolist() == [count]
        assert state.done.tolist() == [True]
        assert state.counts.answer[0, 7] == count


def test_a_row_that_is_done_stays_healthy_whatever_its_logits(tiny_config):
    state, *_ = begin(tiny_config, batch=2)
    state = dataclasses.replace(state, done=jnp.array([True, False]))
    state = take_token(state, jnp.full((2, V), jnp.nan), HOW)
    np.testing.assert_array_equal(state.healthy, [True, False])
