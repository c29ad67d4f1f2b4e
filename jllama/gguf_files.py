"""Which files hold a GGUF model: known by how they begin, and the parts of a split one by their names."""

import re
from pathlib import Path

from jllama.errors import JllamaError
from jllama.file_errors import file_errors

_PART = re.compile(
    r"(?P<model>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE | re.ASCII
)
_FEW = 3  # missing parts that are named one by one


def is_gguf(path: Path) -> bool:
    """Whether a file's name or its first bytes say so: ollama's blobs have no suffix.

    Raises:
      JllamaError: it can't be read.
    """
    if path.suffix.lower() == ".gguf":
        return True
    with file_errors(path), path.open("rb") as file:
        return file.read(4) == b"GGUF"


def part_names(name: str) -> list[str]:
    """All names of the split model that a file's name says it is a part of; else that name alone."""
    match = _PART.fullmatch(name)
    count = int(match["count"]) if match else 0
    if match is None or not 1 <= int(match["number"]) <= count:
        return [name]
    return [
        f"{match['model']}-{number:05}-of-{match['count']}{match['suffix']}" for number in range(1, count + 1)
    ]


def parts(path: Path) -> list[Path]:
    """The files of a model, given one of them.

    Raises:
      JllamaError: names those that are missing.
    """
    found = [path.with_name(name) for name in part_names(path.name)]
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
    models: dict[str, Path] = {}
    for path in sorted({*named, *blobs}):
        models.setdefault(part_names(path.name)[0], path)
    return list(models.values())
