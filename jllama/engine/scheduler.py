"""Who runs when: which request gets which slot, which prompt is read next, which rows take the next steps.

Plain Python about numbers, without jax: what it says depends on what was submitted and what came of it alone.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jllama.engine.beginnings import Beginnings
from jllama.errors import JllamaError, PromptTooLongError, QueueFullError

WORTH_COPYING = 32  # tokens: unless the engine says otherwise, a shorter beginning is read anew


@dataclasses.dataclass(eq=False)
class Job:
    """A request as the scheduler sees it."""

    prompt: np.ndarray  # int32 [n], at least one token
    whole: bool = False  # every token is read, whatever the slots hold
    slot: int = -1  # where it lies; -1: it waits
    done: int = 0  # tokens of the prompt that the slot holds

    @property
    def reads(self) -> bool:
        """Whether a part of its prompt is still to be read."""
        return self.done < len(self.prompt)

    @property
    def left(self) -> int:
        """How many of its tokens are still to be read."""
        return len(self.prompt) - self.done


@dataclasses.dataclass(frozen=True)
class Admission:
    """A job's place: `count` tokens are there already, once they are copied from slot `source`."""

    job: Job
    source: int
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
    """What goes on at a moment, and two sums since the beginning."""

    running: int  # jobs in a slot, their prompts read or not
    waiting: int
    slots: int
    max_queue: int
    used: float  # share of the positions of all slots that running jobs have filled
    asked_tokens: int  # of the prompts of all jobs that got a slot
    reused_tokens: int  # of those: a slot held them


