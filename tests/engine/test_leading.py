"""What process 0 tells, and what becomes of it elsewhere: plans go along a list, slots are played."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jllama.engine import leading
from jllama.engine.leading import COPIED, FORGOTTEN, NEW, OPERATIONS, RESUMED, Follower
from jllama.engine.plans import packed_call, unpacked_call
from jllama.engine.rows import Piece
from jllama.engine.slots import Slots
from jllama.machine import processes
from tests.support.decoding import row_of

WHOLE = st.integers(-(2**31), 2**31 - 1)
DTYPES = {
    "int32": WHOLE,
    "uint32": st.integers(0, 2**32 - 1),
    "float32": st.floats(width=32, allow_nan=False),
    "bool": st.booleans(),
    "int64": WHOLE,
}


@st.composite
def arrays(draw):
    name = draw(st.sampled_from([*DTYPES]))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    zeros = draw(st.booleans())
    flat = [0 if zeros else draw(DTYPES[name]) for _ in range(int(np.prod(shape)))]
    return np.array(flat, name).reshape(shape)


VALUES = st.recursive(st.none() | WHOLE | arrays(), lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def same(ours, theirs):
    if isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for left, right in zip(ours, theirs, strict=True):
            same(left, right)
    else:
        assert ours == theirs


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 99), st.integers(0, 20), st.lists(VALUES, max_size=4))
def test_a_plan_is_read_as_it_was_written(slots, operation, arguments):
    words = packed_call(slots, operation, tuple(arguments))
    assert words.dtype == np.int32
    found = unpacked_call(words, None)
    assert found[:2] == (slots, operation)
    same(found[2], arguments)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("int32", [1, -5]),
        ("uint32", [7, 2**32 - 1]),
        ("float32", [1.5, -0.25]),
        ("bool", [True, False]),
        ("int64", [7, -3]),
    ],
)
def test_an_array_of_each_kind_comes_as_it_went(name, numbers):
    array = np.array([numbers], name)
    same(unpacked_call(packed_call(1, 2, (array,)), None)[2], [array])


def test_numbers_of_numpy_and_what_process_0_alone_asks(tiny_config):
    """A row goes without what it must match: process 0 fills the masks."""
    row = dataclasses.replace(row_of(tiny_config, [3, 1]), constraint=object())
    *_, (number, pair, sent) = unpacked_call(packed_call(1, 2, (np.int64(5), (1, np.int32(2)), row)), None)
    assert (number, pair, sent.constraint, sent.limit) == (5, [1, 2], None, row.limit)


def test_zeros_and_what_others_have_take_no_room():
    few = packed_call(1, 2, (np.zeros((9, 50_000), np.float32), jnp.ones((8, 99))))
    assert len(few) < 20
    *_, (zeros, last) = unpacked_call(few, "latest")
    assert (zeros.shape, zeros.dtype, zeros.any(), last) == (
        (9, 50_000),
        np.float32,
        False,
        "latest",
    )


class Group:
    """Of process 0 the plans that it tells; of another one those that it hears."""

    def __init__(self, rank, plans):
        self.rank, self.plans = rank, plans

    def tell(self, words):
        self.plans.append(words)

    def hear(self):
        return self.plans.pop(0)


class Told:
    """Slots with two methods that are told."""

    def __init__(self, name, cache=None):
        self.name, self.done, self.state = name, [], SimpleNamespace(cache=cache)

    def run(self, slots, steps, masks=None):
        self.done.append(("run", slots, steps, masks))
        return SimpleNamespace(tokens=1)

    def read_together(self, pieces, size):
        self.done.append(("read", pieces, size))
        return jnp.full((1, 2), size)

    def read_scored(self, slot, prompt, start, size):
        self.done.append(("scored", slot, start, size))
        return jnp.full((1, 2), -size), "scores"

    def begin_together(self, beginnings, logits, masks=None):
        self.done.append(("begin", beginnings, np.asarray(logits).tolist()))


@pytest.fixture
def plans(monkeypatch):
    """Plans that this process tells as process 0."""
    told = []
    monkeypatch.setattr(processes, "_group", Group(0, told))
    monkeypatch.setattr(leading, "_gone", [])
    return told


def followed(monkeypatch, plans):
    """The slots that a follower makes of these plans, and how each was made."""
    monkeypatch.setattr(processes, "_group", Group(1, [*plans, np.array([processes.END], np.int32)]))
    made = []

    def make(cache, slots, max_len, stops):
        made.append((Told(len(made), cache), (slots, max_len, stops)))
        return made[-1][0]

    follower = Follower(make)
    follower.run()
    return made, follower


def tell(plans, name, method, *arguments, **named):
    """As `told` does it, of a method that slots really have."""
    assert hasattr(Slots, method)
    operation = FORGOTTEN + 1 + OPERATIONS.index(method)
    plans.append(packed_call(name, operation, (*arguments, *named.values())))


def test_a_method_is_told_with_all_its_arguments_before_it_runs(plans, monkeypatch):
    monkeypatch.setattr(leading, "OPERATIONS", [*OPERATIONS])
    order = []

    class Some:
        name = 7

        @leading.told
        def act(self, first, second=None):
            order.append((len(plans), first, second))
            return "made"

    assert Some().act(3, second=4) == "made"
    assert order == [(1, 3, 4)]
    name, operation, arguments = unpacked_call(plans[0], None)
    assert (name, leading.OPERATIONS[operation - FORGOTTEN - 1], arguments) == (7, "act", [3, 4])
    monkeypatch.setattr(processes, "_group", Group(1, plans))
    Some().act(5)
    monkeypatch.setattr(processes, "_group", None)
    Some().act(6)
    assert len(plans) == 1
    assert order[1:] == [(1, 5, None), (1, 6, None)]


def test_followers_do_what_is_told_with_the_logits_of_their_own(plans, monkeypatch):
    leading.tell(4, NEW, 2, 64, 5)
    leading.tell(6, NEW, 1, 32, 3)
    pieces = [Piece(0, np.array([1, 2], np.int32), 0, 2)]
    tell(plans, 4, "read_together", pieces, 32)
    tell(plans, 6, "run", [0], 3, masks=None)  # gives no logits
    tell(plans, 4, "begin_together", [], jnp.zeros(1))
    tell(plans, 4, "read_scored", 1, np.array([1], np.int32), 0, 8)
    tell(plans, 4, "begin_together", [], jnp.zeros(1))
    ((four, size), (six, other)), _ = followed(monkeypatch, plans)
    assert (size, other) == ((2, 64, 5), (1, 32, 3))
    assert [entry[0] for entry in four.done] == ["read", "begin", "scored", "begin"]
    assert [entry[2] for entry in four.done if entry[0] == "begin"] == [[[32, 32]], [[-8, -8]]]
    assert six.done == [("run", [0], 3, None)]


def test_caches_are_made_copied_gone_on_with_and_forgotten(plans, monkeypatch):
    leading.tell(1, NEW, 0, 16, 4)
    leading.tell(2, COPIED, 1, 0, 16, 4)
    leading.tell(3, RESUMED, 1, 0, 16, 5)
    leading.forget(2)
    leading.forget(1)
    assert len(plans) == 3, "with the next operation"
    leading.tell(9, NEW, 0, 8, 4)
    heads = [unpacked_call(words, None)[:2] for words in plans[3:]]
    assert heads == [
        (1, FORGOTTEN),
        (2, FORGOTTEN),
        (9, NEW),
    ]
    cache = dict(keys=jnp.ones(3))

    def make(given, *sizes):
        return SimpleNamespace(state=SimpleNamespace(cache=cache if given is None else given), sizes=sizes)

    monkeypatch.setattr(processes, "_group", Group(1, [*plans[:3], np.array([processes.END], np.int32)]))
    follower = Follower(make)
    follower.run()
    one, two, three = (follower._slots[name] for name in (1, 2, 3))
    assert three.state.cache is one.state.cache
    assert two.state.cache["keys"] is not cache["keys"]
    np.testing.assert_array_equal(two.state.cache["keys"], cache["keys"])
    assert [each.sizes for each in (one, two, three)] == [(0, 16, 4), (0, 16, 4), (0, 16, 5)]
    monkeypatch.setattr(processes, "_group", Group(1, [*plans[3:], np.array([processes.END], np.int32)]))
    follower.run()
    assert sorted(follower._slots) == [3, 9]


@pytest.mark.parametrize("rank", [0, 1])
def test_who_is_not_alone_takes_no_cache_from_elsewhere(monkeypatch, rank):
    monkeypatch.setattr(processes, "_group", Group(rank, []))
    assert leading.followed()


def test_alone_nothing_is_told_or_kept(monkeypatch):
    monkeypatch.setattr(processes, "_group", None)
    monkeypatch.setattr(leading, "_gone", [])
    leading.tell(1, NEW, 0, 16, 4)
    leading.forget(1)
    assert leading._gone == []
    assert not leading.followed()
    assert leading.number() + 1 == leading.number()
