"""Directories that appear when they are complete, or not at all."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import safetensors

from jllama.errors import JllamaError


def check_free(output: Path) -> None:
    """Refuses a place where something is already, before any work.

    Raises:
      JllamaError: it is a file, or a directory that holds anything.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise JllamaError(f"{output} exists already; remove it or choose another --output")


@contextlib.contextmanager
def appearing(output: Path) -> Iterator[Path]:
    """A directory to write into, which takes the place of `output` at the end.

    Raises:
      JllamaError: a full disk, no permission.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
            complete = Path(scratch) / "complete"
            complete.mkdir()
            yield complete
            complete.replace(output)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JllamaError(f"cannot write {output}: {reason}; nothing was left there") from None
