"""One answer that must match: which tokens may come next, and what came."""

import functools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jllama.errors import JllamaError
from jllama.grammar.compiler import compiled, is_stuck
from jllama.grammar.library import library
from jllama.grammar.words import words_of
from jllama.settings import BAN, GenerationSettings
from jllama.text.tokenizer import Tokenizer

WORD = 32  # tokens of an int32
TOGETHER = 8  # masks: fewer are filled one after the other


class Constraint:
    """A matcher that has read what came of an answer. Not for several threads at once.

    Attributes:
      ended: an end token came.
      error: why nothing may come next; the answer can't be completed.
    """

    def __init__(self, matcher: Any, width: int, ends: Iterable[int], banned: np.ndarray | None) -> None:
        """Made by `constraint_for`.

        Args:
          matcher: the library's, this answer's own.
          width: W, words of a mask.
          ends: ids that end the answer.
          banned: int32 `[W]`, a bit for each token that may not come whatever matches; None: no token.
        """
        self.matcher, self.width = matcher, width
        self._ends, self._banned = frozenset(ends), banned
        self.ended = False
        self.error: JllamaError | None = None

    @property
    def live(self) -> bool:
        """Whether a mask says anything."""
        return not self.ended and self.error is None

    def follow(self, tokens: Iterable[int]) -> None:
        """Takes the tokens that came; sets `error` if one of them may not."""
        for token in tokens:
            if not self.live:
                return
            if token in self._ends:
                self.ended = True
            elif not self.matcher.consume_token(token):
                self.error = self._stopped(f"token {token} does not fit what the answer must match")

    def settle(self, mask: np.ndarray) -> None:
        """Takes a mask that the library filled, int32 `[W]`; sets `error` where it allows nothing."""
        if is_stuck(self.matcher):
            self.error = JllamaError("the answer can't go on as it must: nothing that matches begins so")
        elif self.matcher.is_error():
            self.error = self._stopped("it is too much for the library")
        elif self._banned is not None:
            mask &= ~self._banned
        if self.error is None and not mask.any():
            what = "that logit_bias does not ban" if self._banned is not None else "of the model's vocabulary"
            self.error = JllamaError(f"the answer can't go on as it must: no token {what} may come next")

    def _stopped(self, otherwise: str) -> JllamaError:
        """Why the library went no further, in its own words if it has some."""
        why = self.matcher.get_error().split("<")[0].strip() if self.matcher.is_error() else ""
        return JllamaError(f"the answer can't go on as it must: {why or otherwise}")


def constraint_for(
    tokenizer: Tokenizer, vocab_size: int, settings: GenerationSettings, ends: Iterable[int]
) -> Constraint | None:
    """What an answer must match by its settings; None where it may be anything.

    Args:
      tokenizer: the model's.
      vocab_size: V of the model.
      settings: of the answer.
      ends: ids that end it.

    Raises:
      JllamaError: it can't be matched, or not exactly; the message has the library's own words.
    """
    if (matcher := matcher_for(tokenizer, vocab_size, settings)) is None:
        return None
    ids = [id_ for id_, bias in settings.logit_bias.items() if bias <= BAN and 0 <= id_ < vocab_size]
    banned = _bits(ids, vocab_size) if ids else None
    return Constraint(matcher.deep_copy(), mask_width(vocab_size), ends, banned)


def matcher_for(tokenizer: Tokenizer, vocab_size: int, settings: GenerationSettings) -> Any | None:
    """The library's matcher for such answers, at its beginning, compiled once; None where any text will do.

    Raises:
      JllamaError: as `constraint_for`.
    """
    if settings.constraint is None:
        return None
    return compiled(words_of(tokenizer, vocab_size), *settings.constraint)


def mask_width(vocab_size: int) -> int:
    """W, the words of a mask."""
    return -(-vocab_size // WORD)


def masks_for(constraints: Sequence[Constraint | None]) -> np.ndarray:
    """The tokens that may come next in each row, int32 `[b, ceil(V/32)]`, lowest bit first.

    One row has a constraint at least. All bits are set for rows without one, those that have ended and those
    with an `error`, which this may set.
    """
    width = next(each.width for each in constraints if each is not None)
    masks = np.full((len(constraints), width), -1, np.int32)
    live = [(each, at) for at, each in enumerate(constraints) if each is not None and each.live]
    if len(live) >= TOGETHER and (executor := _executor()) is not None:
        matchers = [(each.matcher, at) for each, at in live]
        executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, masks.shape[1] * 4, len(masks))
    else:
        for each, at in live:
            each.matcher.unsafe_compute_mask_ptr(masks[at].ctypes.data, masks.shape[1] * 4)
    for each, at in live:
        each.settle(masks[at])
        if each.error is not None:
            masks[at] = -1
    return masks


@functools.cache
def _executor() -> Any:
    """Threads of the library that fill masks; none where XLA's need the cores."""
    return library().LLExecutor() if (os.cpu_count() or 1) >= 4 else None


def _bits(tokens: Iterable[int], vocab_size: int) -> np.ndarray:
    flags = np.zeros((mask_width(vocab_size) * WORD,), np.uint8)
    flags[list(tokens)] = 1
    return np.packbits(flags, bitorder="little").view("<i4").astype(np.int32)
