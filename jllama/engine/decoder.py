"""A text at the pace of whoever reads it: its prompt, then bursts of tokens. No thread, no printing."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import jax
import numpy as np
from jax import Array

from jllama.engine.asking import ask, jump
from jllama.engine.mask_server import ALL, Constraints, follow
from jllama.engine.rows import Piece
from jllama.engine.slots import Slots
from jllama.engine.state import NO_TOKEN, Burst
from jllama.engine.step import BURST
from jllama.grammar.constraint import Constraint, masks_for
from jllama.machine.progress import Bar

BURST_SECONDS = 0.05
Progress = Callable[[int], Bar]  # makes a bar for that many tokens


def read_prompt(
    slots: Slots,
    prompt: np.ndarray,
    start: int = 0,
    *,
    slot: int = 0,
    progress: Progress | None = None,
    context: int | None = None,
) -> Array:
    """Puts a prompt, int32 `[n]`, into a slot that holds its first `start` tokens, fewer than n.

    Args:
      slots: where to.
      prompt: all of it.
      start: how many of its tokens are there.
      slot: which one.
      progress: makes a bar for so many tokens; not asked if one chunk holds them.
      context: the length of the whole text, if the prompt is a part of it.

    Returns:
      float32 `[1, V]`, the logits behind the last token.
    """
    total = len(prompt) - start
    with progress(total) if progress and slots.next_chunk(total) < total else nullcontext() as bar:
        while start < len(prompt):
            size = slots.next_chunk(len(prompt) - start)
            tokens = prompt[start : start + size]
            logits = slots.read_together([Piece(slot, tokens, start, context or len(prompt))], size)
            start += len(tokens)
            if bar is not None:
                jax.block_until_ready(logits)  # else it would count what was asked for, not what is done
                bar.advance(len(tokens))
    return logits


def bursts(slots: Slots, first: Burst, rows: Sequence[int] = (0,)) -> Iterator[np.ndarray]:
    """New tokens, int32 `[b, up to BURST]`, until all rows are done; `NO_TOKEN` fills those that are before.

    One burst ahead of the reader: the device never waits for the host. Bursts grow until one takes about
    `BURST_SECONDS`; on a GPU all have the same length. Elsewhere the first token is handed out before the
    steps are asked for: to make their program ready takes longer than that token did.

    Args:
      slots: with the rows' prompts.
      first: what `begin_together` gave: the first tokens.
      rows: whose.

    Raises:
      JllamaError: the logits of a row are not finite.
    """
    fixed, before, ready = slots.target.on_gpu, time.perf_counter(), first
    steps = BURST if fixed else 1
    while True:
        ahead = slots.run(rows, steps) if fixed or ready is not first else None
        tokens = ready.tokens
        if not ready.healthy.all():
            raise slots.not_finite()
        yield tokens[:, : _columns(tokens)]
        if ready.done.all():
            return
        ahead = ahead or slots.run(rows, steps)
        now = time.perf_counter()
        steps = BURST if fixed else _next_steps(steps, now - before, BURST_SECONDS)
        ready, before = ahead, now


def masked_bursts(
    slots: Slots, first: Burst, constraints: Sequence[Constraint | None], rows: Sequence[int] = (0,)
) -> Iterator[np.ndarray]:
    """`bursts` of rows of which some must match: they ask for masks, or have one token each, where the next
    logits are under way meanwhile.

    Args:
      slots: with the rows' prompts.
      first: what `begin_together` gave, with masks.
      constraints: of each row; they follow the tokens.
      rows: whose.

    Raises:
      JllamaError: the logits of a row are not finite, or it can't go on as it must.
    """
    if slots.masked.asks:
        yield from _asking_bursts(slots, first, constraints, rows)
        return
    ready, over = first, np.zeros((len(rows),), bool)
    while True:
        tokens, done = ready.tokens, ready.done
        if not ready.healthy.all():
            raise slots.not_finite()
        follow(tokens, constraints)
        raise_first(_going(constraints, over))
        if done.all():
            yield tokens
            return
        stretch = forced(slots, rows[0], constraints[0]) if len(rows) == 1 else []
        ready = slots.run(rows, 1, masks_for(constraints))
        yield np.concatenate([tokens, [stretch]], axis=1, dtype=np.int32) if stretch else tokens
        over = done
        raise_first(_going(constraints, over))


def _asking_bursts(
    slots: Slots, first: Burst, constraints: Sequence[Constraint | None], rows: Sequence[int]
) -> Iterator[np.ndarray]:
    """`masked_bursts` that ask, like `bursts` one ahead of the reader. A row that is alone asks for few
    tokens at once: what comes without a choice behind them is known then.
    """
    before: Sequence[tuple[Burst, Constraints]] = [(first, constraints)]
    ready, served, over = first, None, np.zeros((len(rows),), bool)
    alone, stretch = len(rows) == 1, list[int]()
    while True:
        if alone:
            follow(first.tokens, constraints) if served is None else served.counts()
            stretch, before = forced(slots, rows[0], constraints[0]), ()
        ahead = ask(slots, rows, constraints, before)
        before, tokens = (), ready.tokens
        if not ready.healthy.all():
            raise slots.not_finite()
        counts = np.full(len(rows), ALL) if served is None else served.counts()
        stuck = ~over & (counts < tokens.shape[1])
        if (columns := counts[stuck].min() if stuck.any() else _columns(tokens)) > 0:
            yield tokens[:, :columns]
        raise_first([each for each, is_stuck in zip(constraints, stuck, strict=True) if is_stuck])
        if stretch:
            yield np.array([stretch], np.int32)
        if ready.done.all():
            ahead[1].counts()  # then the thread has let go of the constraints
            return
        over = ready.done[: len(rows)]
        ready, served = ahead


def _columns(tokens: np.ndarray) -> int:
    """How many columns have a token, one at least."""
    return max(1, int((tokens != NO_TOKEN).any(axis=0).sum()))


def forced(slots: Slots, slot: int, constraint: Constraint | None) -> list[int]:
    """Tokens that must come next in a row that runs alone, taken as one chunk; none, if steps are as fast."""
    if constraint is None:
        return []
    stretch = constraint.stretch(slots.masked.most_forced(slot, slots.target))
    if len(stretch) <= slots.target.chunk_steps:
        return []
    if slots.masked.asks:
        jump(slots, slot, constraint.last, stretch)
    else:
        slots.accept(slot, np.array(stretch, np.int32))
    constraint.follow(stretch)
    return stretch


def _going(constraints: Sequence[Constraint | None], over: np.ndarray) -> list[Constraint | None]:
    """Those of rows that are not over: what else could come there is of no matter."""
    return [each for each, is_over in zip(constraints, over, strict=True) if not is_over]


def raise_first(constraints: Sequence[Constraint | None]) -> None:
    """Raises why one of them can't go on, if one can't."""
    for constraint in constraints:
        if constraint is not None and constraint.error is not None:
            raise constraint.error


def _next_steps(steps: int, seconds: float, target: float) -> int:
    """Twice as many while they took less than half of the target time, half when more than twice."""
    return min(2 * steps, BURST) if seconds < target / 2 else max(1, steps // (1 + (seconds > 2 * target)))
