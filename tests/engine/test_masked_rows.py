"""Steps by masks: what a step takes along, and rows in any order beside any others."""

import jax
import numpy as np
import pytest

from jllama import sharding
from jllama.engine import masked_steps
from tests.support.decoding import empty_slots, started

PROMPTS = [[3, 1, 4, 1, 5], [2, 7, 1, 8], [1, 6]]
SETTINGS = dict(limit=20, temperature=1.0, frequency_penalty=0.5)
MASKS = np.random.default_rng(0).integers(-(2**31), 2**31, size=(12, 3, 2)).astype(np.int32)


@pytest.fixture
def calls(monkeypatch):
    """What the programs are called with, and what is sent to the device before."""
    noted, beside = [], sharding.beside

    def noting(name, make):
        def made(*key):
            program = make(*key)
            return lambda *given: (noted.append((name, given)), program(*given))[1]

        return made

    def sent(near, array):
        noted.append(("sent", array.shape))
        return beside(near, array)

    for name in ("chooser", "feeder"):
        monkeypatch.setattr(masked_steps, name, noting(name, getattr(masked_steps, name)))
    monkeypatch.setattr(masked_steps.sharding, "beside", sent)
    return noted


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_step_takes_a_mask_along_and_nothing_else(tiny_config, tiny_params, calls, count):
    slots = empty_slots(tiny_config, tiny_params, slots=max(count, 2) if count > 1 else 1)
    started(slots, PROMPTS[:count], **SETTINGS)
    slots.run(range(count), 1, MASKS[0, :count])
    calls.clear()
    for masks in MASKS[1:4, :count]:
        slots.run(range(count), 1, masks)
    assert [name for name, _ in calls] == ["sent", "chooser", "feeder"] * 3
    assert [given for name, given in calls if name == "sent"] == [(count, 2)] * 3
    programs = [given for name, given in calls if name != "sent"]
    assert len({id(given[-1]) for given in programs}) == 1
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(programs))


def test_a_choice_sees_no_cache_and_no_weights(tiny_config, tiny_params, calls):
    slots = empty_slots(tiny_config, tiny_params, slots=3)
    started(slots, PROMPTS, **SETTINGS)
    slots.run(range(3), 1, MASKS[0])
    cache = {id(leaf) for leaf in jax.tree.leaves(slots.state.cache)}
    slots.run(range(3), 1, MASKS[1])
    choices = [given for name, given in calls if name == "chooser"]
    assert max(leaf.ndim for leaf in jax.tree.leaves(choices)) == 2
    assert cache.isdisjoint(map(id, jax.tree.leaves(choices)))


def alone(config, params, number, steps, **options):
    """What a row is told in slots of its own, step for step."""
    slots = empty_slots(config, params)
    started(slots, [PROMPTS[number]], keys=[(0, number)], **SETTINGS | options)
    return [told(slots.run([0], 1, MASKS[step, [number]]), 0) for step in range(steps)]


def told(burst, row):
    """A row's token, and the scores that it was told with."""
    token = np.asarray(burst.tokens)[row].tolist()
    return token, None if burst.scores is None else round(float(burst.scores.chosen[row, 0]), 4)


@pytest.mark.parametrize(
    ("scores", "orders"),
    [
        (False, [[0, 1, 2]] * 3),
        (True, [[2, 0, 1], [1, 2, 0], [0, 2, 1]]),  # all slots in other orders
        (False, [[0, 1, 2], [1], [2, 0], [0, 1, 2], [2]]),  # some wait with their logits
        (True, [[1], [0, 2], [2, 1, 0], [0], [1, 2]]),
    ],
    ids=str,
)
def test_rows_in_any_order_are_told_what_they_are_alone(tiny_config, tiny_params, orders, scores):
    slots = empty_slots(tiny_config, tiny_params, slots=3)
    started(slots, PROMPTS, keys=[(0, row) for row in range(3)], **SETTINGS, scores=scores)
    came = [[], [], []]
    for order in orders:
        masks = np.stack([MASKS[len(came[row]), row] for row in order])
        burst = slots.run(order, 1, masks)
        for place, row in enumerate(order):
            came[row].append(told(burst, place))
    for row in range(3):
        assert came[row] == alone(tiny_config, tiny_params, row, len(came[row]), scores=scores)
    assert all(token in range(61) for row in came for (token,), _ in row)


def test_bursts_go_on_behind_a_mask_as_if_there_had_been_none(tiny_config, tiny_params):
    """All bits set: the same tokens as bursts give; the last choice feeds nothing, since a burst does."""
    made = [empty_slots(tiny_config, tiny_params, slots=3) for _ in range(2)]
    for slots in made:
        started(slots, PROMPTS, keys=[(0, row) for row in range(3)], **SETTINGS)
    free, held = made
    wanted = np.asarray(free.run(range(3), 8).tokens)[:, :8]
    came = [held.run([2, 0, 1], 1, np.full((3, 2), -1, np.int32)), held.run([0, 1, 2], 1)]
    steps = [np.asarray(came[0].tokens)[[1, 2, 0]], np.asarray(came[1].tokens)]
    rest = np.asarray(held.run(range(3), 6).tokens)[:, :6]
    assert np.array_equal(np.concatenate([*steps, rest], axis=1), wanted)
