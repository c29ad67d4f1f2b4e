"""The header of one GGUF file, parsed with distrust.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
The parser is our own because `gguf.GGUFReader` takes seconds over a vocabulary. A header may ask for
anything, so that what it makes Python build is counted before it is built.
"""

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from jllama.errors import JllamaError

MAX_HEADER = 1 << 26  # bytes; the largest vocabularies take 13 MB
MAX_VALUES = 1 << 22  # numbers and texts; the largest vocabularies hold 1.3 million
_CONTAINER = 16  # values that a key, an array and a tensor count for: what they cost beside one number
_MAX_NESTING = 8  # arrays of arrays; no known file nests at all
_MAX_AXES = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """One entry of the tensor list."""

    name: str
    shape: tuple[int, ...]  # the slowest axis first; the file lists the fastest one first
    kind: int  # ggml's number of the type
    offset: int  # from the first tensor on


class RawHeader(NamedTuple):
    """What stands before the weights."""

    fields: dict[str, Any]
    tensors: list[TensorInfo]
    fields_end: int  # the byte behind the metadata
    end: int  # the byte behind the tensor list


def parse_header(path: Path, content: mmap.mmap) -> RawHeader:
    """The header in the content of a file.

    Raises:
      JllamaError: foreign, cut off, larger than any model's, or a name stands there twice.
      Exception: of other types where it is damaged; see `file_errors`.
    """
    magic, version = content[:4], int.from_bytes(content[4:8], "little")
    if magic != b"GGUF":
        raise JllamaError(f"{path} is no GGUF file: it starts with {magic!r}")
    if version not in (2, 3):
        raise JllamaError(f"{path} has GGUF version {version}; jllama reads 2 and 3, little-endian")
    cursor = _Cursor(path, content, 8)
    tensor_count, field_count = cursor.number("Q"), cursor.number("Q")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = cursor.string()
        if key in fields:
            raise JllamaError(f"{path} is damaged: its metadata hold {key} twice; download it again")
        fields[key] = cursor.value(cursor.number("I"))
    fields_end = cursor.position
    tensors: dict[str, TensorInfo] = {}
    for _ in range(tensor_count):
        tensor = cursor.tensor()
        if tensor.name in tensors:
            raise JllamaError(f"{path} is damaged: it holds {tensor.name} twice; download it again")
        tensors[tensor.name] = tensor
    return RawHeader(fields, list(tensors.values()), fields_end, cursor.position)


class _Cursor:
    """Walks over the header and counts what it builds."""

    def __init__(self, path: Path, content: mmap.mmap, position: int) -> None:
        self.path, self.content, self.position = path, content, position
        self.end = min(len(content), MAX_HEADER)
        self.left = MAX_VALUES

    def refuse(self) -> JllamaError:
        large = self.left < 0 or self.end < len(self.content)
        reason = "asks for more than any model's" if large else "breaks off"
        return JllamaError(f"{self.path} is truncated or damaged: its header {reason}; download it again")

    def pay(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise self.refuse()

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        self.pay(count)
        layout = struct.Struct(f"<{count}{code}")
        if layout.size > self.end - self.position:
            raise self.refuse()
        values = layout.unpack_from(self.content, self.position)
        self.position += layout.size
        return values

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """Half of a start's parsing time: hence the local names."""
        self.pay(count)
        content, position, end = self.content, self.position, self.end
        length_at, texts = struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            start = position + 8
            if start > end:
                raise self.refuse()
            position = start + length_at(content, position)[0]
            if position > end:
                raise self.refuse()
            texts.append(content[start:position].decode("utf-8"))
        self.position = position
        return texts

    def value(self, kind: int, depth: int = 0) -> Any:
        self.pay(_CONTAINER)
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY or depth > _MAX_NESTING:
            raise JllamaError(
                f"{self.path} is damaged: its metadata hold a value of type {kind} in a place "
                "for another; download it again"
            )
        inner, count = self.number("I"), self.number("Q")
        if inner == _STRING:
            return self.strings(count)
        if inner in _SCALARS:
            return list(self.numbers(_SCALARS[inner], count))
        return [self.value(inner, depth + 1) for _ in range(count)]

    def tensor(self) -> TensorInfo:
        self.pay(_CONTAINER)
        name, axes = self.string(), self.number("I")
        if axes > _MAX_AXES:
            raise JllamaError(f"{self.path} is damaged: {name} has {axes} axes; download it again")
        return TensorInfo(name, self.numbers("Q", axes)[::-1], self.number("I"), self.number("Q"))
