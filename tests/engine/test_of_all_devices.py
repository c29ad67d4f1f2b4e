"""What several devices have to agree on, without them: choices, followers, which programs are compiled."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.engine import following, slot_warm_up, state
from jllama.engine.rows import PROMPT_SIZES, chunk_size
from jllama.engine.slots import SCORED, Slots
from jllama.engine.state import Way, largest_of_all, take_token
from jllama.layers.cache import KVCache
from jllama.layers.shards import AXIS, Shards
from jllama.sharding import CACHE, WHOLE, mesh


def test_the_largest_logit_of_all_devices():
    logits = jnp.asarray([[0.0, 3.0, 1.0], [2.0, 1.0, 5.0]])
    token, total = largest_of_all(logits, 6, None)
    assert (token.tolist(), total.tolist()) == ([1, 2], [4.0, 8.0])
    given = []

    def largest_and_sum(values, token, total):
        given.append((values.tolist(), token.tolist(), total.tolist()))
        return jnp.array([1, 0], jnp.int32), jnp.array([2, 1], jnp.int32), total + 1.0

    shards = SimpleNamespace(largest_and_sum=largest_and_sum)
    token, total = largest_of_all(logits, 6, shards)
    assert given == [([3.0, 5.0], [1, 2], [4.0, 8.0])]
    assert (token.tolist(), total.tolist()) == ([5, 1], [5.0, 9.0])  # the second device's begin at 3
    assert largest_of_all(logits, 3, shards)[0].tolist() == [1, 2]  # each has all of them
    assert len(given) == 1


def test_sums_and_the_largest_among_devices():
    """Each device's own are a row here; of equal ones it is the device with the lower ids that counts."""
    shards = Shards(count=3)
    values = jnp.asarray([[1.0, 7.0, 2.0, -3.0], [5.0, 7.0, 2.0, -1.0], [4.0, 6.0, 9.0, -1.0]])
    index = jnp.arange(12, dtype=jnp.int32).reshape(3, 4)
    at_once = partial(jax.vmap, axis_name=AXIS)
    device, place, total = at_once(shards.largest_and_sum)(values, index, values * 2.0)
    for at in range(3):  # the same on each
        assert device[at].tolist() == [1, 0, 2, 1]
        assert place[at].tolist() == [4, 1, 10, 7]
        assert total[at].tolist() == [20.0, 40.0, 26.0, -10.0]
    assert at_once(shards.total)(values)[1].tolist() == [10.0, 20.0, 13.0, -5.0]
    gathered = at_once(shards.gathered)(values.reshape(3, 2, 2))
    assert gathered[2].tolist() == [[1.0, 7.0, 5.0, 7.0, 4.0, 6.0], [2.0, -3.0, 2.0, -1.0, 9.0, -1.0]]


@pytest.mark.parametrize("own", [None, "the model's"])
@pytest.mark.parametrize("targets", [None, "the target's"])
@pytest.mark.parametrize(
    ("options", "gathered"), [({}, False), ({"scores": True}, True), ({"floors": True}, True)]
)
def test_what_the_largest_logit_is_of(targets, own, options, gathered, monkeypatch):
    """Each device's own where nothing else is asked of them; `shards` of the model go before the target's."""
    given = []

    def largest_of_all(logits, vocab_size, shards):
        given.append((logits.tolist(), vocab_size, shards))
        raise EOFError  # the rest is no matter

    def whole(logits, vocab_size):
        assert vocab_size == 4
        return jnp.concatenate([logits, logits + 2.0], axis=-1)

    monkeypatch.setattr(state, "largest_of_all", largest_of_all)
    before = SimpleNamespace(
        counts=SimpleNamespace(answer=jnp.zeros((1, 4), jnp.int32)),
        done=jnp.zeros(1, bool),
        stop_ids=jnp.full((1, 2), state.NO_TOKEN),
        generated=jnp.zeros(1, jnp.int32),
        floor=jnp.zeros(1, jnp.int32),
    )
    target = SimpleNamespace(whole=whole, shards=targets)
    with pytest.raises(EOFError):
        take_token(before, jnp.asarray([[0.0, 1.0]]), Way(target, greedy=True, **options), shards=own)
    logits = [[0.0, 1.0, 2.0, 3.0]] if gathered else [[0.0, 1.0]]
    assert given == [(logits, 4, own or targets)]


