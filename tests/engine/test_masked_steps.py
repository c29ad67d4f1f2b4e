"""Steps in which masks say what may come: which rows are fed, and when; the programs are played."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.engine import masked_steps
from jllama.engine.masked_steps import MaskedSteps
from jllama.engine.state import DecodeState, Way
from jllama.layers.sampling import TokenCounts
from tests.support.decoding import CPU, GPU

WAY = Way(GPU)
CONFIG = SimpleNamespace(vocab_size=40, num_hidden_layers=0)
BURST = SimpleNamespace(underway=lambda: "burst")


@pytest.fixture
def steps(monkeypatch):
    """Of five slots and 40 tokens; `notes` holds the programs that ran. A cache counts them."""
    notes = []

    def feeder(config, weights, target, batched):
        def feed(leaves, cache, logits, token, done, numbers):
            notes.append(("feed", batched, logits, numbers.tolist()))
            return cache + 1, f"logits {cache + 1}"

        return feed

    def chooser(how):
        def choose(changing, kept, logits, mask, numbers):
            notes.append(("choose", logits, mask.tolist(), numbers.tolist()))
            return changing | {"token": f"behind {logits}"}, BURST

        return choose

    def beside(near, array):
        return array if array.dtype == np.int32 else array.shape

    monkeypatch.setattr(masked_steps, "feeder", feeder)
    monkeypatch.setattr(masked_steps, "chooser", chooser)
    monkeypatch.setattr(masked_steps.sharding, "beside", beside)
    made = MaskedSteps(CONFIG, "params", 5)
    made.notes = notes
    return made


def rows(*slots):
    return np.array(slots, np.int32)


def state(programs):
    """After so many programs."""
    counts = TokenCounts(prompt="prompt", answer="answer")
    return dataclasses.replace(DecodeState.of_one(programs), counts=counts, keys="keys")


def test_rows_that_were_not_fed_are_fed_first_and_once(steps):
    mask = np.array([[1, 2], [3, 4]], np.int32)
    assert not steps.pending([0, 1, 2, 3, 4])
    new, burst = steps.choose(state(10), rows(4, 1, 0), 2, mask, WAY)
    assert (new.cache, new.token, burst) == (11, "behind logits 11", BURST)
    numbers = [[4, 1, 0], [1, 1, 0], [0, 1, 2]]
    assert steps.notes == [
        ("feed", True, (5, 40), numbers),
        ("choose", "logits 11", [[1, 2], [3, 4], [-1, -1]], numbers),
    ]
    assert not steps.pending([4, 1, 0]), "what was chosen is to be fed"
    steps.notes.clear()
    assert steps.feed(state(20), rows(4, 1, 0), 2, WAY).cache == 21
    assert [steps.pending([slot]) for slot in range(5)] == [False, True, False, False, True]
    steps.choose(state(21), rows(1, 4, 2), 2, mask, WAY)
    assert [note[0] for note in steps.notes] == ["feed", "choose"]
    assert steps.notes[-1][1] == "logits 21"
    assert not steps.pending(range(5))


def test_only_those_that_wait_are_fed_and_the_others_fill_the_program(steps):
    steps.feed(state(0), rows(4, 1), 2, WAY)
    steps.begin(1, SimpleNamespace(prompt=[], limit=9, scores=False))
    assert [steps.pending([slot]) for slot in (1, 4)] == [False, True]
    steps.feed(state(0), rows(3), 1, WAY)
    steps.notes.clear()
    steps.choose(state(1), rows(4, 1, 3), 2, np.zeros((2, 2), np.int32), WAY)
    assert [note[-1][:2] for note in steps.notes] == [[[1, 4, 3], [1, 0, 0]], [[4, 1, 3], [1, 1, 0]]]
    assert [steps.pending([slot]) for slot in (4, 1, 3)] == [False, False, True]


def test_all_slots_stand_in_their_own_order(steps):
    masks = np.arange(6, dtype=np.int32).reshape(3, 2)
    steps.choose(state(0), rows(3, 1, 4, 0, 2), 3, masks, WAY)
    words = [[-1, -1], [2, 3], [-1, -1], [0, 1], [4, 5]]
    assert steps.notes[-1][2:] == (words, [[0, 1, 2, 3, 4], [0, 1, 0, 1, 1], [3, 1, 4, 0, 2]])


def test_choices_read_the_settings_of_the_texts_that_are_there(steps):
    """They are taken out of the state once, until another text begins: then its keys are others."""
    one, mask, kept = state(0), np.zeros((1, 2), np.int32), []
    for given in (one, dataclasses.replace(one, cache=7), dataclasses.replace(one, keys="others")):
        steps.choose(given, rows(1), 1, mask, WAY)
        kept.append(steps._kept)
    assert kept[0] is kept[1]
    assert [each.keys for each in kept] == ["keys", "keys", "others"]


def test_without_masks_any_token_may_come(steps):
    steps.choose(state(0), rows(2), 1, None, WAY)
    numbers = [[2], [1], [0]]
    assert steps.notes == [("feed", False, (5, 40), numbers), ("choose", "logits 1", [[-1, -1]], numbers)]


@pytest.mark.parametrize(("masks", "asks"), [(True, False), (False, False), (True, True)])
def test_the_next_logits_are_under_way_where_masks_follow(steps, masks, asks):
    """Else a burst follows, which feeds the tokens itself."""
    steps.asks = asks
    steps.feed(state(0), rows(3, 1), 2, WAY)
    steps.notes.clear()
    given = np.zeros((2, 2), np.int32) if masks else None
    new, burst = steps.step(state(1), rows(3, 1), 2, given, WAY)
    assert burst == "burst"
    feeds = masks and not asks
    assert new.cache == (2 if feeds else 1)
    assert [note[0] for note in steps.notes] == (["choose", "feed"] if feeds else ["choose"])
    assert steps.pending([3, 1]) is feeds


def test_a_row_that_goes_on_behind_a_border_is_fed_anew(steps):
    """And its other limit is read."""
    steps.choose(dataclasses.replace(state(0), limit=5), rows(3), 1, None, WAY)
    steps.feed(state(0), rows(3, 1), 2, WAY)
    steps.forget(3)
    assert [steps.pending([slot]) for slot in (1, 3)] == [True, False]
    steps.choose(dataclasses.replace(state(1), limit=9), rows(3), 1, None, WAY)
    assert steps._kept.limit == 9


def test_the_same_rows_may_run_in_another_number_and_another_way(steps):
    for live, how in ((2, WAY), (2, WAY), (1, WAY), (1, Way(GPU, scores=True))):
        steps.feed(state(0), rows(4, 1), live, how)
    assert [note[-1][1] for note in steps.notes] == [[1, 1], [1, 1], [1, 0], [1, 0]]
    assert steps._order.how.scores


def test_what_came_without_a_choice_is_counted(steps, monkeypatch):
    """Of each row by itself: the positions that are filled, and how many more tokens may be forced."""
    noted = []

    def accept(changing, logits, new, numbers):
        noted.append((new, numbers[:4].tolist()))
        return changing, "behind them"

    def read_forced(target, config, params, cache, piece):
        noted.append((cache, piece.slot, piece.tokens.tolist(), piece.start, piece.context))
        return "new", cache + 1

    monkeypatch.setattr(masked_steps, "accepter", lambda target: accept)
    monkeypatch.setattr(masked_steps, "read_forced", read_forced)
    for slot in (0, 1):
        steps.begin(slot, SimpleNamespace(prompt=[1, 2], limit=22, scores=False))

    def counts():
        return [(steps.length(slot), steps.most_forced(slot, GPU)) for slot in (0, 1)]

    steps.feed(state(0), rows(0, 1), 1, WAY)
    assert counts() == [(3, 20), (2, 20)]
    steps.choose(state(1), rows(0, 1), 1, None, WAY)
    assert counts() == [(3, 19), (2, 20)]
    steps.ran([1], 5)
    assert counts() == [(3, 19), (7, 15)]
    assert steps.accept(state(10), 0, np.array([8, 9], np.int32), WAY).cache == 12  # fed first, then read
    assert noted == [(11, 0, [8, 9], 4, 6), ("new", [0, 2, 8, 9])]
    assert counts() == [(6, 17), (7, 15)]
    steps.accept(state(10), 0, np.array([7], np.int32), WAY)
    assert noted[2:] == [(10, 0, [7], 6, 7), ("new", [0, 1, 7, 0])]  # what was fed needs no more
    assert steps._logits == "behind them"


def test_how_many_tokens_may_come_without_a_choice(steps):
    """The last one is chosen; rows whose tokens are scored, and texts whose angles change, choose all."""
    row = SimpleNamespace(prompt=[1, 2], limit=9, scores=False)
    steps.begin(0, row)
    assert steps.most_forced(0, GPU) == 7
    steps.step(state(0), rows(0), 1, np.zeros((1, 2), np.int32), Way(CPU))
    assert steps.most_forced(0, GPU) == 6
    steps.begin(0, SimpleNamespace(**vars(row) | {"limit": 900}))
    assert [steps.most_forced(0, target) for target in (GPU, CPU)] == [64, 32]
    steps.begin(1, SimpleNamespace(**vars(row) | {"scores": True}))
    assert steps.most_forced(1, GPU) == 0
    rope = SimpleNamespace(rope_type="dynamic")
    kinds = dict(num_hidden_layers=1, kind_of=lambda layer: SimpleNamespace(rope=rope))
    made = MaskedSteps(SimpleNamespace(vocab_size=40, **kinds), "params", 1)
    made.begin(0, row)
    assert made.most_forced(0, GPU) == 0
