"""Which matchers are kept, how many are made at once, and what is said of one that can't be: played."""

import collections
import threading
from types import SimpleNamespace

import pytest

from jllama.errors import JllamaError
from jllama.grammar import compiler
from jllama.grammar.compiler import compiled, is_stuck, refused

WAIT = 60


def vocabulary(checked=()):
    return SimpleNamespace(
        lock=threading.Lock(),
        compiled=collections.OrderedDict(),
        check_json=lambda: checked.append(1),
        trie="trie",
    )


def test_the_matchers_used_last_are_kept(monkeypatch):
    made = []
    monkeypatch.setattr(compiler, "KEPT", 3)
    monkeypatch.setattr(compiler, "_in_thread", lambda words, *what: made.append(what) or object())
    words = vocabulary()
    first = [compiled(words, "regex", text) for text in "abc"]
    assert compiled(words, "regex", "a") is first[0]
    compiled(words, "regex", "d")
    assert [text for _, text in words.compiled] == ["c", "a", "d"]
    assert compiled(words, "regex", "a") is first[0]
    compiled(words, "grammar", "a")
    assert [*words.compiled] == [("regex", "d"), ("regex", "a"), ("grammar", "a")]
    assert compiled(words, "regex", "c") is not first[2]
    assert [text for _, text in made] == ["a", "b", "c", "d", "a", "c"]


def test_only_json_needs_a_vocabulary_that_can_write_it(monkeypatch):
    checked = []
    monkeypatch.setattr(compiler, "_in_thread", lambda words, *what: object())
    words = vocabulary(checked)
    for kind, count in (("regex", 0), ("grammar", 0), ("choice", 0), ("json_schema", 1), ("json_object", 2)):
        for _ in range(2):
            compiled(words, kind, "x")
        assert len(checked) == count


def test_whoever_fails_makes_place_for_the_next(monkeypatch):
    def make(words, kind, text):
        if text == "bad":
            raise JllamaError("no")
        return text

    monkeypatch.setattr(compiler, "_make", make)
    monkeypatch.setattr(compiler, "SECONDS", 5.0)
    for _ in range(compiler.AT_ONCE + 1):
        with pytest.raises(JllamaError, match=r"^no$"):
            compiler._in_thread(vocabulary(), "regex", "bad")
    assert compiler._in_thread(vocabulary(), "regex", "good") == "good"


@pytest.mark.parametrize("error", [ValueError("an odd rule"), RecursionError("an odd rule")])
def test_what_the_library_can_not_read_is_told_in_a_line(monkeypatch, error):
    def library_grammar(kind, text):
        raise error

    monkeypatch.setattr(compiler, "library_grammar", library_grammar)
    with pytest.raises(JllamaError, match="regex can't be used: an odd rule"):
        compiler._make(vocabulary(), "regex", "a")


def test_the_stack_is_deep_for_that_thread_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(compiler, "_make", lambda *_: asked.append("made"))
    monkeypatch.setattr(threading, "stack_size", lambda size: asked.append(size) or 4711)
    compiler._in_thread(vocabulary(), "regex", "a")
    assert [entry for entry in asked if entry != "made"] == [compiler.STACK, 4711]

    def fails(self):
        raise RuntimeError("no more threads")

    asked.clear()
    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(RuntimeError, match="no more threads"):
        compiler._in_thread(vocabulary(), "regex", "a")
    assert asked == [compiler.STACK, 4711]
    compiler._places.release()


def test_who_takes_too_long_keeps_his_place_and_others_are_told(monkeypatch):
    go, over = threading.Event(), threading.Semaphore(0)

    def make(*_):
        go.wait(WAIT)
        over.release()

    monkeypatch.setattr(compiler, "_make", make)
    monkeypatch.setattr(compiler, "SECONDS", 0.05)
    for _ in range(compiler.AT_ONCE):
        with pytest.raises(JllamaError, match="regex takes more than 0 s to compile: make it simpler"):
            compiler._in_thread(vocabulary(), "regex", "a")
    with pytest.raises(JllamaError, match="regex: other grammars are being compiled: try again later"):
        compiler._in_thread(vocabulary(), "regex", "a")
    go.set()
    for _ in range(compiler.AT_ONCE):
        assert over.acquire(timeout=WAIT)
        assert compiler._places.acquire(timeout=WAIT)
    for _ in range(compiler.AT_ONCE):
        compiler._places.release()


class Matcher:
    """The library's, which says this after it was made, after its mask and after a token."""

    def __init__(self, errors=("", "", ""), mask=b"\0\x14", stopped=False, accepting=False):
        self._errors, self._mask, self._stopped, self._accepting = errors, mask, stopped, accepting
        self.step, self.consumed = 0, []

    def is_error(self):
        return bool(self._errors[self.step])

    def get_error(self):
        return self._errors[self.step]

    def compute_bitmask(self):
        self.step = 1
        return self._mask

    def is_stopped(self):
        return self._stopped

    def is_accepting(self):
        return self._accepting

    def deep_copy(self):
        copy = Matcher(self._errors, self._mask, self._stopped, self._accepting)
        copy.step, self.copy = self.step, copy
        return copy

    def consume_token(self, token):
        self.step = 2
        self.consumed.append(token)


@pytest.mark.parametrize(
    ("matcher", "words"),
    [
        (Matcher(("bad grammar", "", "")), "bad grammar"),
        (Matcher(stopped=True), "nothing matches it"),
        (Matcher(("", "NoExtension", ""), stopped=True), "nothing matches it"),
        (Matcher(("", "too large", ""), stopped=True), "too large"),
        (Matcher(mask=b"\0\0"), "no token of the model's vocabulary may begin it"),
        (Matcher(("", "", "too many items")), "too many items"),
        (Matcher(stopped=True, accepting=True), None),
        (Matcher(), None),
    ],
)
def test_a_matcher_is_tried_before_it_is_used(monkeypatch, matcher, words):
    """Its mask, and a step of a copy with a token that may come."""
    played = SimpleNamespace(
        LLParserLimits=lambda **limits: limits, LLMatcher=lambda trie, grammar, **more: matcher
    )
    monkeypatch.setattr(compiler, "library", lambda: played)
    monkeypatch.setattr(compiler, "library_grammar", lambda kind, text: "grammar")
    if words is not None:
        with pytest.raises(JllamaError, match=f"regex can't be used: {words}"):
            compiler._make(vocabulary(), "regex", "a")
        return
    assert compiler._make(vocabulary(), "regex", "a") is matcher
    assert (matcher.step, matcher.consumed) == (1, [])
    assert matcher.copy.consumed in ([10], [12])


@pytest.mark.parametrize(
    ("stopped", "accepting", "error", "stuck"),
    [
        (True, False, "", True),
        (True, False, "NoExtension: here", True),
        (True, False, "out of memory", False),
        (True, True, "", False),
        (False, False, "", False),
        (False, False, "NoExtension", False),
    ],
)
def test_who_is_stuck(stopped, accepting, error, stuck):
    matcher = Matcher((error, error, error), stopped=stopped, accepting=accepting)
    assert is_stuck(matcher) is stuck


def test_why_is_one_line_with_a_remedy():
    assert str(refused("choice", "no\n  way <state>\nsecret")) == "choice can't be used: no · way"
    told = str(refused("regex", "x" * 700))
    assert told.startswith("regex can't be used: " + "x" * 600 + " (change it; it is Rust's syntax")
    loose = "oneOf here. Enable 'coerce_one_of' option to approximate oneOf with anyOf"
    assert "oneOf here by this one; anyOf is, where no two" in str(refused("json_schema", loose))
