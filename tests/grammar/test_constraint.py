"""Masks of rows that must match and of others, and what becomes of one that can't go on: played."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.grammar import constraint as module
from jllama.grammar.constraint import Constraint, masks_for
from jllama.settings import GenerationSettings

END = 9


class Matcher:
    """The library's: fills masks with `words`, refuses tokens above 99."""

    def __init__(self, *words, stopped=False, accepting=False, error=""):
        self.words, self._stopped, self._accepting, self.error = words, stopped, accepting, error
        self.consumed = []

    def unsafe_compute_mask_ptr(self, pointer, size):
        assert size == 4 * len(self.words)
        (ctypes.c_int32 * len(self.words)).from_address(pointer)[:] = self.words

    def compute_ff_tokens(self):
        return []

    def consume_token(self, token):
        self.consumed.append(token)
        return token < 100

    def is_stopped(self):
        return self._stopped

    def is_accepting(self):
        return self._accepting

    def is_error(self):
        return bool(self.error)

    def get_error(self):
        return self.error


def made(matcher, banned=None):
    return Constraint(matcher, 2, [END], None if banned is None else np.array(banned, np.int32))


@pytest.mark.parametrize(
    ("came", "left"),
    [([1], [3, 2]), ([1, 2], [3]), ([1, 2, 3], []), ([4], []), ([1, 4], [])],
)
def test_what_must_come_is_forgotten_once_another_token_comes(came, left):
    held = made(Matcher(1, 2))
    held._forced = [3, 2, 1]
    held.follow(came)
    assert (held._forced, held.last, held.matcher.consumed) == (left, came[-1], came)


def test_what_came_is_followed_up_to_the_end_or_a_mistake():
    good, ended, bad = (made(Matcher(1, 2)) for _ in range(3))
    good.follow([3, 4])
    ended.follow([3, END, 4])
    bad.follow([3, 100, 5])
    assert [each.matcher.consumed for each in (good, ended, bad)] == [[3, 4], [3], [3, 100]]
    assert [(each.ended, each.live) for each in (good, ended, bad)] == [
        (False, True),
        (True, False),
        (False, False),
    ]
    assert "token 100 does not fit" in str(bad.error)
    assert good.error is ended.error is None
    for each in (ended, bad):
        each.follow([1])
    assert [each.matcher.consumed for each in (ended, bad)] == [[3], [3, 100]]


def test_the_librarys_own_words_say_why():
    bad = made(Matcher(1, 2, error="too complex <state> and more"))
    bad.follow([100])
    assert str(bad.error) == "the answer can't go on as it must: too complex"


@pytest.mark.parametrize(
    ("matcher", "banned", "mask", "words"),
    [
        (Matcher(), None, [5, 6], None),
        (Matcher(), [1, 4], [4, 2], None),
        (Matcher(stopped=True), None, [5, 6], "nothing that matches begins so"),
        (Matcher(stopped=True, error="NoExtension"), None, [0, 0], "nothing that matches begins so"),
        (Matcher(stopped=True, accepting=True), None, [5, 6], None),
        (Matcher(error="out of memory"), None, [5, 6], "out of memory"),
        (Matcher(), [5, 6], [0, 0], "no token that logit_bias does not ban may come next"),
    ],
)
def test_a_mask_without_what_is_banned(matcher, banned, mask, words):
    each, filled = made(matcher, banned), np.array([5, 6], np.int32)
    each.settle(filled)
    assert each.error is None if words is None else words in str(each.error)
    if words is None:
        assert filled.tolist() == mask


def test_a_vocabulary_may_have_no_token_for_it():
    each = made(Matcher())
    each.settle(np.zeros(2, np.int32))
    assert "no token of the model's vocabulary may come next" in str(each.error)


class Executor:
    """The library's threads: as `unsafe_compute_mask_ptr` of each row."""

    calls = 0

    def unsafe_compute_mask_ptr(self, matchers, pointer, size, rows):
        self.calls += 1
        assert all(at < rows for _, at in matchers)
        for matcher, at in matchers:
            matcher.unsafe_compute_mask_ptr(pointer + at * size, size)


@pytest.mark.parametrize("count", [2, 7, 8, 9])
@pytest.mark.parametrize("cores", [1, 3, 4])
def test_each_row_has_its_own_mask_and_all_bits_where_nothing_holds(monkeypatch, count, cores):
    """Many are filled by threads where there are cores for them."""
    executor = Executor()
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(module, "library", lambda: SimpleNamespace(LLExecutor=lambda: executor))
    monkeypatch.setattr(module, "_executor", module._executor.__wrapped__)
    ended, failed, stuck = made(Matcher(1, 1)), made(Matcher(1, 1)), made(Matcher(1, 1, stopped=True))
    ended.follow([END])
    failed.follow([100])
    live = [made(Matcher(at, -at), banned=[1, 0]) for at in range(2, 1 + count)]
    masks = masks_for([None, ended, *live, failed, stuck, None])
    assert masks.dtype == np.int32
    all_bits = [-1, -1]
    wanted = [[at & ~1, -at] for at in range(2, 1 + count)]
    assert masks.tolist() == [all_bits, all_bits, *wanted, all_bits, all_bits, all_bits]
    assert executor.calls == (1 if cores >= 4 and count >= 8 else 0)
    assert "nothing that matches" in str(stuck.error)


@pytest.mark.parametrize("vocab", [31, 32, 33, 64, 65])
def test_bits_of_tokens_lowest_first(vocab):
    tokens = [0, vocab - 1, 5]
    words = module._bits(tokens, vocab)
    assert (words.dtype, words.shape) == (np.int32, (module.mask_width(vocab),))
    found = [at for at in range(32 * len(words)) if int(words[at // 32]) >> (at % 32) & 1]
    assert found == sorted(tokens)


def test_what_a_bias_bans(monkeypatch):
    """What is no lower than the lowest bias may come; ids that the model can't say do not count."""
    matcher = SimpleNamespace(deep_copy=lambda: "copy")
    monkeypatch.setattr(module, "words_of", lambda tokenizer, size: (tokenizer, size))
    monkeypatch.setattr(module, "compiled", lambda words, kind, text: matcher)

    def constraint(**given):
        return module.constraint_for("tokenizer", 40, GenerationSettings(**given), [END])

    assert constraint() is None
    plain = constraint(regex="a")
    assert (plain.matcher, plain.width, plain._banned) == ("copy", 2, None)
    biased = constraint(regex="a", logit_bias={1: -1000.0, 2: -999.0, 33: -2000.0, 40: -1000.0, 3: 5.0})
    assert biased._banned.tolist() == [2, 2]
    assert constraint(regex="a", logit_bias={2: -999.0})._banned is None
