"""Slots: a text is the same whatever its slot, its neighbours, the program's size and what was copied."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.engine.decoder import read_prompt
from jllama.engine.slots import Slots
from jllama.kernels.target import Target
from tests.support.decoding import empty_slots, row_of, short_chunks, texts

MAX_LEN = 64
PROMPTS = [[3, 1, 4, 1, 5], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4], [1], [9, 9, 8, 2, 4, 4, 3]]
SETTINGS = [{}, dict(temperature=1.0), dict(temperature=0.8, top_p=0.9), dict(frequency_penalty=0.7)]


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    short_chunks(monkeypatch)


@pytest.fixture(params=["kernels", "xla"])
def slots(request, tiny_config, tiny_params, monkeypatch):
    made = Slots.empty(tiny_config, tiny_params, slots=6, max_len=MAX_LEN, dtype="float32", stops=4)
    made.target = Target("cpu", kernels=request.param == "kernels")
    return made


def alone(config, params, prompt, seed=0, **options):
    """The tokens of a text by itself, in slots of one row."""
    return texts(empty_slots(config, params, max_len=MAX_LEN), [prompt], keys=[(0, seed)], **options)[0]


def begin(slots, slot, prompt, start=0, seed=0, **options):
    """The first token of a text, whose first `start` tokens the slot holds."""
    row = row_of(slots.config, prompt, key=(0, seed), **options)
    logits = read_prompt(slots, row.prompt, start, slot=slot)
    return take(slots.begin_together([(slot, row, 0)], logits))[0]


def take(burst):
    return [[int(token) for token in row if token >= 0] for row in np.asarray(burst.tokens)]


def run(slots, tokens, order, steps=16):
    """Adds a burst's tokens to those of the slots in `order`."""
    for slot, new in zip(order, take(slots.run(order, steps)), strict=False):
        tokens[slot] += new


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [5, 2, 0, 3]])
def test_texts_together_are_what_they_are_alone(slots, order):
    config, params = slots.config, slots.params
    tokens = {}
    for number, slot in enumerate(order):  # one after the other, while the others go on
        tokens[slot] = begin(slots, slot, PROMPTS[number], seed=number, **SETTINGS[number])
        run(slots, tokens, sorted(tokens), steps=3)
    for _ in range(3):
        run(slots, tokens, list(reversed(order)))
    for number, slot in enumerate(order):
        wanted = alone(config, params, PROMPTS[number], seed=number, **SETTINGS[number])
        assert tokens[slot] == wanted, (number, slot)


def test_of_two_slots_each_is_its_own(tiny_config, tiny_params):
    """Read, begun and run by itself, whichever comes first, then together in any order."""
    pair = Slots.empty(tiny_config, tiny_params, slots=2, max_len=MAX_LEN, dtype="float32", stops=4)
    tokens = {1: begin(pair, 1, PROMPTS[1], seed=1, temperature=1.0)}
    run(pair, tokens, [1], steps=3)
    tokens[0] = begin(pair, 0, PROMPTS[3], frequency_penalty=0.7)
    run(pair, tokens, [1, 0], steps=3)
    run(pair, tokens, [0], steps=2)
    for _ in range(2):
        run(pair, tokens, [0, 1])
    assert tokens[1] == alone(tiny_config, tiny_params, PROMPTS[1], seed=1, temperature=1.0)
    assert tokens[0] == alone(tiny_config, tiny_params, PROMPTS[3], frequency_penalty=0.7)


def test_each_row_has_an_end_of_its_own(slots):
    config, params = slots.config, slots.params
    whole = alone(config, params, PROMPTS[0])
    tokens = {0: begin(slots, 0, PROMPTS[0], limit=5), 1: begin(slots, 1, PROMPTS[0], stop_ids=whole[7:8])}
    tokens[2] = begin(slots, 2, PROMPTS[0])
    for _ in range(2):
        run(slots, tokens, [0, 1, 2])
    assert tokens[0] == whole[:5]
    assert tokens[1] == whole[: whole.index(whole[7]) + 1]
    assert tokens[2] == whole


