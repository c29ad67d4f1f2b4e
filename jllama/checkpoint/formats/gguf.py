"""GGUF files as checkpoints: where the tensors of a file, or of all parts of a split one, lie.

The dequantisation, and what is known of seldom types, is the `gguf` package's.
"""

import contextlib
import dataclasses
import functools
import math
import mmap
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jllama.checkpoint.formats.stored import PLAIN, Checkpoint, Encoding, Stored
from jllama.errors import JllamaError
from jllama.families.known import of_architecture
from jllama.families.tensor_names import from_gguf, to_gguf
from jllama.files.errors import file_errors, refuse_stand_in
from jllama.files.gguf_files import part_names, parts
from jllama.files.gguf_header import RawHeader, TensorInfo, parse_header
from jllama.files.paths import check_file

# ggml's number of a type -> its name, numbers in a block, bytes of one.
USUAL = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    28: ("F64", 1, 8),
    30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    20: ("IQ4_NL", 32, 18),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}


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
    return dict(_read_header(Path(path)).fields)


def copy_gguf_fields(source: Path, target: Path) -> None:
    """Writes a GGUF file with the metadata of another and no tensors.

    Raises:
      JllamaError: `source` is not sound.
      OSError: `target` can't be written.
    """
    end = _read_header(source).fields_end
    with source.open("rb") as file:
        head = file.read(end)
    target.write_bytes(head[:8] + bytes(8) + head[16:])


def read_gguf_header(path: Path) -> GgufHeader:
    """Metadata and tensors, checked against the file's size; of a split model, the tensors of all parts.

    Raises:
      JllamaError: unreadable, foreign, truncated, or inconsistent; parts missing or of different models.
    """
    first = _read_header(path)
    count = first.fields.get("split.count", 1)
    if type(count) is not int or count < 0:
        raise JllamaError(f"{path}: split.count={count!r:.40} makes no sense; download it again")
    if count < 2:
        return first
    if len(part_names(path.name)) == 1:
        raise JllamaError(
            f"{path} is a part of a split GGUF, but its name is not NAME-00001-of-0000N.gguf: give all parts "
            "the names that they were published with"
        )
    files = parts(path)
    headers = [first if file == path else _parse_file(file) for file in files]
    _check_parts(files, headers)
    return dataclasses.replace(
        headers[0], tensors=tuple(stored for header in headers for stored in header.tensors)
    )


def _check_parts(files: list[Path], headers: list[GgufHeader]) -> None:
    """Every part has the number that its name says, and together they hold each tensor of the model once."""
    tensors = [stored.name for header in headers for stored in header.tensors]
    wanted = {"split.count": len(files), "split.tensors.count": len(tensors)}
    for number, (file, header) in enumerate(zip(files, headers, strict=True)):
        for key, value in {"split.no": number, **wanted}.items():
            if (stated := header.fields.get(key)) != value:
                _refuse_part(file, f"its {key} is {stated!r}, not {value}")
    if len(set(tensors)) != len(tensors):
        _refuse_part(files[0], "some tensor is in two of them")


def _refuse_part(file: Path, reason: str) -> NoReturn:
    raise JllamaError(
        f"{file} does not belong to the other parts of this split GGUF: {reason}; download them again"
    )


def _read_header(path: Path) -> GgufHeader:
    with file_errors(path):
        check_file(path)
        state = path.stat()
    return _cached_header(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _cached_header(path: Path, size: int, changed: int) -> GgufHeader:
    """One start asks several times: configuration, tokenizer, weights."""
    return _parse_file(path)


def _parse_file(path: Path) -> GgufHeader:
    with file_errors(path), path.open("rb") as file:
        refuse_stand_in(path, file.read(256))
        if path.stat().st_size < 24:
            raise JllamaError(f"{path} is too short for a GGUF file; download it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = parse_header(path, content)
            tensors = _place(path, header, len(content))
    return GgufHeader(fields=header.fields, tensors=tensors, fields_end=header.fields_end)


def _place(path: Path, header: RawHeader, size: int) -> tuple[Stored, ...]:
    """Where each tensor lies; offsets count from the first aligned byte behind the header."""
    alignment = header.fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise JllamaError(f"{path}: general.alignment={alignment!r} makes no sense; download it again")
    start = -(-header.end // alignment) * alignment
    tensors = tuple(_stored(path, info, start) for info in header.tensors)
    for stored in tensors:
        if stored.offset + stored.nbytes > size:
            raise JllamaError(f"{path} is truncated: {stored.name} lies beyond its end; download it again")
    _check_order(path, tensors, start, alignment)
    return tensors


def _stored(path: Path, info: TensorInfo, start: int) -> Stored:
    encoding = _encoding(info.kind)
    return Stored(
        name=info.name,
        path=path,
        offset=start + info.offset,
        nbytes=math.prod(info.shape) // encoding.block * encoding.size,
        shape=info.shape,
        encoding=encoding,
    )


def _check_order(path: Path, tensors: tuple[Stored, ...], start: int, alignment: int) -> None:
    """The format wants each tensor at the first aligned byte behind the one before it."""
    end: int | None = start
    for stored in sorted(tensors, key=lambda stored: (stored.offset, stored.nbytes)):
        if end is not None and stored.offset != end:
            wrong = "overlaps the tensor before it" if stored.offset < end else "lies behind a gap"
            raise JllamaError(f"{path} is damaged: {stored.name} {wrong}; download it again")
        known = stored.encoding.size > 0
        end = stored.offset + -(-stored.nbytes // alignment) * alignment if known else None


@functools.lru_cache(maxsize=64)
def _encoding(kind: int) -> Encoding:
    """Of one of the file's types. The library that knows all of them takes longer to import than the header
    to read, so that it is asked for seldom ones alone.
    """
    if kind in USUAL:
        name, block, size = USUAL[kind]
        decode = functools.partial(_decoded, kind)
        return PLAIN.get(name) or Encoding(name=name, block=block, size=size, decode=decode)
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        return Encoding(name=f"type {kind}")
    name = GGMLQuantizationType(kind).name
    decode = functools.partial(_decoded, kind)
    with contextlib.suppress(NotImplementedError):
        decode(np.zeros((1, size), np.uint8))
        return Encoding(name=name, block=block, size=size, decode=decode)
    return Encoding(name=name, block=block, size=size)


def _decoded(kind: int, raw: np.ndarray) -> np.ndarray:
    """Blocks, uint8 `[rows, bytes]`, as float32 `[rows, numbers]`."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return dequantize(raw, GGMLQuantizationType(kind))


def open_gguf(path: Path) -> Checkpoint:
    """The tensors of a GGUF model, of all its parts where it is split.

    Raises:
      JllamaError: not a sound GGUF, or parts that are missing or not of one model.
    """
    header = read_gguf_header(path)
    family = of_architecture(header.fields.get("general.architecture"))
    tensors: dict[str, Stored] = {}
    for stored in header.tensors:
        name = from_gguf(stored.name, family)
        if name in tensors:
            raise JllamaError(f"{path} holds both {tensors[name].name} and {stored.name}; download it again")
        if name is not None:
            tensors[name] = stored
    return Checkpoint(
        description=str(path),
        tensors=tensors,
        spell=functools.partial(to_gguf, family=family),
        optional_biases=True,
        norm_shift=family.fields.get("norm_offset", 0.0),
        rotary_interleaved=family.rotary_interleaved,
    )
