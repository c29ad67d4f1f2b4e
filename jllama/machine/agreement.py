"""Processes that run one model together compare what they are about to run."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from jllama.errors import JllamaError
from jllama.machine import processes

_MARK = 16  # bytes of a digest
_MARKS = 8  # there is room for
_REASON = 400  # bytes of what a process can't go on for


def agree(marks: Mapping[str, str]) -> None:
    """Compares what the processes are about to run; alone, does nothing. All call it together.

    Args:
      marks: by what they are called, the same names in the same order everywhere; 8 at most.

    Raises:
      JllamaError: a process has another one than process 0, or can't go on (`telling`);
        raised in all of them.
    """
    group = processes.group()
    if group is None:
        return
    group.agreed = True
    own = [hashlib.sha256(mark.encode()).digest()[:_MARK] for mark in marks.values()]
    reasons, digests = _exchanged("", own)
    refused = next((f"process {rank} can't: {reason}" for rank, reason in enumerate(reasons) if reason), None)
    if refused or (refused := _difference([*marks], digests)):
        group.part()
        raise JllamaError(refused)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """An error before `agree` is told to the other processes, which would take this one for dead.

    Raises:
      JllamaError: the one raised inside.
    """
    try:
        yield
    except JllamaError as error:
        group = processes.group()
        if group is not None and not group.agreed:
            group.agreed = True
            _exchanged(str(error), [])
            group.part()
        raise


def _difference(names: list[str], digests: np.ndarray) -> str | None:
    first, *rest = digests[:, : len(names)]
    for rank, theirs in enumerate(rest, 1):
        others = [name for name, differ in zip(names, (first != theirs).any(-1), strict=True) if differ]
        if others:
            return (
                f"process {rank} has another {', another '.join(others)} than process 0: "
                "give all processes the same model and flags"
            )
    return None


def _exchanged(reason: str, marks: list[bytes]) -> tuple[list[str], np.ndarray]:
    """What each process can't go on for, and the digests of its marks, uint8 `[processes, 8, 16]`."""
    own = reason.encode()[:_REASON].ljust(_REASON, b"\0") + b"".join(marks).ljust(_MARK * _MARKS, b"\0")
    rows = _gathered(np.frombuffer(own, np.uint8)).astype(np.uint8)
    reasons = [row[:_REASON].tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]
    return reasons, rows[:, _REASON:].reshape(-1, _MARKS, _MARK)


def _gathered(words: np.ndarray) -> np.ndarray:
    """uint8 `[n]` of each process, as int32 `[processes, n]`."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(words.astype(np.int32)))
