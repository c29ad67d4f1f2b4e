"""Masks for bursts that ask while they run: a thread follows the tokens and says what may come next."""

import functools
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from jllama import kernels
from jllama.engine.state import NO_TOKEN, Burst
from jllama.errors import JllamaError
from jllama.grammar.constraint import Constraint, masks_for

POLL = 2e-5  # seconds between two looks at what came
ALL = np.iinfo(np.int32).max  # columns

Constraints = Sequence[Constraint | None]


class Served:
    """A burst whose masks are filled while it runs.

    Attributes:
      steps: how many it has.
      turn: of the first one.
    """

    def __init__(self, steps: int) -> None:
        """Before anybody answers."""
        self.steps, self.turn = steps, 0
        self._burst: Burst | None = None
        self._failed = False
        self._counts: Future[np.ndarray]

    def begin(self, turn: int, thread: ThreadPoolExecutor, answer: Callable[[], np.ndarray]) -> None:
        """The thread answers it once it has answered those before."""
        self.turn = turn
        self._counts = thread.submit(answer)

    def launched(self, burst: Burst | None) -> None:
        """The burst is under way; None: it never will be. One of them must be said, lest the thread waits."""
        self._burst, self._failed = burst, burst is None

    def over(self) -> bool:
        """Whether the program asks nothing more, whatever ended it."""
        return self._failed or (self._burst is not None and self._burst.arrived)

    def counts(self) -> np.ndarray:
        """Waits for the burst: int32 `[b]`, how many of its columns count of each row: `ALL`, or those before
        the step at which the row's constraint could not go on.
        """
        jax.block_until_ready(self._burst)
        return self.answered()

    def answered(self, timeout: float | None = None) -> np.ndarray:
        """`counts`, whatever becomes of the burst; waits for the thread, for some seconds at most."""
        return self._counts.result(timeout)


class MaskServer:
    """A desk at which bursts of some slots ask, and the thread that answers there, burst after burst."""

    def __init__(self, desk: "kernels.gpu.Desk") -> None:
        """The desk is left once nobody needs the server, and its last burst has run."""
        self._desk = desk
        self._thread = ThreadPoolExecutor(1, "jllama masks")
        weakref.finalize(self, _leave, desk, self._thread).atexit = False

    @property
    def addresses(self) -> jax.Array:
        """The desk's."""
        return self._desk.addresses

    def serve(
        self, served: Served, constraints: Constraints, before: Sequence[tuple[Burst, Constraints]] = ()
    ) -> None:
        """Answers the burst that is launched next; returns at once.

        Args:
          served: of that burst.
          constraints: of each row; they are the thread's until it has served them.
          before: bursts whose tokens nobody has told the constraints beside them.
        """
        turn = self._desk.turn
        self._desk.turn += served.steps
        task = _Task(self._desk, served, turn, constraints)
        served.begin(turn, self._thread, functools.partial(task.run, tuple(before)))


def _leave(desk: "kernels.gpu.Desk", thread: ThreadPoolExecutor) -> None:
    thread.submit(desk.leave)
    thread.shutdown(wait=False)


class _Task:
    """A burst to be served."""

    def __init__(self, desk: "kernels.gpu.Desk", served: Served, turn: int, constraints: Constraints) -> None:
        self._desk, self._served, self._turn = desk, served, turn
        self._last = turn + served.steps - 1
        self._constraints = list(constraints)
        self._counts = np.full((len(constraints),), ALL, np.int32)

    def run(self, before: Sequence[tuple[Burst, Constraints]]) -> np.ndarray:
        """See `Served.counts`."""
        try:
            for burst, constraints in before:
                follow(burst.tokens, constraints)
            for step in range(self._served.steps):
                if not self._fill(step):
                    break
                self._desk.answer(self._turn + step)
                if not self._wait(self._turn + step):
                    self._note(step)
                    break
                self._hear(step)
        finally:
            self._let_go()
        return self._counts

    def _fill(self, step: int) -> bool:
        """Writes the masks of a step; whether they say anything."""
        masks = self._desk.masks[: len(self._constraints)]
        asked = [each is not None and each.live for each in self._constraints]
        if any(asked):
            masks_for(self._constraints, masks)
        else:
            masks[...] = -1
        self._note(step)
        return any(asked)

    def _hear(self, step: int) -> None:
        told = self._desk.told[: len(self._constraints)]
        follow(told[:, :1], self._constraints)
        self._note(step)
        for row in np.flatnonzero(told[:, 1]):
            self._constraints[row] = None  # it is done

    def _note(self, step: int) -> None:
        """Nothing counts from here on of rows that can't go on."""
        for row, each in enumerate(self._constraints):
            if each is not None and each.error is not None:
                self._counts[row] = min(self._counts[row], step)

    def _wait(self, turn: int) -> bool:
        """Until what came of a turn was told; whether it was, by a program that still listens."""
        while not self._desk.has_told(turn):
            if self._served.over() and not self._desk.has_told(turn):
                return False
            time.sleep(POLL)
        if not self._desk.given_up(self._last):
            return True
        for each in self._constraints:
            if each is not None and each.live:
                each.error = JllamaError("the process stood still: nothing said in time what may come next")
        return False

    def _let_go(self) -> None:
        """The rest of the burst needs no masks. The next one's are written once this one reads no more."""
        self._desk.answer(self._last)
        while not self._desk.has_told(self._last) and not self._served.over():
            time.sleep(POLL)


def follow(tokens: np.ndarray, constraints: Constraints) -> None:
    """Tells constraints which tokens came, int32 `[b, n]`, of each a row; there may be more, of nobody."""
    for constraint, row in zip(constraints, tokens.tolist(), strict=False):
        if constraint is not None:
            constraint.follow([token for token in row if token != NO_TOKEN])