class Scheduler:
    """First come, first served. A slot holds a job from its first token to its last, prompt and answer."""

    def __init__(
        self,
        slots: int,
        max_len: int,
        *,
        max_queue: int = 1024,
        share: bool = True,
        patient: bool = False,
        context: int | None = None,
        side: Callable[[int], int] = lambda count: 0,
        worth_copying: int = WORTH_COPYING,
    ) -> None:
        """All slots are free.

        Args:
          slots: how many jobs run at once.
          max_len: positions of a slot.
          max_queue: how many more may wait.
          share: begin with what a slot holds already, where a prompt begins with the same tokens.
          patient: nobody reads answers as they grow, so rows wait until all prompts that have a slot are
            read: a step of few rows takes nearly as long as one of many.
          context: positions that a slot could have at most, by the model; None: not known.
          side: of a text's length; texts of different sides share nothing (`Borders.side`).
          worth_copying: tokens; a shorter beginning that another slot holds is read anew.
        """
        self.max_len, self._max_queue, self._share = max_len, max_queue, share
        self._patient, self._context, self._side = patient, context, side
        self._worth_copying = worth_copying
        self._sides = [0] * slots  # of what a slot holds
        self.waiting: collections.deque[Job] = collections.deque()
        self.jobs: list[Job | None] = [None] * slots
        self._held = Beginnings(slots)  # the tokens that a slot holds
        self._prompts = Beginnings(slots)  # and those that it was given to read last
        self._used = [0] * slots  # how many jobs had got a slot when it was last given to one
        self._placed = 0  # jobs that got a slot
        self._reads = 0  # chunks of prompts so far
        self._asked, self._reused = 0, 0

    @property
    def stats(self) -> Stats:
        """Numbers of this moment; another thread may ask for them."""
        held = [len(self._held[slot]) for slot, job in enumerate(self.jobs) if job is not None]
        return Stats(
            running=len(held),
            waiting=len(self.waiting),
            slots=len(self.jobs),
            max_queue=self._max_queue,
            used=sum(held) / (len(self.jobs) * self.max_len),
            asked_tokens=self._asked,
            reused_tokens=self._reused,
        )

    @property
    def free(self) -> list[int]:
        """Slots without a job, the one that was not used for longest first."""
        return sorted((s for s, job in enumerate(self.jobs) if job is None), key=self._used.__getitem__)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Puts jobs at the end of the queue, all or none.

        Raises:
          JllamaError: one does not fit in a slot, or they do not fit in the queue.
        """
        remedy = "shorten the prompt, or make the engine with a larger max_seq_len"
        for job in jobs:
            check_fits(len(job.prompt), self.max_len, remedy, self._context)
        free = len(self.free)
        if len(self.waiting) + len(jobs) > self._max_queue + free:
            waiting = max(len(self.waiting) - free, 0)  # the others get a slot at once
            raise QueueFullError(
                f"the queue holds {self._max_queue}; {waiting} wait already and {len(jobs)} more came: "
                "try again later, or make the engine with a larger max_queue"
            )
        self.waiting.extend(jobs)

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self._live())

    @property
    def hurried(self) -> bool:
        """Whether someone waits, for a slot or to be read: a burst is short then."""
        return bool(self.waiting or self.readers())

    def admit(self) -> tuple[Admission, ...]:
        """Gives free slots to who waits."""
        return tuple(self._admissions())

    def running(self) -> tuple[int, ...]:
        """Slots whose prompts are read; none yet, if they are patient while another one reads."""
        live = self._live()
        waits = self._patient and any(job.reads for job in live)
        return () if waits else tuple(job.slot for job in live if not job.reads)

    def readers(self) -> list[Job]:
        """Whose prompts are not read yet, who has his slot for longest first."""
        return sorted((job for job in self._live() if job.reads), key=lambda job: self._used[job.slot])

    def next_reader(self) -> Job | None:
        """Whose prompt goes on: in turn who has his slot for longest, and who has least left to read."""
        readers = self.readers()
        if self._reads % 2 == 0:
            return readers[0] if readers else None
        return min(readers, key=lambda job: job.left, default=None)

    def read(self, job: Job, count: int, *, together: bool = False) -> None:
        """`count` more tokens of a prompt lie in its slot; `together`: more follow that were read with it."""
        job.done += count
        self._reads += not together
        self._held[job.slot] = job.prompt[: job.done]

    def cross(self, job: Job) -> None:
        """Its text was read anew beyond a border."""
        self._sides[job.slot] += 1

    def release(self, job: Job, answer: Iterable[int], *, sound: bool = True) -> None:
        """A job ended, whatever its state. What its slot holds stays, for others that begin alike.

        Args:
          job: it may also wait still.
          answer: the tokens that it generated; the last one is not in the slot.
          sound: whether what the slot holds is worth keeping.
        """
        if job.slot < 0:
            self.waiting.remove(job)
            return
        kept = [*answer][:-1]
        if not sound:
            self._held[job.slot] = np.zeros((0,), np.int32)
        elif kept:
            self._held[job.slot] = np.concatenate([job.prompt, np.asarray(kept, np.int32)])
        self.jobs[job.slot] = None
        job.slot = -1

    def clear(self) -> None:
        """Nobody runs or waits any more."""
        self.waiting.clear()
        self.jobs = [None] * len(self.jobs)

    def _live(self) -> list[Job]:
        return [job for job in self.jobs if job is not None]

    def _admissions(self) -> Iterable[Admission]:
        while self.waiting and (free := self.free):
            job = self.waiting[0]
            source, count = (-1, 0) if job.whole else self._best_source(job.prompt)
            if not job.whole and self._soon(job.prompt) > max(count, self._worth_copying - 1):
                return  # it costs nothing to wait: prompts are read one after the other
            self.waiting.popleft()
            held_here = source in free and count > 0
            job.slot = source if held_here else free[0]
            job.done = count if held_here or count >= self._worth_copying else 0
            self._sides[job.slot] = self._side(len(job.prompt))
            self._placed += 1
            self.jobs[job.slot], self._used[job.slot] = job, self._placed
            self._held[job.slot], self._prompts[job.slot] = job.prompt[: job.done], job.prompt
            self._asked, self._reused = self._asked + len(job.prompt), self._reused + job.done
            yield Admission(job, source if job.done else job.slot, job.done)

    def _soon(self, prompt: np.ndarray) -> int:
        """The longest beginning of a prompt that some slot will hold once it has read its own."""
        side = self._side(len(prompt))
        live = [job for job in self._live() if self._sides[job.slot] == side]
        reading = [job.slot for job in live if job.reads and self._share]
        return max(self._prompts.shared(prompt[:-1], reading), default=0)

    def _best_source(self, prompt: np.ndarray) -> tuple[int, int]:
        """The slot that holds the longest beginning of a prompt, and its length; one token is always left."""
        if not self._share:
            return -1, 0
        shared = self._held.shared(prompt[:-1], range(len(self.jobs)))
        shared = [n * (at == self._side(len(prompt))) for n, at in zip(shared, self._sides, strict=True)]
        longest = max(shared)
        equal = [slot for slot, count in enumerate(shared) if count == longest]
        # Of equal ones a free slot, which needs no copy.
        return next((slot for slot in equal if self.jobs[slot] is None), equal[0]), longest


def check_fits(prompt_tokens: int, max_len: int, remedy: str, context: int | None = None) -> None:
    """Refuses a prompt that leaves no room for an answer in a slot, and says the remedy.

    `context` is what `max_len` may be at most, if that is known.
    """
    if prompt_tokens < 1:
        raise JllamaError("the prompt is empty: give at least one token")
    if prompt_tokens + 1 > max_len:
        raise PromptTooLongError(prompt_tokens, max_len, remedy, context)
