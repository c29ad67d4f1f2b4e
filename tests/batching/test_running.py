"""A burst's rows and what they must match: who follows which tokens, and whose tokens mean nothing."""

from types import SimpleNamespace

import numpy as np
import pytest

from jllama.batching.running import Running, masks_of

FAILS = 9  # a token that fits nothing


class Constraint:
    """Notes what it follows."""

    live, width, origin = True, 2, None

    def __init__(self, error=None):
        self.error, self.came = error, []
        self.matcher = SimpleNamespace(unsafe_compute_mask_ptr=lambda pointer, size: None)

    def follow(self, tokens):
        self.came += tokens
        if FAILS in tokens:
            self.error = "no"

    def forced(self):
        return None

    def settle(self, mask):
        mask[:] = 5


def streams_of(*constraints, ended=()):
    return tuple(
        SimpleNamespace(row=SimpleNamespace(constraint=each), ended=at in ended)
        for at, each in enumerate(constraints)
    )


def running(tokens, streams):
    return Running.of(SimpleNamespace(tokens=np.array(tokens, np.int32)), streams)


def test_each_row_follows_its_tokens_and_all_that_fail_are_known():
    first, early, late, ended = Constraint(), Constraint(error="no"), Constraint(), Constraint()
    worse = Constraint()
    streams = streams_of(first, None, early, late, ended, worse, ended={4})
    before = running([[4], [5], [6], [FAILS], [7], [FAILS]], streams)
    assert before.failed == {2}
    after = before.followed()
    assert after.failed == {2, 3, 5}
    assert before.failed == {2}
    assert (after.burst, after.streams) == (before.burst, streams)
    came = [each.came for each in (first, early, late, ended, worse)]
    assert came == [[4], [], [FAILS], [], [FAILS]]


def test_places_without_a_token_are_followed_by_nobody():
    one, two = Constraint(), Constraint()
    running([[3, 0, -1], [-1, -1, -1]], streams_of(one, two)).followed()
    assert (one.came, two.came) == ([3, 0], [])


@pytest.mark.parametrize(
    ("constraints", "single"), [((), False), ((None, None), False), ((None, Constraint()), True)]
)
def test_one_row_that_must_match_makes_all_take_one_token(constraints, single):
    assert running([[1]] * len(constraints), streams_of(*constraints)).single is single


def test_masks_are_there_where_some_row_must_match():
    assert masks_of(streams_of(None, None)) is None
    masks = masks_of(streams_of(None, Constraint()))
    assert masks.tolist() == [[-1, -1], [5, 5]]
