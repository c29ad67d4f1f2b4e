"""Steps in which masks say what may come: which rows are fed, and when; the programs are played."""

from types import SimpleNamespace

import numpy as np
import pytest

from jllama.engine import masked_steps
from jllama.engine.masked_steps import MaskedSteps
from jllama.engine.state import Way
from tests.support.decoding import GPU, empty_slots

WAY = Way(GPU)


@pytest.fixture
def steps(monkeypatch):
    """Of five slots and 40 tokens; `notes` holds the programs that ran."""
    notes = []

    def feeder(target, batched):
        def feed(config, params, state, logits, numbers):
            notes.append(("feed", batched, logits, numbers.tolist()))
            return state + 1, f"logits {state + 1}"

        return feed

    def choose(state, logits, mask, numbers, *, how):
        notes.append(("choose", logits, mask.tolist(), numbers.tolist()))
        assert how is WAY
        return state + 1, f"burst {state}"

    monkeypatch.setattr(masked_steps, "feeder", feeder)
    monkeypatch.setattr(masked_steps, "choose", choose)
    monkeypatch.setattr(masked_steps.sharding, "beside", lambda params, zeros: zeros.shape)
    made = MaskedSteps(SimpleNamespace(vocab_size=40), "params", 5)
    made.notes = notes
    return made


def rows(*slots):
    return np.array(slots, np.int32)


def test_rows_that_were_not_fed_are_fed_first_and_once(steps):
    mask = np.array([[1, 2], [3, 4]], np.int32)
    assert not steps.pending([0, 1, 2, 3, 4])
    state, burst = steps.choose(10, rows(4, 1, 0), 2, mask, WAY)
    assert (state, burst) == (12, "burst 11")
    assert steps.notes == [
        ("feed", True, (5, 40), [4, 1, 0, 2]),
        ("choose", "logits 11", [[1, 2], [3, 4], [-1, -1]], [4, 1, 0, 2]),
    ]
    assert not steps.pending([4, 1, 0]), "what was chosen is to be fed"
    steps.notes.clear()
    assert steps.feed(20, rows(4, 1, 0), 2, WAY) == 21
    assert [steps.pending([slot]) for slot in range(5)] == [False, True, False, False, True]
    steps.choose(21, rows(1, 4, 2), 2, mask, WAY)
    assert [note[0] for note in steps.notes] == ["feed", "choose"]
    assert steps.notes[-1][1] == "logits 21"
    assert not steps.pending(range(5))


def test_only_those_that_wait_are_fed_and_the_others_fill_the_program(steps):
    steps.feed(0, rows(4, 1), 2, WAY)
    steps.forget(1)
    assert [steps.pending([slot]) for slot in (1, 4)] == [False, True]
    steps.feed(0, rows(3), 1, WAY)
    steps.notes.clear()
    steps.choose(1, rows(4, 1, 3), 2, np.zeros((2, 2), np.int32), WAY)
    assert [note[-1] for note in steps.notes] == [[1, 4, 3, 1], [4, 1, 3, 2]]
    assert [steps.pending([slot]) for slot in (4, 1, 3)] == [False, False, True]


def test_without_masks_any_token_may_come(steps):
    steps.choose(0, rows(2), 1, None, WAY)
    assert steps.notes == [("feed", False, (5, 40), [2, 1]), ("choose", "logits 1", [[-1, -1]], [2, 1])]


class Masked:
    """Steps that note what is asked of them."""

    def __init__(self, pending):
        self.notes, self._pending = [], pending

    def pending(self, slots):
        return self._pending

    def choose(self, state, rows, live, masks, how):
        self.notes.append(("choose", rows.tolist(), live, masks is not None))
        return state, SimpleNamespace(underway=lambda: "burst")

    def feed(self, state, rows, live, how):
        self.notes.append(("feed", rows.tolist(), live))
        return state


@pytest.mark.parametrize(("masks", "pending"), [(True, False), (True, True), (False, True)])
def test_the_next_logits_are_under_way_where_masks_follow(tiny_config, tiny_params, masks, pending):
    """Else a burst follows, which feeds the tokens itself."""
    slots = empty_slots(tiny_config, tiny_params, 4, max_len=8)
    slots._masked = Masked(pending)
    given = np.zeros((2, 2), np.int32) if masks else None
    assert slots.run([3, 1], 16, given) == "burst"
    chosen = ("choose", [3, 1], 2, masks)
    assert slots._masked.notes == ([chosen, ("feed", [3, 1], 2)] if masks else [chosen])
