"""Compiled kernels in the cache directory: which stay, and which nobody will miss."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

SCRATCH = "compile-"  # how the directories begin in which kernels are compiled
UNUSED = 30 * 86400  # seconds after which a compiled kernel goes
_EARLIER_SCRATCH, _ABANDONED = "tmp", 3600  # of earlier versions; seconds after which nobody compiles there


def touch(kernel: Path) -> None:
    """Notes that a kernel is in use; a read-only cache goes without."""
    with contextlib.suppress(OSError):
        os.utime(kernel)


def sweep(directory: Path, useless: Iterable[Path] = ()) -> None:
    """Removes `useless`, what a killed compilation left, and kernels of versions no longer run."""
    useless = set(useless)
    for path in [*directory.iterdir()]:
        with contextlib.suppress(OSError):
            if path in useless or _is_left_over(path):
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _is_left_over(path: Path) -> bool:
    age = time.time() - path.lstat().st_mtime
    if path.suffix in (".so", ".ptx"):
        return age > UNUSED
    return path.name.startswith((SCRATCH, _EARLIER_SCRATCH)) and age > _ABANDONED
