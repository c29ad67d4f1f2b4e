"""Directories that appear when they are complete, or not at all."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import safetensors

from jllama.errors import JllamaError
from jllama.files.model_files import TOKENIZER_FILES
from jllama.files.paths import expanded


def output_directory(name: str) -> Path:
    """The place that `--output` names, `~` expanded; refused before any work if nothing can be written there.

    Raises:
      JllamaError: as `check_free`; there is no such user; nothing can be written there.
    """
    output = expanded(name)
    check_free(output)
    place = next(path for path in (output, *output.absolute().parents) if path.exists())
    with _refusing(output), tempfile.TemporaryDirectory(dir=place):
        return output


def check_free(output: Path) -> None:
    """Refuses a place where something is already, before any work.

    Raises:
      JllamaError: it is a file, a link to nothing, or a directory that holds anything.
    """
    with _refusing(output):
        if output.is_symlink() and not output.exists():
            raise JllamaError(f"{output} is a link to nothing; remove it or choose another --output")
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise JllamaError(f"{output} exists already; remove it or choose another --output")


@contextlib.contextmanager
def appearing(output: Path) -> Iterator[Path]:
    """A directory to write into, which takes the place of `output` at the end.

    Raises:
      JllamaError: a full disk, no permission.
    """
    with _refusing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        # An empty directory may be a mount point or somebody's working directory: it is filled, not replaced.
        place = output if output.exists() else output.parent
        with tempfile.TemporaryDirectory(prefix=f".{output.name[:40]}-", dir=place) as scratch:
            complete = Path(scratch) / "complete"
            complete.mkdir()
            yield complete
            if place is output:
                _move_all(complete, output)
            else:
                complete.replace(output)


def copy_tokenizer(source: Path, target: Path) -> bool:
    """Copies whatever a tokenizer reads beside the weights (`TOKENIZER_FILES`); False: there is nothing."""
    files = [file for pattern in TOKENIZER_FILES for file in source.glob(pattern) if file.is_file()]
    for file in files:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    return bool(files)


def _move_all(source: Path, target: Path) -> None:
    """The configuration last: without it the rest is no model yet."""
    for file in sorted(source.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(target / file.name)


@contextlib.contextmanager
def _refusing(output: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JllamaError(f"cannot write {output}: {reason}; nothing was left there") from None
