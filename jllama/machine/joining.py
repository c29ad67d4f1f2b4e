"""The beginning of several processes: who they are, and the wait until all of them are there."""

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jllama.errors import JllamaError
from jllama.machine import devices, meeting, processes

SOON = 2.0  # seconds after which a person is told what is waited for
_LONGER = 3600  # JAX's own limit: when it is over JAX ends the process with a trace of its stack


class NobodyCameError(JllamaError):
    """A thread still waits for the others: only `os._exit` ends the process."""


def start(
    coordinator: str | None,
    count: int | None,
    rank: int | None,
    *,
    device: str = "auto",
    marks: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Joins this process to others, before JAX's first use; does nothing where there are none.

    Args:
      coordinator: `HOST:PORT` of process 0; None: Slurm or Open MPI says it.
      count: how many processes there are; likewise.
      rank: which of them this one is, from 0; likewise.
      device: see `devices.configure`, which this calls between two steps.
      marks: flags that must have the same values in all processes, by their names.
      say: is told, after a moment, what is waited for.

    Raises:
      NobodyCameError: the others did not come in time.
      JllamaError: a number is missing or makes no sense, or the processes can't be joined.
    """
    given = [value is not None for value in (coordinator, count, rank)]
    if not any(given) and not under_a_launcher():
        return
    if any(given) and not all(given):
        raise JllamaError("give --coordinator_address, --num_processes and --process_id, all or none of them")
    meet = None
    if coordinator is not None and rank is not None and count is not None:
        meet = _meeting(coordinator, count, rank, {"--num_processes": str(count), **(marks or {})})
    import jax  # noqa: F401  # here: it takes a second that is no wait for others

    waits = _waits(coordinator, count, rank)
    if meet is not None:
        _awaited(meet, waits, say)
    _awaited(lambda: _join(coordinator, count, rank, device), waits, say)


def hush() -> None:
    """Before JAX is imported: else each process warns that recoverability is experimental."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _meeting(coordinator: str, count: int, rank: int, marks: Mapping[str, str]) -> Callable[[], None]:
    """What waits for the others. Whatever can be refused without them is refused here."""
    host, port = meeting.split(coordinator, "--coordinator_address")
    if not 0 <= rank < count:
        raise JllamaError(f"--process_id={rank}: of --num_processes={count} it is one from 0 to {count - 1}")
    if rank == 0:
        server = meeting.listening(host, port)
        return lambda: meeting.lead(server, count, marks)
    meeting.resolved(host)
    return lambda: meeting.follow(host, port, rank, marks)


def _waits(coordinator: str | None, count: int | None, rank: int | None) -> str:
    """What one of the processes waits for, as far as it can know."""
    if coordinator is None:
        return "waiting for the other processes"
    others = "the others" if rank == 0 else "process 0"
    return f"waiting for {others} at {coordinator} (this is process {rank} of {count})"


def _awaited(join: Callable[[], None], waits: str, say: Callable[[str], None]) -> None:
    """Waits for `join` in a thread of its own: inside it no signal would be noticed."""
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            join()
        except BaseException as error:
            errors.append(error)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    if not done.wait(SOON):
        say(f"note: {waits}")
        if not done.wait(processes.START):
            raise NobodyCameError(f"{waits}: nobody came within {processes.START} seconds")
    if errors:
        raise errors[0]


def _join(coordinator: str | None, count: int | None, rank: int | None, device: str) -> None:
    import jax

    # Else JAX ends a process whose neighbour has died before it can say why.
    jax.config.update("jax_enable_recoverability", True)
    times: Any = dict(initialization_timeout=_LONGER, shutdown_timeout_seconds=processes.END_SECONDS)
    try:
        jax.distributed.initialize(coordinator, count, rank, **times)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise JllamaError(f"the processes did not find each other: {reason}") from None
    with quiet():
        devices.configure(device)
        if jax.process_count() > 1:
            processes.form(jax.process_index(), jax.process_count())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """stdout is the answer's: native code's lines (Gloo says whom it knows) are lost, or go to stderr.

    To stderr where somebody asks NCCL to speak, which does so on stdout.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    there = os.dup(2) if "NCCL_DEBUG" in os.environ else os.open(os.devnull, os.O_WRONLY)
    os.dup2(there, 1)
    os.close(there)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def under_a_launcher() -> bool:
    """Whether this is one of several tasks that Slurm or Open MPI has started."""
    slurm = os.environ.get("SLURM_NTASKS", "1") if "SLURM_STEP_ID" in os.environ else "1"
    counts = (slurm, os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    return any(count.isdecimal() and int(count) > 1 for count in counts)
