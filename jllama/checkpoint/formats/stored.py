"""What a checkpoint file says about its tensors, whatever its format."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from jllama.errors import JllamaError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a tensor's numbers lie in a file: as they are, or in blocks that `decode` turns into numbers."""

    name: str
    block: int = 1  # numbers in a block
    size: int = 0  # bytes of a block; 0: a type that jllama does not know
    plain: np.dtype | None = None  # the numbers' type, when they lie there as they are
    decode: Callable[[np.ndarray], np.ndarray] | None = None  # uint8 [rows, bytes] -> float32 [rows, numbers]

    @property
    def readable(self) -> bool:
        """Whether jllama can read the numbers."""
        return self.plain is not None or self.decode is not None

    def numbers(self, raw: np.ndarray) -> np.ndarray:
        """The numbers `[rows, columns]` in `raw` (uint8 `[rows, bytes]`)."""
        if self.plain is not None:
            return raw.view(self.plain)
        assert self.decode is not None, f"{self.name} cannot be read"
        return self.decode(raw)


PLAIN = {
    name: Encoding(name=name, size=np.dtype(dtype).itemsize, plain=np.dtype(dtype))
    for name, dtype in (
        ("F64", np.float64),
        ("F32", np.float32),
        ("F16", np.float16),
        ("BF16", ml_dtypes.bfloat16),
    )
}


# What stands for a bias that a file leaves out: no bytes, and each number is 0.
ZERO = Encoding(name="zero", decode=lambda raw: np.zeros((len(raw), 1), np.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor in a file."""

    name: str  # as the file spells it
    path: Path
    offset: int  # bytes from the start of the file
    nbytes: int
    shape: tuple[int, ...]
    encoding: Encoding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All tensors of a model, by the names that `families/tensor_names.py` gives them."""

    description: str
    tensors: Mapping[str, Stored]
    spell: Callable[[str], str]  # a name of ours -> as this format spells it
    optional_biases: bool = False  # one that is missing is zero
    norm_shift: float = 0.0  # what the norms' weights hold too much
    rotary_interleaved: bool = False  # q and k rows pair element 2i with 2i + 1 (some GGUF architectures)


class Reader:
    """Reads parts of files into buffers, from any thread.

    Plain reads, not a memory map: mapped pages would count as this process's memory.
    """

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def open(self, path: Path) -> None:
        """Opens a file that `read` will be asked for.

        Raises:
          JllamaError: it can't be opened.
        """
        if path not in self._files:
            try:
                self._files[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            except OSError as error:
                raise JllamaError(f"cannot read {path}: {error.strerror}") from None

    def read(self, stored: Stored, start: int, out: np.ndarray) -> None:
        """Fills `out` (uint8, contiguous) with the tensor's bytes from `start` on.

        Raises:
          JllamaError: the file can't be read, or has become shorter.
        """
        view, offset = memoryview(out.reshape(-1).data), stored.offset + start
        while view:
            try:
                count = os.preadv(self._files[stored.path], [view], offset)
            except OSError as error:
                raise JllamaError(f"cannot read {stored.path}: {error.strerror}") from None
            if count == 0:
                raise JllamaError(f"{stored.path} ends inside {stored.name}; download it again")
            view, offset = view[count:], offset + count

    def read_rows(self, stored: Stored, row: int, column: int, out: np.ndarray) -> None:
        """Fills `out`, uint8 `[rows, bytes]`, from a row and a column (a block's first) on.

        Raises:
          JllamaError: see `read`.
        """
        each, first = stored.nbytes // stored.shape[0], column // stored.encoding.block * stored.encoding.size
        if out.shape[1] == each:
            return self.read(stored, row * each, out)
        for number, part in enumerate(out):
            self.read(stored, (row + number) * each + first, part)
        return None

    def close(self) -> None:
        """Closes all files."""
        while self._files:
            os.close(self._files.popitem()[1])