@pytest.mark.parametrize("max_len", [2, 3, 17, 64, 100, 513, 1000])
@pytest.mark.parametrize("sizes", [(512,), (16, 64, 512), (32, 128, 512, 2048)])
def test_every_chunk_that_a_prompt_may_be_cut_into_is_compiled(max_len, sizes):
    def next_chunk(left, scored=False):
        return chunk_size(left, [size for size in sizes if size <= SCORED] or sizes if scored else sizes)

    slots = SimpleNamespace(max_len=max_len, next_chunk=next_chunk)
    every = {next_chunk(left, scored) for left in range(1, max_len) for scored in (False, True)}
    assert slot_warm_up._chunks(slots) == sorted(every)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("max_len", [2, 511, 513, 600, 5000, 40_000])
def test_every_size_of_a_prompt_s_tokens_is_compiled(max_len, alone):
    slots = SimpleNamespace(alone=alone, max_len=max_len)
    every = {Slots.prompt_size(slots, count) for count in range(1, max_len)}
    assert {Slots.prompt_size(slots, count) for count in slot_warm_up._powers(max_len)} == every
    assert every <= {*PROMPT_SIZES, max_len}
    for count in (1, max_len - 1):
        assert count <= Slots.prompt_size(slots, count) <= max_len


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ((None, 3, 16, 5), ("slots", 3, 16, 5)),
        ((None, 0, 16, 5), ("around", "a new cache of 16")),
        (("a cache", 0, 16, 5), ("around", "a cache")),
    ],
)
def test_who_follows_makes_what_the_leader_has(monkeypatch, asked, made):
    seen = []

    class Followed:
        def __init__(self, make):
            self.make = make

        def run(self):
            seen.append(self.make(*asked))

    class Made:
        def __new__(cls, config, params, state):
            assert (config, params) == ("config", "params")
            return ("around", state)

        @staticmethod
        def empty(config, params, *, slots, stops, max_len, dtype):
            assert (config, params, dtype) == ("config", "params", "bfloat16")
            return ("slots", slots, max_len, stops)

    def empty_cache(config, params, *, batch, max_len, dtype):
        assert (batch, dtype) == (1, "bfloat16")
        return f"a new cache of {max_len}"

    monkeypatch.setattr(following, "Follower", Followed)
    monkeypatch.setattr(following, "Slots", Made)
    monkeypatch.setattr(following.sharding, "empty_cache", empty_cache)
    monkeypatch.setattr(following.DecodeState, "of_one", lambda cache: cache)
    following.follow("config", "params", "bfloat16")
    assert seen == [made]


def test_where_the_arguments_of_a_program_lie(tiny_config, tiny_params):
    cache = KVCache.empty(tiny_config, batch=2, max_len=4, dtype="float32")
    assert mesh._argument_spec(np.zeros(3), 2) == WHOLE
    assert mesh._argument_spec(cache, 2) == CACHE
    rows = mesh._argument_spec(cache.at(jnp.array([0], jnp.int32)), 2)
    assert (rows.rows, rows.keys) == (WHOLE, CACHE.keys)
    assert mesh._argument_spec(tiny_params, 2) == mesh.specs(tiny_params, 2)


def test_what_is_no_parameter_keeps_its_shape(tiny_params):
    shape = mesh._localised(2)
    assert shape(5) == 5
    leaves, same = jax.tree.leaves(tiny_params), jax.tree.leaves(shape(tiny_params))
    assert all(one is other for one, other in zip(leaves, same, strict=True))
