"""The file format of SentencePiece models, a protocol buffer, without its library."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from jllama.files.errors import file_errors, refuse_stand_in
from jllama.text.vocabularies.spm import NORMAL, UNIGRAM, SpmModel

MAX_BYTES = 1 << 26  # ten times the largest known


def read_model(path: Path) -> SpmModel:
    """Read a SentencePiece `.model` file.

    Raises:
        JllamaError: it cannot be read, or is no SentencePiece model.
    """
    data = _read(path)
    try:
        return _model(list(_fields(data)))
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise JllamaError(f"{path} is not a SentencePiece model (truncated?); fetch it again") from error


def _read(path: Path) -> bytes:
    with file_errors(path), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise JllamaError(f"{path} is larger than any SentencePiece model; fetch it again")
    refuse_stand_in(path, data)
    return data


def _model(fields: list[tuple[int, Any]]) -> SpmModel:
    pieces = [_piece(value) for number, value in fields if number == 1]
    trainer, normalizer = (dict(_fields(dict(fields)[number])) for number in (2, 3))
    texts, scores, types = (list(column) for column in zip(*pieces, strict=True))
    return SpmModel(
        pieces=texts,
        scores=scores,
        types=types,
        kind=trainer.get(3, UNIGRAM),
        byte_fallback=bool(trainer.get(35, 0)),
        unk_id=trainer.get(40, 0),
        bos_id=_token_id(trainer.get(41, 1)),
        eos_id=_token_id(trainer.get(42, 2)),
        charsmap=bytes(memoryview(normalizer.get(2, b""))),
        add_prefix=bool(normalizer.get(3, 1)),
        squeeze=bool(normalizer.get(4, 1)),
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return fields.get(1, b"").decode(), score, fields.get(3, NORMAL)


def _token_id(value: int) -> int | None:
    # Protocol buffers write -1, "no such token", as an unsigned 64-bit number.
    return value if value < 1 << 31 else None


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer message: (number, value), in file order."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}[key & 7]
        if at + size > len(data):
            raise ValueError("a field runs beyond the end")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
