"""One answer of an engine, as its reader sees it."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

import jax

from jllama.answer import Answer, Result, TokenScore
from jllama.engine.rows import Row
from jllama.engine.scheduler import Job
from jllama.layers.sampling import Scores

Item = str | BaseException | None  # a piece of text, what went wrong, or the end
Listener = Callable[["Stream", Item], None]


class Stream:
    """An answer as it comes: iterate over its pieces, or wait for `result()`."""

    def __init__(
        self,
        answer: Answer,
        row: Row,
        cancel: Callable[["Stream"], None],
        *,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> None:
        """Made by `Engine.submit`.

        Args:
          answer: what becomes of it.
          row: what the slots need of it.
          cancel: asks the engine to end it.
          logprobs: how many tokens are told beside each one; None: its tokens are not scored.
          prompt_logprobs: likewise of the prompt's.
        """
        self.answer, self.row, self._cancel = answer, row, cancel
        self.job = Job(prompt=row.prompt, whole=prompt_logprobs is not None)  # as the scheduler sees it
        self._logprobs, self._prompt_logprobs = logprobs, prompt_logprobs
        answer.result.logprobs = None if logprobs is None else []
        answer.result.prompt_logprobs = None if prompt_logprobs is None else [None]
        self._pieces: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.listener: Listener | None = None  # called for each item, in the engine's thread
        self.queued_seconds = 0.0  # it waited so long for a slot
        self._done = threading.Event()
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they become certain. Of several readers each gets some, and all the end.

        Raises:
          JllamaError: the answer could not be completed.
        """
        while isinstance(item := self._pieces.get(), str):
            yield item
        self._pieces.put(item)  # for whoever else reads, now or later
        if item is not None:
            raise item

    def result(self, timeout: float | None = None) -> Result:
        """Waits for the end.

        Args:
          timeout: seconds to wait; None: as long as it takes.

        Raises:
          JllamaError: the answer could not be completed.
          TimeoutError: it is not complete yet.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"no answer in {timeout} seconds")
        if self._error is not None:
            raise self._error
        return self.answer.result

    def cancel(self) -> None:
        """Ends it, with what came so far (`finish_reason` is `interrupted`). Does nothing if it has ended."""
        if not self.ended:
            self._cancel(self)

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self._done.is_set()

    def put(self, item: Item) -> None:
        """Hands out a piece, or what ends it; the engine's thread calls this."""
        self._pieces.put(item)
        listener = self.listener
        if listener is not None:
            with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody listens any more
                listener(self, item)

    def score(self, scores: Scores, row: int) -> None:
        """Takes the log-probabilities of the tokens that were pushed last, `[B, n, ...]` on the host."""
        told = self.answer.result.logprobs
        if told is None or self._logprobs is None:
            return
        ids = self.answer.result.token_ids[len(told) :]
        of_row = jax.tree.map(lambda leaf: leaf[row], scores)
        told += [_score(of_row, at, token, self._logprobs) for at, token in enumerate(ids)]

    @property
    def scores_prompt(self) -> bool:
        """Whether the tokens of its prompt are scored."""
        return self._prompt_logprobs is not None

    def score_prompt(self, scores: Scores, start: int, count: int) -> None:
        """Takes the log-probabilities of the tokens behind `count` ones of the prompt from `start` on."""
        told = self.answer.result.prompt_logprobs
        assert told is not None
        assert self._prompt_logprobs is not None
        behind = self.job.prompt[start + 1 : start + count + 1].tolist()
        told += [_score(scores, at, token, self._prompt_logprobs) for at, token in enumerate(behind)]

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes, because of an error if there is one; the engine's thread calls this."""
        if self.ended:
            return
        self._error = error
        self._done.set()
        self.put(error)


def _score(scores: Scores, at: int, token: int, likeliest: int) -> TokenScore:
    ids, values = (leaf[at, :likeliest].tolist() for leaf in (scores.ids, scores.values))
    return TokenScore(token, float(scores.chosen[at]), dict(zip(ids, values, strict=True)))
