"""Stop strings: one piece at a time must give what the whole text gives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jllama.errors import JllamaError
from jllama.text.stop import StopMatcher

STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)
PIECES = st.lists(st.text("abc", max_size=4), max_size=12)


def run(stops, pieces):
    matcher = StopMatcher(stops)
    shown = "".join(map(matcher.push, pieces)) + matcher.flush()
    return shown, matcher.matched


def oracle(stops, text):
    """The definition, over the whole text: the first end wins, then the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            winner = max(ending, key=len)
            return text[: end - len(winner)], winner
    return text, None


@settings(max_examples=1500, deadline=None)
@given(STOPS, PIECES)
def test_equals_the_oracle_however_the_text_is_cut(stops, pieces):
    assert run(stops, pieces) == oracle(stops, "".join(pieces))


@settings(max_examples=500, deadline=None)
@given(STOPS, PIECES)
def test_nothing_shown_is_ever_taken_back_and_nothing_is_held_in_vain(stops, pieces):
    matcher, shown, seen = StopMatcher(stops), "", ""
    for piece in pieces:
        shown, seen = shown + matcher.push(piece), seen + piece
        assert oracle(stops, seen)[0].startswith(shown)
        if matcher.matched is None:
            held = seen[len(shown) :]
            assert seen.startswith(shown)
            assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["</s>"], ["a<", "/s", ">b"], ("a", "</s>")),
        (["</s>"], ["a</s"], ("a</s", None)),
        (["ab", "abc"], ["xabc"], ("x", "ab")),
        (["abc", "bc"], ["xabc"], ("x", "abc")),
        (["abcd", "bc"], ["a", "b", "c", "d"], ("a", "bc")),
        (["aab"], ["aa", "aab"], ("aa", "aab")),
        (["\nUser:", "\nAI:"], ["Hi.\n", "U", "ser: x"], ("Hi.", "\nUser:")),
        ("end", ["the e", "nd"], ("the ", "end")),
        (["🙂é"], ["a🙂", "éb"], ("a", "🙂é")),
        (None, ["anything"], ("anything", None)),
        ([], ["anything"], ("anything", None)),
    ],
)
def test_cases(stops, pieces, expected):
    assert run(stops, pieces) == expected


def test_holds_back_only_an_ambiguous_tail():
    matcher = StopMatcher(["<|end|>"])
    assert matcher.push("hello <|") == "hello "
    assert matcher.push("x") == "<|x"
    assert matcher.push(" y") == " y"


def test_is_silent_after_a_match():
    matcher = StopMatcher(["b"])
    assert [matcher.push("abc"), matcher.push("d"), matcher.flush()] == ["a", "", ""]


@pytest.mark.parametrize("stops", ["", ["a", ""], [3]])
def test_empty_and_foreign_stops_are_refused(stops):
    with pytest.raises(JllamaError, match="non-empty"):
        StopMatcher(stops)


@settings(max_examples=1000, deadline=None)
@given(STOPS, PIECES, PIECES)
def test_what_was_shown_before_can_begin_a_stop_and_hold_none(stops, earlier, pieces):
    matcher, before, rest = StopMatcher(stops), "".join(earlier), "".join(pieces)
    shown = "".join(map(matcher.follow, earlier))
    assert before.startswith(shown)
    whole = shown + "".join(map(matcher.push, pieces)) + matcher.flush()
    if not any(stop in before for stop in stops):
        assert (whole, matcher.matched) == oracle(stops, before + rest)
    elif matcher.matched is not None:
        assert len(whole) + len(matcher.matched) > len(before)
        assert (before + rest).startswith(whole + matcher.matched)
    else:
        assert whole == before + rest


def test_what_must_not_stop_loses_nothing_that_a_stop_held_back():
    matcher = StopMatcher(["ab", "cd"])
    assert [matcher.follow(piece) for piece in ("xa", "b", "a", "bc", "d", "a")] == [
        "x",
        "ab",
        "",
        "ab",
        "cd",
        "",
    ]
    assert (matcher.push("b"), matcher.matched) == ("", "ab")
