"""The files that a save replaces: all of them whole, or none; and none that is somebody else's."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import safetensors

from jllama.errors import JllamaError
from jllama.files.paths import expanded, special_kind


def resolved(path: str | Path) -> Path:
    """The file that a path means, there or not, `~` expanded and links followed.

    Raises:
      JllamaError: a directory, FIFO, socket or device is there, a link leads to itself, or the name can't be
        used.
    """
    with reported(path, "use"):
        target = Path(os.path.realpath(expanded(path)))
        if target.is_symlink():
            raise JllamaError(f"{path} is a link that leads to itself: give another name")
        if target.exists() and (kind := special_kind(target)):
            raise JllamaError(f"{path} is {kind}, not a file: give the name of a file")
        return target


@contextlib.contextmanager
def replacing(*targets: Path) -> Iterator[list[Path]]:
    """Temporary files, readable by the user alone, that take the targets' places once all are complete."""
    temporary: list[Path] = []
    with reported(targets[0], "write"):
        try:
            for target in targets:
                handle, name = tempfile.mkstemp(prefix=".jllama-", suffix=".tmp", dir=target.parent)
                os.close(handle)
                temporary.append(Path(name))
            yield temporary
            for file in temporary:
                _settle(file)
            for file, target in zip(temporary, targets, strict=True):
                os.replace(file, target)
        finally:
            for file in temporary:
                file.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Waits for the disk: some report only then that they are full."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def reported(path: str | Path, verb: str) -> Iterator[None]:
    """Whatever a file system refuses, as one error: `cannot VERB PATH: why`.

    Raises:
      JllamaError: instead of what was raised within.
    """
    try:
        yield
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JllamaError(f"cannot {verb} {path}: {reason}") from None
