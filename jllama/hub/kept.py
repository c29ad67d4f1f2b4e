"""What fetching leaves in the cache: a model's file, and a record that vouches for it."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from jllama.errors import JllamaError
from jllama.files.paths import locked

SCRATCH = "unpack-"  # directories of this start, which nobody else reads
UNFINISHED = ".part"  # how the names of files end that the next start goes on with
_RECORD = "wheel.sha256"


def cached(home: Path, sha256: str | None) -> Path | None:
    """A GGUF whose source had the pinned hash; the record is written last, so it vouches for the file."""
    ggufs = [path for path in home.glob("*.gguf") if path.is_file()]
    record = home / _RECORD
    if len(ggufs) != 1 or not os.path.isfile(record):
        return None
    digest = record.read_text(encoding="utf-8", errors="replace")
    pinned = re.fullmatch("[0-9a-f]{64}", digest) if sha256 is None else digest == sha256.lower()
    return ggufs[0] if pinned else None


def keep(fresh: Path, digest: str, home: Path) -> Path:
    """Never a record beside a file that it does not vouch for, whenever the process or the machine ends.

    Args:
      fresh: the file, in a directory of this start's own.
      digest: SHA-256 of what may be pinned: the wheel, or the whole file if several wheels carry it.
      home: where it goes.
    """
    fresh_record, record = fresh.with_name(_RECORD), home / _RECORD
    fresh_record.write_text(digest, "utf-8")
    for file in (fresh, fresh_record):
        with file.open("rb") as written:
            os.fsync(written.fileno())
    record.unlink(missing_ok=True)
    os.replace(fresh, home / fresh.name)
    os.replace(fresh_record, record)
    return home / fresh.name


def tidy(home: Path, found: Path) -> None:
    """Nothing lies beside a complete file, unless a process was killed; then it need not stay."""
    if len(list(home.iterdir())) > 2 and os.access(home, os.W_OK):
        with contextlib.suppress(JllamaError, OSError), locked(home.name) as alone:
            if alone:
                sweep_beside(home, found)


def sweep_beside(home: Path, found: Path) -> None:
    """Removes all but a file and its record."""
    sweep(home, lambda path: path.name not in (found.name, _RECORD))


def sweep(home: Path, is_left_over: Callable[[Path], bool]) -> None:
    """Removes what a process that was killed left there, and earlier versions of the file."""
    for path in filter(is_left_over, list(home.iterdir())):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(home: Path) -> Iterator[None]:
    """Explains a failed write; a directory in which nothing came to lie goes again.

    A broken download stays, to be resumed, unless it is what fills the disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sweep(home, lambda path: path.suffix == UNFINISHED)
        raise JllamaError(
            f"cannot write to {home}: {error.strerror or error}; free some space, or set JLLAMA_CACHE to "
            "another directory"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            home.rmdir()
