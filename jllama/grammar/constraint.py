"""One answer that must match: which tokens may come next, and what came."""

import functools
import itertools
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
TOGETHER = 8  # grammars: the masks of fewer are filled one after the other


class Constraint:
    """A matcher that has read what came of an answer. Not for several threads at once.

    Attributes:
      last: the token that came last.
      ended: an end token came.
      error: why nothing may come next; the answer can't be completed.
    """

    def __init__(
        self, matcher: Any, width: int, ends: Iterable[int], banned: np.ndarray | None, origin: Any = None
    ) -> None:
        """Made by `constraint_for`.

        Args:
          matcher: the library's, this answer's own.
          width: W, words of a mask.
          ends: ids that end the answer.
          banned: int32 `[W]`, a bit for each token that may not come whatever matches; None: no token.
          origin: what the matcher is a copy of; copies of one wait for each other.
        """
        self.matcher, self.width, self.origin = matcher, width, matcher if origin is None else origin
        self._ends, self._banned = frozenset(ends), banned
        self._forced: list[int] = []  # what must come next, the last of it first
        self.last, self.ended = -1, False
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
            self.last = token
            if self._forced and self._forced.pop() != token:
                self._forced.clear()
            if token in self._ends:
                self.ended = True
            elif not self.matcher.consume_token(token):
                self.error = self._stopped(f"token {token} does not fit what the answer must match")

    def forced(self) -> int | None:
        """The one token that must come next, if one must.

        The library's masks spell what must come, token for token; this asks it once for all of them.
        """
        if not self._forced:
            self._forced = self.matcher.compute_ff_tokens()[::-1]
        return self._forced[-1] if self._forced else None

    def stretch(self, most: int) -> list[int]:
        """Tokens that must come next, at most so many; none that ends the answer or is banned."""
        if not self.live or self.forced() is None:
            return []
        return list(itertools.takewhile(self._goes_on, self._forced[: -max(most, 0) - 1 : -1]))

    def _goes_on(self, token: int) -> bool:
        """Whether an answer may go on with it."""
        banned = self._banned is not None and self._banned[token // WORD] >> token % WORD & 1
        return token not in self._ends and not banned

    def settle(self, mask: np.ndarray) -> None:
        """Takes a mask that was filled, int32 `[W]`; sets `error` where it allows nothing."""
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
    if (origin := matcher_for(tokenizer, vocab_size, settings)) is None:
        return None
    ids = [id_ for id_, bias in settings.logit_bias.items() if bias <= BAN and 0 <= id_ < vocab_size]
    banned = _bits(ids, vocab_size) if ids else None
    return Constraint(origin.deep_copy(), mask_width(vocab_size), ends, banned, origin)


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


def masks_for(constraints: Sequence[Constraint | None], out: np.ndarray | None = None) -> np.ndarray:
    """The tokens that may come next in each row, int32 `[b, ceil(V/32)]`, lowest bit first; `out`, if given.

    One row has a constraint at least. All bits are set for rows without one, those that have ended and those
    with an `error`, which this may set.
    """
    width = next(each.width for each in constraints if each is not None)
    masks = np.empty((len(constraints), width), np.int32) if out is None else out
    masks[...] = -1
    live = [(each, at) for at, each in enumerate(constraints) if each is not None and each.live]
    forced = {at: token for each, at in live if (token := each.forced()) is not None}
    rows, tokens = (np.fromiter(part, np.uint32, len(forced)) for part in (forced, forced.values()))
    masks[rows] = 0
    masks.view(np.uint32)[rows, tokens // WORD] = np.uint32(1) << tokens % WORD
    _fill(masks, [(each, at) for each, at in live if at not in forced])
    for each, at in live:
        each.settle(masks[at])
        if each.error is not None:
            masks[at] = -1
    return masks


def _fill(masks: np.ndarray, asked: list[tuple[Constraint, int]]) -> None:
    """The library fills masks, int32 `[b, W]`, at the places beside the constraints."""
    start, size = masks.ctypes.data, masks.shape[1] * masks.itemsize
    origins = {id(each.origin) for each, _ in asked}
    if len(origins) >= TOGETHER and (executor := _executor()) is not None:
        matchers = [(each.matcher, at) for each, at in asked]
        executor.unsafe_compute_mask_ptr(matchers, start, size, len(masks))
    else:
        for each, at in asked:
            each.matcher.unsafe_compute_mask_ptr(start + at * size, size)


@functools.cache
def _executor() -> Any:
    """Threads of the library that fill masks; none where XLA's need the cores."""
    return library().LLExecutor() if (os.cpu_count() or 1) >= 4 else None


def _bits(tokens: Iterable[int], vocab_size: int) -> np.ndarray:
    flags = np.zeros((mask_width(vocab_size) * WORD,), np.uint8)
    flags[list(tokens)] = 1
    return np.packbits(flags, bitorder="little").view("<i4").astype(np.int32)
