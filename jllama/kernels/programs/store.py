"""Programs as files in the user's own cache directory; one that is damaged or foreign counts as none."""

import contextlib
import hashlib
import os
import pickle
import tempfile
import time
import zlib
from pathlib import Path

import jax
from jax.experimental import serialize_executable

from jllama.files.paths import cache_dir
from jllama.machine.native import kept

MAGIC = b"jllama program 1\n"
SUFFIX, ORDER = ".program", ".order"
LARGEST = 1 << 25  # bytes of a file
MOST, MOST_BYTES = 512, 1 << 28  # of all files: those that were used last stay
_SCRATCH, _ABANDONED = "writing-", 3600  # seconds


def directory() -> Path:
    """Where they lie; not always there, nor writable.

    Raises:
      JllamaError: others could write to it.
    """
    return cache_dir("programs", writable=False)


def name_of(key: str) -> str:
    """The file's name, without its suffix."""
    return hashlib.sha256(key.encode()).hexdigest()[:40]


def read(key: str) -> jax.stages.Compiled | None:
    """The program with this key; None if it is not there or not sound."""
    path = directory() / (name_of(key) + SUFFIX)
    try:
        if path.stat().st_size > LARGEST:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(Exception):  # unpickling and XLA raise anything
        content = _unsealed(data)
        if content is not None:
            written_for, *parts = pickle.loads(content)
            if written_for == key:
                program = serialize_executable.deserialize_and_load(*parts)
                kept.touch(path)
                return program
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def write(key: str, program: jax.stages.Compiled) -> None:
    """Keeps a program where that is possible, and lets old ones go."""
    with contextlib.suppress(Exception):  # not every program can be taken apart, nor every disk written
        content = pickle.dumps((key, *serialize_executable.serialize(program)))
        if len(data := _sealed(content)) <= LARGEST:
            _put(directory(), name_of(key) + SUFFIX, data)
            sweep(directory())


def read_order(key: str) -> list[str]:
    """The keys of the programs that the last start of this kind asked for, in their order."""
    try:
        content = _unsealed((directory() / (name_of(key) + ORDER)).read_bytes())
        return pickle.loads(content) if content is not None else []
    except Exception:
        return []


def write_order(key: str, keys: list[str]) -> None:
    """For the next start of this kind."""
    with contextlib.suppress(Exception):
        _put(directory(), name_of(key) + ORDER, _sealed(pickle.dumps(keys)))


def _sealed(content: bytes) -> bytes:
    packed = zlib.compress(content, 1)
    return MAGIC + hashlib.sha256(packed).digest() + packed


def _unsealed(data: bytes) -> bytes | None:
    head = len(MAGIC)
    packed = data[head + 32 :]
    sound = data[:head] == MAGIC and data[head : head + 32] == hashlib.sha256(packed).digest()
    return zlib.decompress(packed) if sound else None


def _put(place: Path, name: str, data: bytes) -> None:
    """Under its name when it is whole."""
    descriptor, scratch = tempfile.mkstemp(prefix=_SCRATCH, dir=place)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(scratch, place / name)
    except BaseException:
        os.unlink(scratch)
        raise


def sweep(place: Path) -> None:
    """Removes what nobody used for long, what there is too much of, and what killed processes left."""
    now, total, files = time.time(), 0, list[tuple[float, int, Path]]()
    for path in place.iterdir():
        with contextlib.suppress(OSError):
            state = path.stat()
            if path.name.startswith(_SCRATCH):
                _remove_if(path, now - state.st_mtime > _ABANDONED)
            elif path.suffix in (SUFFIX, ORDER):
                files.append((state.st_mtime, state.st_size, path))
    for at, (changed, size, path) in enumerate(sorted(files, reverse=True)):
        total += size
        _remove_if(path, at >= MOST or total > MOST_BYTES or now - changed > kept.UNUSED)


def _remove_if(path: Path, useless: bool) -> None:
    if useless:
        with contextlib.suppress(OSError):
            path.unlink()
