"""The output of a file of requests: one run's at a time, a line an answer, which tells what was asked."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jllama.cli.streams import say
from jllama.errors import JllamaError

Id = str | int
BEGINS = b'{"id": '  # an answer


class Output:
    """A file that holds answers, and takes more."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        """Made by `own`; a last line that was cut is taken off.

        Raises:
          JllamaError: the file was not written by such a run, or holds two lines with one id.
        """
        self.path, self.file = path, file
        self.kept: dict[Id, dict[str, Any]] = {}  # the records that were there
        self.answered = self.failed = 0  # lines that came since: with an answer, with an error
        self._read()

    def left(self, asked: Mapping[Id, str]) -> set[Id]:
        """The ids that have no answer here; lines that tell of an error instead are taken off.

        Args:
          asked: of each id the mark of its request (`prompts.Request`).

        Raises:
          JllamaError: names an id under which the answer to another request is there.
        """
        known = {id_: record for id_, record in self.kept.items() if id_ in asked}
        failed = {id_ for id_, record in known.items() if "error" in record}
        answers = {id_: record for id_, record in known.items() if id_ not in failed}
        for id_, record in answers.items():
            if record.get("request", asked[id_]) != asked[id_]:
                raise JllamaError(
                    f"{self.path} holds the answer to another request under the id {id_!r} (other words, "
                    "settings or another model): give another --output, or ask as before"
                )
        unmarked = sum("request" not in record for record in answers.values())
        if unmarked:
            say(f"note: {self.path} has {unmarked} answers that do not tell what was asked; they stay")
        self._drop(failed)
        return asked.keys() - answers.keys()

    def write(self, id_: Id, mark: str, report: Mapping[str, Any]) -> None:
        """A line more, which is in the file at once.

        Raises:
          JllamaError: a full disk.
        """
        line = json.dumps({"id": id_, "request": mark, **report}, ensure_ascii=False)
        with _writing(self.path):
            self.file.write(line.encode("utf-8") + b"\n")
            self.file.flush()
        if "error" in report:
            self.failed += 1
        else:
            self.answered += 1

    @property
    def count(self) -> int:
        """Answers that are there by now."""
        return self.answered + sum("error" not in record for record in self.kept.values())

    def _read(self) -> None:
        self.file.seek(0)
        data = self.file.read()
        whole = data[: data.rfind(b"\n") + 1]
        rest, lines = data[len(whole) :], whole.splitlines()
        for at, line in enumerate(lines, 1):
            record = self._record(line, at)
            if record["id"] in self.kept:
                raise JllamaError(
                    f"{self.path} holds two lines with the id {record['id']!r}, as two runs at once leave "
                    "them: give another --output, or take one of them out"
                )
            self.kept[record["id"]] = record
        if not rest.startswith(BEGINS[: len(rest)]):
            raise self._foreign(len(lines) + 1)
        if rest:
            self.file.truncate(len(whole))

    def _record(self, line: bytes, at: int) -> dict[str, Any]:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            record = json.loads(line)
            if type(record["id"]) in (str, int):
                return dict(record)
        raise self._foreign(at)

    def _foreign(self, at: int) -> JllamaError:
        what = "holds other things than answers of such a run"
        return JllamaError(f"{self.path} {what}: give another --output (line {at} is none)")

    def _drop(self, ids: set[Id]) -> None:
        """Takes lines off. The file is replaced whole: whatever ends this run, no other line is lost."""
        if not ids:
            return
        self.file.seek(0)
        lines = [
            line for line in self.file.read().splitlines(keepends=True) if json.loads(line)["id"] not in ids
        ]
        beside = self.path.with_name(f".{self.path.name[:40]}.new")
        with _writing(self.path):
            file = beside.open("w+b")
            _lock(self.path, file)
            file.write(b"".join(lines))
            file.flush()
            shutil.copymode(self.path, beside)
            beside.replace(self.path)
        self.file.close()
        self.file = file
        self.kept = {id_: record for id_, record in self.kept.items() if id_ not in ids}


@contextlib.contextmanager
def own(path: Path) -> Iterator[Output]:
    """Opens a file of answers for this run alone; where nothing is written none stays.

    Raises:
      JllamaError: it can't be written, another run writes to it, or it is no such file.
    """
    path = path.resolve()
    with _writing(path):
        file = path.open("a+b")
    try:
        _lock(path, file)
        if not (path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))):
            raise _taken(path, "")  # its run has just ended, and left nothing
        output = Output(path, file)
    except BaseException:
        file.close()
        raise
    try:
        yield output
    finally:
        if os.fstat(output.file.fileno()).st_size == 0:
            path.unlink(missing_ok=True)
        output.file.close()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JllamaError(f"cannot write {path}: {error.strerror or error}") from None


def _lock(path: Path, file: IO[bytes]) -> None:
    """Until the file is closed. Where the file system has no locks, others may be at it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _taken(path, _holder(file)) from None
    except OSError:
        return


def _taken(path: Path, holder: str) -> JllamaError:
    return JllamaError(f"another run{holder} writes to {path}: wait for its end, or give another --output")


def _holder(file: IO[bytes]) -> str:
    """Which process has locked a file, where Linux tells it."""
    inode = f":{os.fstat(file.fileno()).st_ino}"
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path("/proc/locks").read_text("utf-8").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(inode) and int(fields[4]) > 0:
                return f" (process {fields[4]})"
    return ""
