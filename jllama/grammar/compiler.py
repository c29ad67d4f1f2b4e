"""Grammars become matchers: in a thread of their own, within limits of size and time, each one once."""

import re
import threading
from typing import Any

from jllama.errors import JllamaError
from jllama.grammar.library import library
from jllama.grammar.source import JSON_KINDS, library_grammar
from jllama.grammar.words import Words

SECONDS = 10.0  # that a grammar may take; most take a thousandth of one
AT_ONCE = 2  # grammars that are compiled; more wait
KEPT = 64  # matchers of a vocabulary
STACK = 512 << 20  # bytes, of which few are touched: rules that lead to rules recurse in the library
# About 2 kB a state, so 100 MB; what a mask may cost: some 20 ms. An item is a way to go on: four for each
# property that may come next.
LIMITS = dict(
    max_lexer_states=50_000, max_grammar_size=200_000, max_items_in_row=20_000, verbose_errors=False
)

_places = threading.BoundedSemaphore(AT_ONCE)
_starting = threading.Lock()
REMEDIES = {
    "json_schema": "change the schema",
    "regex": "change it; it is Rust's syntax, and matches the whole answer by itself",
    "grammar": "change it; `start` (GBNF: `root`) is the whole answer",
}


def compiled(words: Words, kind: str, text: str) -> Any:
    """The library's `LLMatcher` at its beginning; copy it, never move it.

    Args:
      words: the vocabulary.
      kind: as in `GenerationSettings.constraint`.
      text: likewise.

    Raises:
      JllamaError: the library's own words why it can't be, or it takes too much time or memory.
    """
    with words.lock:
        if (found := words.compiled.get((kind, text))) is not None:
            words.compiled.move_to_end((kind, text))
            return found
    if kind in JSON_KINDS:
        words.check_json()
    made = _in_thread(words, kind, text)
    with words.lock:
        words.compiled[kind, text] = made
        while len(words.compiled) > KEPT:
            words.compiled.popitem(last=False)
    return made


def _in_thread(words: Words, kind: str, text: str) -> Any:
    """Compiles where the stack is deep; whoever takes too long is no longer waited for."""
    if not _places.acquire(timeout=SECONDS):
        raise JllamaError(f"{kind}: other grammars are being compiled: try again later")
    came: list[Any] = []

    def work() -> None:
        try:
            came.append(_make(words, kind, text))
        except BaseException as error:
            came.append(error)
        finally:
            _places.release()

    with _starting:
        before = threading.stack_size(STACK)
        try:
            thread = threading.Thread(target=work, name="jllama grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join(SECONDS)
    if not came:
        raise JllamaError(f"{kind} takes more than {SECONDS:.0f} s to compile: make it simpler")
    if isinstance(came[0], BaseException):
        raise came[0]
    return came[0]


def _make(words: Words, kind: str, text: str) -> Any:
    llguidance = library()
    limits = llguidance.LLParserLimits(**LIMITS)
    try:
        grammar = library_grammar(kind, text)
    except (ValueError, RecursionError) as error:
        raise refused(kind, str(error)) from None
    matcher = llguidance.LLMatcher(words.trie, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise refused(kind, matcher.get_error())
    allowed = matcher.compute_bitmask()  # copies have what this found out
    if is_stuck(matcher):
        raise refused(kind, "nothing matches it")
    if matcher.is_error():
        raise refused(kind, matcher.get_error())
    if not any(allowed):
        raise refused(kind, "no token of the model's vocabulary may begin it")
    _check_step(matcher.deep_copy(), kind, allowed)
    return matcher


def _check_step(matcher: Any, kind: str, allowed: bytes) -> None:
    """Takes a token that may begin it: what is forced needs no search to be allowed, but does to be read."""
    at = next(place for place, byte in enumerate(allowed) if byte)
    matcher.consume_token(8 * at + (allowed[at] & -allowed[at]).bit_length() - 1)
    if matcher.is_error():
        raise refused(kind, matcher.get_error())


def is_stuck(matcher: Any) -> bool:
    """Whether nothing that matches goes on from here, after a mask was computed: the library ends it."""
    stuck = matcher.is_stopped() and not matcher.is_accepting()
    return stuck and (not matcher.is_error() or matcher.get_error().startswith("NoExtension"))


_LOOSE = ". Enable 'coerce_one_of' option to approximate oneOf with anyOf"  # what we never do


def refused(kind: str, words: str) -> JllamaError:
    """Why something can't be matched, in one line with the place, and what to do."""
    line = re.sub(r"\s*\n\s*", " · ", re.split("<state>|<non-verbose", words)[0].strip())
    line = line.replace(_LOOSE, " by this one; anyOf is, where no two can hold at once")
    remedy = REMEDIES.get(kind)
    return JllamaError(f"{kind} can't be used: {line[:600]}" + (f" ({remedy})" if remedy else ""))