def test_a_row_that_pauses_goes_on_where_it_was(slots):
    tokens = {0: begin(slots, 0, PROMPTS[0]), 1: begin(slots, 1, PROMPTS[1])}
    run(slots, tokens, [0], steps=4)
    run(slots, tokens, [1], steps=5)  # a program of two rows would take the other one along, paused
    run(slots, tokens, [1, 0])
    run(slots, tokens, [0, 1])
    for slot in (0, 1):
        assert tokens[slot] == alone(slots.config, slots.params, PROMPTS[slot])


def test_a_copied_prefix_gives_the_text_that_was_read_whole(slots):
    prompt = [*PROMPTS[1], *PROMPTS[3]]
    other = [*PROMPTS[1], 5, 6]
    wanted = alone(slots.config, slots.params, other)
    tokens = {3: begin(slots, 3, prompt)}
    run(slots, tokens, [3], steps=2)
    slots.copy_prefix(3, 1, len(PROMPTS[1]))
    run(slots, tokens, [3], steps=2)  # the copy is paused meanwhile, and must not be written to
    tokens[1] = begin(slots, 1, other, start=len(PROMPTS[1]))
    for _ in range(2):
        run(slots, tokens, [3, 1])
    assert tokens[1] == wanted
    assert tokens[3] == alone(slots.config, slots.params, prompt)


def test_a_slot_that_is_given_to_another_text_forgets_the_first(slots):
    tokens = {2: begin(slots, 2, PROMPTS[1], temperature=1.0, seed=5)}
    run(slots, tokens, [2], steps=7)
    tokens = {2: begin(slots, 2, PROMPTS[0], frequency_penalty=0.7)}
    for _ in range(2):
        run(slots, tokens, [2])
    assert tokens[2] == alone(slots.config, slots.params, PROMPTS[0], frequency_penalty=0.7)


def test_poison_in_free_slots_reaches_nobody(slots):
    if not slots.target.kernels:
        pytest.skip("plain XLA multiplies what is out of sight by zero: `Slots.clear` is for that")
    cache = slots.state.cache
    poisoned = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), (cache.keys, cache.values))
    cache = dataclasses.replace(cache, keys=poisoned[0], values=poisoned[1])
    slots.state = dataclasses.replace(slots.state, cache=cache)
    tokens = {4: begin(slots, 4, PROMPTS[0]), 1: begin(slots, 1, PROMPTS[1])}
    for _ in range(2):
        run(slots, tokens, [4, 1])
    assert tokens[4] == alone(slots.config, slots.params, PROMPTS[0])


def test_a_row_that_is_not_finite_ends_alone(slots):
    tokens = {0: begin(slots, 0, PROMPTS[0]), 1: begin(slots, 1, PROMPTS[1])}
    cache = slots.state.cache
    keys = cache.keys[0].at[0, :, 0].set(jnp.nan)
    cache = dataclasses.replace(cache, keys=(keys, *cache.keys[1:]))
    slots.state = dataclasses.replace(slots.state, cache=cache)
    burst = slots.run([0, 1], 16)
    assert np.asarray(burst.healthy).tolist() == [False, True]
    tokens[1] += take(burst)[1]
    run(slots, tokens, [1])
    assert tokens[1] == alone(slots.config, slots.params, PROMPTS[1])
    slots.clear(0)
    tokens = {0: begin(slots, 0, PROMPTS[3])}
    for _ in range(2):
        run(slots, tokens, [0])
    assert tokens[0] == alone(slots.config, slots.params, PROMPTS[3])


def test_nothing_is_copied_or_moved(slots):
    if not slots.target.kernels:
        pytest.skip("plain XLA gathers: it is the oracle")
    place = slots.state.cache.keys[0].unsafe_buffer_pointer()
    begin(slots, 0, PROMPTS[1])
    slots.copy_prefix(0, 1, 8)
    begin(slots, 1, PROMPTS[1], start=8)
    for order in ([0], [0, 1], [1, 0]):
        slots.run(order, 4)
        assert slots.state.cache.keys[0].unsafe_buffer_pointer() == place
