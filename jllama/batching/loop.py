"""What an engine's thread does: turns of the scheduler on the slots, one burst ahead of the readers."""

import threading
from collections.abc import Sequence

import jax
import numpy as np

from jllama.batching.groups import group_of, next_size
from jllama.batching.running import Running, masks_of
from jllama.batching.stream import Stream
from jllama.engine.asking import ask
from jllama.engine.borders import NONE, Borders
from jllama.engine.decoder import forced
from jllama.engine.rows import Piece
from jllama.engine.scheduler import Job, Scheduler, Stats
from jllama.engine.slots import Slots
from jllama.engine.step import BURST, HURRIED
from jllama.errors import EngineFailedError, JllamaError


class Loop:
    """Requests of any thread on slots that one thread owns."""

    def __init__(self, slots: Slots, scheduler: Scheduler, borders: Borders = NONE) -> None:
        """Starts the thread."""
        self._slots, self._scheduler, self._borders = slots, scheduler, borders
        self._streams: dict[Job, Stream] = {}
        self._cancelled: list[Stream] = []
        self._wake = threading.Condition()
        self._closed = False
        self._singles = 0  # turns of one token, one after the other
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="jllama engine", daemon=True)
        self._thread.start()

    def submit(self, streams: Sequence[Stream]) -> None:
        """Puts requests into the queue, all or none.

        Raises:
          JllamaError: one does not fit in a slot, they do not fit in the queue, or the loop has ended.
        """
        with self._wake:
            if self._error is not None:
                raise EngineFailedError(f"the engine has failed: {self._error}") from self._error
            if self._closed:
                raise JllamaError("the engine is closed: make another one")
            self._scheduler.submit([stream.job for stream in streams])
            self._streams.update((stream.job, stream) for stream in streams)
            self._wake.notify()

    def cancel(self, stream: Stream) -> None:
        """Ends a request, with what came so far."""
        with self._wake:
            self._cancelled.append(stream)
            self._wake.notify()

    @property
    def stats(self) -> Stats:
        """The scheduler's."""
        return self._scheduler.stats

    @property
    def error(self) -> BaseException | None:
        """What ended the thread before it was asked to end."""
        return self._error

    def close(self) -> None:
        """Ends all requests, with what came, and the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # What follows runs in the loop's thread.

    def _serve(self) -> None:
        try:
            running: Running | None = None
            while self._open(may_wait=running is None):
                firsts = self._read_prompts() if self._may_read(running) else []
                come = [ready for ready in (running, *firsts) if ready is not None]
                rows = self._running()
                asks = self._asks(rows)
                if not asks or len(rows) == 1:
                    come = [ready.followed() for ready in come]
                ahead = self._ask(rows, come) if asks else self._run_rows(rows)
                for ready in come:
                    self._deliver(ready)
                if ahead is None:
                    self._slots.settle()  # else chunks pile up before whoever comes next
                running = ahead
        except BaseException as error:
            self._error = error
        finally:
            self._end_all()

    def _open(self, may_wait: bool) -> bool:
        """Ends who cancelled, and waits for something to do if it may; whether the loop goes on."""
        with self._wake:
            while True:
                for stream in self._cancelled:
                    self._finish(stream)
                self._cancelled.clear()
                if self._closed or self._scheduler.busy or not may_wait:
                    return not self._closed
                self._wake.wait()

    def _may_read(self, running: Running | None) -> bool:
        """Rows that take one token a turn take as many between two chunks as a burst would."""
        self._singles = self._singles + 1 if running is not None and running.single else 0
        return self._singles % HURRIED == 0

    def _read_prompts(self) -> list[Running]:
        """Chunks of prompts, as many as rows that run may wait for; the first tokens behind those read."""
        firsts: list[Running] = []
        left = self._slots.turn_tokens
        self._admit()
        while left > 0 and (reader := self._scheduler.next_reader()) is not None:
            group = group_of(self._slots, self._streams, reader, self._scheduler.readers())
            left -= self._read(group, firsts)
            self._admit()  # who came meanwhile, or waited for what was just read
        return firsts

    def _admit(self) -> None:
        with self._wake:
            admitted = self._scheduler.admit()
        for admission in admitted:
            if admission.source != admission.job.slot:
                self._slots.copy_prefix(admission.source, admission.job.slot, admission.count)
            stream = self._streams[admission.job]
            stream.answer.result.reused_tokens = admission.count
            stream.queued_seconds = stream.answer.elapsed

    def _read(self, jobs: Sequence[Job], firsts: list[Running]) -> int:
        """A chunk of each prompt, behind the last one a first token; how many tokens that computes."""
        size = max(next_size(self._slots, self._streams, job) for job in jobs)
        pieces = [
            Piece(job.slot, job.prompt[job.done : job.done + size], job.done, len(job.prompt)) for job in jobs
        ]
        if self._streams[jobs[0]].scores_prompt:
            logits = self._read_scored(jobs[0], size)
        else:
            logits = self._slots.read_together(pieces, size)
        for job, piece in zip(jobs, pieces, strict=True):
            self._scheduler.read(job, len(piece.tokens), together=job is not jobs[-1])
        ended = [(at, job, self._streams[job]) for at, job in enumerate(jobs) if not job.reads]
        if ended:
            beginnings = [(job.slot, self._borders.stopping(stream.row), at) for at, job, stream in ended]
            streams = tuple(stream for _, _, stream in ended)
            first = self._slots.begin_together(beginnings, logits, masks_of(streams))
            firsts.append(Running.of(first, streams))
        return sum(len(piece.tokens) for piece in pieces) if self._slots.packs else size * len(jobs)

    def _read_scored(self, job: Job, size: int) -> jax.Array:
        logits, scores = self._slots.read_scored(job.slot, job.prompt, job.done, size)
        count = min(size, len(job.prompt) - job.done)
        self._streams[job].score_prompt(jax.tree.map(np.asarray, scores), job.done, count)
        return logits

    def _running(self) -> dict[int, Stream]:
        """All rows whose prompts are read, those of this turn too, by their slots."""
        jobs = (self._scheduler.jobs[slot] for slot in self._scheduler.running())
        return {job.slot: self._streams[job] for job in jobs if job is not None}

    def _asks(self, rows: dict[int, Stream]) -> bool:
        """Whether the next burst of these rows asks for masks."""
        return self._slots.masked.asks and any(stream.row.constraint is not None for stream in rows.values())

    def _ask(self, rows: dict[int, Stream], come: Sequence[Running]) -> Running:
        """A burst of rows that asks for masks. Who answers tells the constraints what came before."""
        running, streams = tuple(rows), tuple(rows.values())
        constraints, alone = [stream.row.constraint for stream in streams], len(rows) == 1
        before = [(ready.burst, ready.constraints) for ready in come if ready.single and not alone]
        stretch = forced(self._slots, running[0], constraints[0]) if alone else []
        burst, served = ask(self._slots, running, constraints, before)
        return Running(burst, streams, forced=tuple(stretch), served=served)

    def _run_rows(self, rows: dict[int, Stream]) -> Running | None:
        """A burst of rows that ask for nothing, if there are any."""
        if not rows:
            return None
        running, streams = tuple(rows), tuple(rows.values())
        steps = HURRIED if self._scheduler.hurried else BURST
        stretch = forced(self._slots, running[0], streams[0].row.constraint) if len(running) == 1 else []
        return Running.of(self._slots.run(running, steps, masks_of(streams)), streams, stretch)

    def _deliver(self, running: Running) -> None:
        """Hands out what a burst gave to whom it still concerns."""
        burst = jax.tree.map(np.asarray, running.burst)
        all_tokens, done, healthy, columns = burst.tokens, burst.done, burst.healthy, running.columns()
        for row, stream in enumerate(running.streams):
            if stream.ended:
                continue
            if not healthy[row]:
                slot = stream.job.slot
                self._finish(stream, self._slots.not_finite())
                self._slots.clear(slot)
                continue
            tokens = all_tokens[row, : columns[row]]
            pieces = list(stream.answer.push([*running.forced, *tokens[tokens >= 0].tolist()]))
            if burst.scores is not None:
                stream.score(burst.scores, row)  # before a reader hears of the text
            for piece in pieces:
                stream.put(piece)
            if columns[row] < all_tokens.shape[1] and not stream.answer.finished:
                self._finish(stream, running.error(row))
            elif done[row] and not stream.answer.finished and self._stops(stream):
                if tokens[0] >= 0:  # else it stopped before, and has gone on since this burst began
                    self._cross(stream)
            else:
                self._settle(stream, ended=bool(done[row]))

    def _stops(self, stream: Stream) -> bool:
        return self._borders.stops(stream.row, len(stream.answer.result.token_ids))

    def _cross(self, stream: Stream) -> None:
        slot = stream.job.slot
        self._borders.cross(self._slots, stream.row, stream.answer.result.token_ids, slot)
        self._scheduler.cross(stream.job)

    def _settle(self, stream: Stream, ended: bool) -> None:
        if ended and not stream.answer.finished:
            for piece in stream.answer.end():
                stream.put(piece)
        if ended or stream.answer.finished:
            self._finish(stream)

    def _finish(self, stream: Stream, error: BaseException | None = None) -> None:
        with self._wake:
            if self._streams.pop(stream.job, None) is not None:
                self._scheduler.release(stream.job, stream.answer.result.token_ids, sound=error is None)
                stream.end(error)

    def _end_all(self) -> None:
        with self._wake:
            self._closed = True
            error = self._error and EngineFailedError(f"the engine has failed: {self._error}")
            self._scheduler.clear()
            for stream in list(self._streams.values()):
                stream.end(error)
            self._streams.clear()
