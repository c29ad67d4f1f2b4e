"""The headers of GGUF files, parsed with distrust.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
The parser is our own because `gguf.GGUFReader` takes seconds over a vocabulary; the tables of types and
the dequantisation are the `gguf` package's.
"""

import dataclasses
import functools
import math
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jllama.checkpoint.names import from_gguf, to_gguf
from jllama.checkpoint.stored import PLAIN, Checkpoint, Encoding, Stored
from jllama.errors import JllamaError
from jllama.paths import check_file

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 8  # arrays of arrays; no known file nests at all
_MAX_AXES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """Everything before the weights."""

    fields: dict[str, Any]
    tensors: tuple[Stored, ...]
    fields_end: int  # the byte behind the metadata


def read_gguf_fields(path: str | Path) -> dict[str, Any]:
    """The metadata as plain Python values by key: numbers, strings, booleans and lists of them.

    Raises:
      JllamaError: no such file, or not a sound GGUF.
    """
    return dict(read_gguf_header(Path(path)).fields)


def copy_gguf_fields(source: Path, target: Path) -> None:
    """Writes a GGUF file with the metadata of another and no tensors.

    Raises:
      JllamaError: `source` is not sound.
      OSError: `target` can't be written.
    """
    end = read_gguf_header(source).fields_end
    with source.open("rb") as file:
        head = file.read(end)
    target.write_bytes(head[:8] + bytes(8) + head[16:])


def read_gguf_header(path: Path) -> GgufHeader:
    """Metadata and tensors, checked against the file's size.

    Raises:
      JllamaError: unreadable, foreign, truncated, or inconsistent.
    """
    try:
        check_file(path)
        state = path.stat()
        return _cached_header(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise JllamaError(f"cannot read {path}: {error.strerror}") from None


@functools.lru_cache(maxsize=2)
def _cached_header(path: Path, size: int, changed: int) -> GgufHeader:
    """One start asks several times: configuration, tokenizer, weights."""
    if size < 24:
        raise JllamaError(f"{path} is too short for a GGUF file; download it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _parse(path, content)
        except (struct.error, IndexError, UnicodeDecodeError, OverflowError, MemoryError):
            raise JllamaError(f"{path} is truncated or damaged: its header breaks off") from None


def _parse(path: Path, content: mmap.mmap) -> GgufHeader:
    magic, version = content[:4], int.from_bytes(content[4:8], "little")
    if magic != b"GGUF":
        raise JllamaError(f"{path} is no GGUF file: it starts with {magic!r}")
    if version not in (2, 3):
        raise JllamaError(f"{path} has GGUF version {version}; jllama reads 2 and 3, little-endian")
    cursor = _Cursor(content, 8)
    tensor_count, field_count = cursor.number("Q"), cursor.number("Q")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = cursor.string()
        fields[key] = cursor.value(cursor.number("I"))
    fields_end = cursor.position
    infos = [cursor.tensor() for _ in range(tensor_count)]
    tensors = _place(path, fields, infos, cursor.position, len(content))
    return GgufHeader(fields=fields, tensors=tensors, fields_end=fields_end)


class _Cursor:
    """Walks over the header; a step past the end raises IndexError or struct.error."""

    def __init__(self, content: mmap.mmap, position: int) -> None:
        self.content, self.position, self.size = content, position, len(content)

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        if count * struct.calcsize(code) > self.size - self.position:
            raise IndexError
        layout = struct.Struct(f"<{count}{code}")
        values = layout.unpack_from(self.content, self.position)
        self.position += layout.size
        return values

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """Half of a start's parsing time: hence the local names."""
        content, position, size = self.content, self.position, self.size
        length_at, texts = struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            start = position + 8
            position = start + length_at(content, position)[0]
            if position > size:
                raise IndexError
            texts.append(content[start:position].decode("utf-8"))
        self.position = position
        return texts

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY or depth > _MAX_NESTING:
            raise IndexError
        inner, count = self.number("I"), self.number("Q")
        if inner == _STRING:
            return self.strings(count)
        if inner in _SCALARS:
            return list(self.numbers(_SCALARS[inner], count))
        return [self.value(inner, depth + 1) for _ in range(count)]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape (the file lists the fastest axis first), type, offset."""
        name, axes = self.string(), self.number("I")
        if axes > _MAX_AXES:
            raise IndexError
        return name, self.numbers("Q", axes)[::-1], self.number("I"), self.number("Q")


def _place(
    path: Path,
    fields: dict[str, Any],
    infos: list[tuple[str, tuple[int, ...], int, int]],
    end: int,
    size: int,
) -> tuple[Stored, ...]:
    """Where each tensor lies; offsets count from the first aligned byte behind the header."""
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise JllamaError(f"{path}: general.alignment={alignment!r} makes no sense; download it again")
    start = -(-end // alignment) * alignment
    tensors = []
    for name, shape, kind, offset in infos:
        encoding = _encoding(kind)
        nbytes = math.prod(shape) // encoding.block * encoding.size
        if start + offset + nbytes > size:
            raise JllamaError(f"{path} is truncated: {name} lies beyond its end; download it again")
        tensors.append(
            Stored(name=name, path=path, offset=start + offset, nbytes=nbytes, shape=shape, encoding=encoding)
        )
    return tuple(tensors)


@functools.cache
def _encoding(kind: int) -> Encoding:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        return Encoding(name=f"type {kind}")
    name = GGMLQuantizationType(kind).name
    decode = None if name in PLAIN else _decoder(kind, size)
    return PLAIN.get(name) or Encoding(name=name, block=block, size=size, decode=decode)


def _decoder(kind: int, size: int) -> Callable[[np.ndarray], np.ndarray] | None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    decode = functools.partial(dequantize, qtype=GGMLQuantizationType(kind))
    try:
        decode(np.zeros((1, size), np.uint8))
    except NotImplementedError:
        return None
    return decode


def open_gguf(path: Path) -> Checkpoint:
    """The tensors of a GGUF file.

    Raises:
      JllamaError: not a sound GGUF, or one part of several.
    """
    header = read_gguf_header(path)
    if header.fields.get("split.count", 1) not in (0, 1):
        raise JllamaError(f"{path} is one part of a split GGUF; join the parts with llama-gguf-split --merge")
    named = ((from_gguf(stored.name), stored) for stored in header.tensors)
    return Checkpoint(
        description=str(path),
        tensors={name: stored for name, stored in named if name is not None},
        spell=to_gguf,
        rotary_interleaved=header.fields.get("general.architecture") == "llama",
    )
