"""Single faults: what is changed where, and lists of them."""

import collections
import dataclasses
import hashlib
import json
import tomllib
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Fault:
    """One change of one file."""

    id: str
    file: str
    old: str
    new: str
    line: int | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """Changes with what is planted, and not with the note."""
        text = "\0".join([self.file, self.old, self.new])
        return f"{self.id}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def planted(self, text: str) -> tuple[str, range]:
        """The text with the fault in it, and the lines that it changes.

        Raises:
          ValueError: the old text is not there, or more than once and no line says which.
        """
        starts = [i for i in range(len(text)) if text.startswith(self.old, i)]
        if not starts or self.old == self.new or (len(starts) > 1 and self.line is None):
            raise ValueError(f"{self.id}: {len(starts)} places in {self.file} have {self.old!r}")
        numbers = {at: text.count("\n", 0, at) + 1 for at in starts}
        at = min(starts, key=lambda at: abs(numbers[at] - (self.line or 0)))
        after = text[:at] + self.new + text[at + len(self.old) :]
        if self.file.endswith(".py"):
            compile(after, self.file, "exec")
        return after, range(numbers[at], numbers[at] + self.old.rstrip("\n").count("\n") + 1)


def read_faults(paths: list[Path]) -> list[Fault]:
    tables = []
    for path in paths:
        text = path.read_text("utf-8")
        tables += tomllib.loads(text)["fault"] if path.suffix == ".toml" else json.loads(text)
    faults = [Fault(**table) for table in tables]
    twice = [id for id, count in collections.Counter(fault.id for fault in faults).items() if count > 1]
    if twice:
        raise ValueError(f"ids that are there twice: {', '.join(twice)}")
    return faults
