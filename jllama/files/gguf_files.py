"""Which files hold a GGUF model: known by how they begin, and the parts of a split one by their names."""

import contextlib
import re
from pathlib import Path

from jllama.errors import JllamaError
from jllama.files.errors import file_errors

_PART = re.compile(
    r"(?P<model>.+-)(?P<number>\d{5})(?P<rest>-of-(?P<count>\d{5})\.gguf)", re.IGNORECASE | re.ASCII
)
_FEW = 3  # missing parts that are named one by one


def is_gguf(path: Path) -> bool:
    """Whether a file's name or its first bytes say so: ollama's blobs have no suffix.

    Raises:
      JllamaError: it can't be read.
    """
    if path.suffix.lower() == ".gguf":
        return True
    with file_errors(path):
        return _has_magic(path)


def _has_magic(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def part_names(name: str) -> list[str]:
    """All names of the split model that a file's name says it is a part of; else that name alone."""
    match = _PART.fullmatch(name)
    count = int(match["count"]) if match else 0
    if match is None or not 1 <= int(match["number"]) <= count:
        return [name]
    return [f"{match['model']}{number:05}{match['rest']}" for number in range(1, count + 1)]


def part_paths(path: Path) -> list[Path]:
    """Where the parts of a model lie, or should lie, given one of them: others may differ in upper case."""
    found = [path.with_name(name) for name in part_names(path.name)]
    if all(part.is_file() for part in found):
        return found
    spelt: dict[str, Path] = {}
    with contextlib.suppress(OSError):  # a directory may let its files be read, and not be listed
        spelt = {other.name.lower(): other for other in path.parent.iterdir()}
    return [part if part.is_file() else spelt.get(part.name.lower(), part) for part in found]


def parts(path: Path) -> list[Path]:
    """The files of a model, given one of them.

    Raises:
      JllamaError: names those that are missing.
    """
    found = part_paths(path)
    missing = [part.name for part in found if not part.is_file()]
    if missing:
        more = f" and {len(missing) - _FEW} more" if len(missing) > _FEW else ""
        raise JllamaError(
            f"{path} is one of {len(found)} parts of a split GGUF, and {path.parent} lacks "
            f"{', '.join(missing[:_FEW])}{more}; download all parts into one directory"
        )
    return found


def first_part(path: Path) -> Path:
    """The file that stands for a model, given one of its files.

    Raises:
      JllamaError: it is missing.
    """
    first = path.with_name(part_names(path.name)[0])
    return first if first == path or first.is_file() else parts(path)[0]


def models_in(directory: Path) -> list[Path]:
    """A file of each GGUF model in a directory: the first that is there of a split one."""
    blobs = [path for path in directory.glob("sha256-*") if path.is_file() and is_gguf(path)]
    named = [path for path in directory.iterdir() if path.suffix.lower() == ".gguf"]
    found = {path.name: path for path in sorted({*named, *blobs})}
    spelt = {name.lower(): name for name in found}
    models: dict[str, Path] = {}
    for name, path in found.items():
        first = part_names(name)[0]
        models.setdefault(first if first in found else spelt.get(first.lower(), first.lower()), path)
    return list(models.values())


def unnamed_models_in(directory: Path) -> list[Path]:
    """The GGUF files in a directory that only their first bytes tell of."""
    found = []
    for path in sorted(directory.iterdir()):
        with contextlib.suppress(OSError):  # what can't be read is none of them
            if path.is_file() and path.stat().st_size and _has_magic(path):
                found.append(path)
    return found
