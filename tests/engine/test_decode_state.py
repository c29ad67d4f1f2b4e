"""What passes from step to step: randomness, the cache, the end of a row, how many steps come next."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.engine.decoder import _next_steps, bursts, read_prompt
from jllama.engine.state import NO_TOKEN, Way, not_finite, take_token
from jllama.engine.step import BURST, HURRIED
from jllama.errors import JllamaError
from tests.support.decoding import CPU, as_on_a_gpu, empty_slots, row_of
from tests.support.helpers import random_params

V, S, HOW = 61, 16, Way(CPU)


def begin(config, params=None, *, batch=1, logits=0.0, limit=9, **options):
    """Slots that hold three tokens each and whose first new one came from the same logits, and that one."""
    slots = empty_slots(config, random_params(config) if params is None else params, batch, S)
    held = dataclasses.replace(slots.state.cache, length=jnp.full((batch,), 3, jnp.int32))
    slots.state = dataclasses.replace(slots.state, cache=held)
    keys = np.arange(2 * batch, dtype=np.uint32).reshape(batch, 2)
    rows = [row_of(config, [0, 0, 0], key=key, limit=limit, **options) for key in keys]
    logits = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (batch, V))
    return slots, slots.begin_together([(slot, row, slot) for slot, row in enumerate(rows)], logits)


def test_each_token_has_a_random_number_of_its_own(tiny_config):
    """On flat logits the draw shows it: token = floor(u * V), u from the row's key and the position."""
    state = begin(tiny_config, batch=2, temperature=1.0)[0].state
    drawn = [state.token]
    for _ in range(8):
        state = take_token(state, jnp.zeros((2, V), jnp.float32), HOW)
        drawn.append(state.token)
    for row, key in enumerate(np.arange(4, dtype=np.uint32).reshape(2, 2)):
        base = jax.random.wrap_key_data(jnp.asarray(key))
        uniform = [jax.random.uniform(jax.random.fold_in(base, position)) for position in range(9)]
        assert [int(tokens[row]) for tokens in drawn] == [int(u * V) for u in uniform]
    assert len({int(tokens[0]) for tokens in drawn}) > 3


@pytest.mark.parametrize("slots", [1, 2])
def test_the_cache_is_donated_from_call_to_call(tiny_config, tiny_params, slots):
    made = empty_slots(tiny_config, tiny_params, slots, S)
    before, row = made.state, row_of(tiny_config, [1, 2, 3])
    logits = read_prompt(made, row.prompt)
    read = made.state
    assert all(leaf.is_deleted() for leaf in (*before.cache.keys, *before.cache.values))
    made.begin_together([(0, row, 0)], logits)
    assert all(leaf.is_deleted() for leaf in (*read.cache.keys, *read.cache.values))
    assert slots == 1 or read.token.is_deleted()  # a single row brings all but the cache
    assert not made.state.cache.keys[0].is_deleted()


def test_the_loop_ends_with_the_last_row(tiny_config, tiny_params):
    """A further step would write keys behind the rows that are done."""
    slots, first = begin(tiny_config, tiny_params, batch=2, limit=1)
    assert np.asarray(first.done).all()
    before = jax.tree.map(np.array, slots.state.cache)
    assert (np.asarray(slots.run([0, 1], 5).tokens) == NO_TOKEN).all()
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, slots.state.cache))


def test_the_loop_takes_as_many_steps_as_it_is_told(tiny_config, tiny_params):
    slots, _ = begin(tiny_config, tiny_params, limit=100)
    for steps, held in ((1, 4), (5, 9)):
        block = slots.run([0], steps)
        assert slots.state.cache.length.tolist() == [held]
        assert (np.asarray(block.tokens) != NO_TOKEN).sum() == steps


def test_the_loop_of_a_gpu_takes_a_hurried_number_of_steps_or_all(tiny_config, tiny_params, monkeypatch):
    as_on_a_gpu(monkeypatch)
    slots, _ = begin(tiny_config, tiny_params, limit=100)
    for steps, held in ((HURRIED, 3 + HURRIED), (1, 3 + 2 * HURRIED), (HURRIED + 1, S)):
        block = slots.run([0], steps)
        assert slots.state.cache.length.tolist() == [held]
    assert block.tokens.shape == (1, BURST)


