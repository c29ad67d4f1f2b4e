"""stdout holds the answer alone, stderr what is said to a person; both in UTF-8."""

import contextlib
import os
import select
import stat
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from jllama.errors import JllamaError, escaped
from jllama.files.paths import expanded
from jllama.machine.progress import Bar, PromptBar, shown

LARGEST_TEXT = 2**28
PATIENCE = 10.0  # seconds without a writer


def say(*lines: str) -> None:
    """A message for a person: stderr, so that stdout holds the answer alone.

    Args:
      lines: each stays one line and steers no terminal, whatever names from outside it holds. A stderr that
        takes no more loses them: the answer is what counts.
    """
    with contextlib.suppress(OSError):
        print(*map(escaped, lines), sep="\n", file=sys.stderr, flush=True)


def prompt_bar() -> Callable[[int], Bar] | None:
    """What shows how far a long prompt is read, if a person would see it."""
    return PromptBar if shown() else None


def prepare() -> None:
    """UTF-8 whatever the locale says; warnings in one line, like the other messages.

    Raises:
      JllamaError: one of them is closed.
    """
    if sys.stdout is None or sys.stderr is None:
        raise JllamaError("standard output or standard error is closed")
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    warnings.showwarning = _warn


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    from jllama.machine.devices import drop_damaged_programs

    say(f"warning: {message}")
    drop_damaged_programs(str(message))


def standard_input() -> BinaryIO:
    """The bytes of standard input.

    Raises:
      JllamaError: it is closed.
    """
    if sys.stdin is None:
        raise JllamaError("standard input is closed")
    return sys.stdin.buffer


def holds_unread() -> bool:
    """Whether something was piped into a program that does not read it."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
        piped = stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
        return piped and bool(select.select([sys.stdin], [], [], 0)[0]) and bool(sys.stdin.buffer.peek(1))  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):  # closed, or replaced by what is no file
        return False


def read_text(name: str) -> str:
    """A text as its bytes say it, line ends included, but without a byte order mark.

    Args:
      name: a file in UTF-8, or `-` for standard input.

    Raises:
      JllamaError: it can't be read, or not as UTF-8; it has no end, or it is a FIFO that nobody writes to.
    """
    try:
        data = _bytes(name)
        if len(data) > LARGEST_TEXT:
            raise JllamaError(f"{name} holds more than {LARGEST_TEXT >> 20} MiB: no model reads so much")
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise JllamaError(
            f"{name} is not UTF-8 (byte {error.start}): convert it, for instance with iconv"
        ) from None
    except OSError as error:
        raise JllamaError(f"cannot read {name}: {error.strerror}") from None


def _bytes(name: str) -> bytes:
    """No more of them than show that there are too many: a device has no end."""
    if name == "-":
        return standard_input().read(LARGEST_TEXT + 1)
    path = expanded(name)
    if stat.S_ISFIFO(path.stat().st_mode):
        return _from_pipe(path)
    with path.open("rb") as file:
        return file.read(LARGEST_TEXT + 1)


def _from_pipe(path: Path) -> bytes:
    """What a command writes, as in `--prompt_file=<(command)`. To open one that has no writer would wait."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as pipe:
        select.select([pipe], [], [], PATIENCE)
        first = pipe.raw.read(1)  # None: somebody holds it open, and has yet to write
        if first == b"":
            raise JllamaError(f"{path} is a FIFO, and nobody writes to it")
        os.set_blocking(pipe.fileno(), True)
        return (first or b"") + pipe.read(LARGEST_TEXT)


def settle() -> None:
    """Flushes; a stream that takes no more is replaced, or Python would change the exit code at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