def test_a_floor_bars_the_ends_alone(tiny_config):
    """Places of a row without an end bar nothing: not the last token of the vocabulary either."""
    for wanted, chosen in ((V - 1, V - 1), (V - 2, V - 2), (5, 0)):
        state = begin(tiny_config, stop_ids=[5], floor=4)[0].state
        logits = jnp.zeros((1, V), jnp.float32).at[0, wanted].set(9.0)
        assert take_token(state, logits, Way(CPU, floors=True)).token.tolist() == [chosen]


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (jnp.float16, "float16: use --dtype=bfloat16$"),
        (jnp.bfloat16, "bfloat16: is the checkpoint damaged"),
        (jnp.float32, "float32: is the checkpoint damaged"),
    ],
)
def test_what_is_advised_where_logits_are_no_numbers(dtype, words):
    with pytest.raises(JllamaError, match=f"the model's logits are not finite in {words}"):
        raise not_finite(jnp.dtype(dtype))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_token_of_a_block_that_is_not_finite_is_handed_out(tiny_config, tiny_params, bad):
    slots, first = begin(tiny_config, tiny_params, logits=[bad] + [0.0] * (V - 1))
    assert np.asarray(first.done).all()
    seen = []
    with pytest.raises(JllamaError, match="not finite"):
        seen.extend(bursts(slots, first))
    assert seen == []


def test_nor_of_a_later_one(tiny_config, tiny_params):
    broken = dataclasses.replace(tiny_params, norm=tiny_params.norm * jnp.nan)
    slots, first = begin(tiny_config, broken, limit=100)
    seen = []
    with pytest.raises(JllamaError, match="not finite"):
        seen.extend(bursts(slots, first))
    assert [block.tolist() for block in seen] == [first.tokens.tolist()]


def test_a_row_that_is_not_finite_ends_for_good_and_its_neighbour_goes_on(tiny_config, tiny_params):
    slots, _ = begin(tiny_config, tiny_params, batch=2, limit=100)
    cache = slots.state.cache
    cache = dataclasses.replace(cache, keys=(cache.keys[0].at[0, :, 0].set(jnp.nan), *cache.keys[1:]))
    slots.state = dataclasses.replace(slots.state, cache=cache)
    block = slots.run([0, 1], 5)
    assert (block.healthy.tolist(), block.done.tolist()) == ([False, True], [True, False])
    assert slots.state.generated.tolist() == [2, 6]
    block = slots.run([0, 1], 2)
    assert (block.healthy.tolist(), slots.state.healthy.tolist()) == ([False, True], [False, True])
    assert slots.state.generated.tolist() == [2, 8]


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
        state = begin(tiny_config, logits=chosen, **more)[0].state
        for _ in range(4):
            state = take_token(state, chosen, HOW)
        assert state.generated.tolist() == [count]
        assert state.done.tolist() == [True]
        assert state.counts.answer[0, 7] == count


def test_a_row_that_is_done_stays_healthy_whatever_its_logits(tiny_config):
    state = begin(tiny_config, batch=2)[0].state
    state = dataclasses.replace(state, done=jnp.array([True, False]))
    state = take_token(state, jnp.full((2, V), jnp.nan), HOW)
    np.testing.assert_array_equal(state.healthy, [True, False])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_leaves_what_it_names(tiny_config, temperature):
    """Whatever the logits; a row's own mask; a floor bars the ends, but not where they alone are left."""
    options = dict(batch=2, temperature=temperature, stop_ids=[5, 7], floor=4)
    state, how = begin(tiny_config, **options)[0].state, Way(CPU, floors=True)
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, V)) * 30, jnp.float32)
    for wanted in ((60, 2), (5, 31), (32, 7)):
        new = take_token(state, logits, how, masks(*([token] for token in wanted)))
        assert new.token.tolist() == [*wanted]
    new = take_token(state, logits, how, masks([5, 9], [7, 5]))
    assert int(new.token[0]) == 9
    assert int(new.token[1]) in (5, 7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_mask_hides_no_sick_logits(tiny_config, bad):
    state = begin(tiny_config, batch=2)[0].state
    logits = jnp.zeros((2, V), jnp.float32).at[1, 3].set(bad)
    new = take_token(state, logits, HOW, masks([4], [4]))
    assert new.healthy.tolist() == [True, False]
    assert int(new.token[0]) == 4


def masks(*allowed):
    flags = np.zeros((len(allowed), 64), np.uint8)
    for row, tokens in zip(flags, allowed, strict=True):
        row[list(tokens)] = 1
    return jnp.asarray(np.packbits(flags, axis=1, bitorder="little").view(np.int32))
