"""The headers of safetensors files, checked before they are trusted.

The format: https://huggingface.co/docs/safetensors.
"""

import math
import os
from pathlib import Path
from typing import Any

from jllama.checkpoint.formats.stored import PLAIN, Checkpoint, Encoding, Stored
from jllama.errors import JllamaError
from jllama.families.family import Family
from jllama.families.llama import LLAMA
from jllama.families.tensor_names import from_hf, to_hf
from jllama.files.errors import file_errors, refuse_stand_in
from jllama.files.foreign import foreign_layout, weight_files
from jllama.files.json_files import parse_object, read_object
from jllama.files.paths import check_file

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # bytes; the limit of the format's own library
_MAX_VALUES = 1 << 21  # those of a quarter of a million tensors
_MAX_AXES = 8

# Types that the format knows and jllama does not compute with; bytes of each.
_UNREAD = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2}
_UNREAD |= {"I32": 4, "U32": 4, "I64": 8, "U64": 8, "C64": 8}
_ENCODINGS = PLAIN | {name: Encoding(name=name, size=size) for name, size in _UNREAD.items()}


def open_safetensors(directory: Path, family: Family = LLAMA) -> Checkpoint:
    """The tensors of a directory: a single file, or the shards that an index names.

    Args:
      directory: where they lie.
      family: whose names they have.

    Raises:
      JllamaError: no safetensors there, a missing shard, a file whose header is not to be trusted.
    """
    listed = [stored for path in tensor_files(directory) for stored in read_header(path)]
    tensors: dict[str, Stored] = {}
    for stored in listed:
        name = from_hf(stored.name, family)
        if name in tensors:
            first = tensors[name]
            raise JllamaError(
                f"{first.path.name} and {stored.path.name} in {directory} both hold {stored.name}; keep one"
            )
        if name is not None:
            tensors[name] = stored
    bare = bool(listed) and not any("model." in stored.name for stored in listed)

    def spell(name: str) -> str:
        return to_hf(name, family).removeprefix("model." * bare)

    return Checkpoint(description=str(directory), tensors=tensors, spell=spell)


def tensor_files(directory: Path) -> list[Path]:
    """A model's files: the single one where there is one, as in Hugging Face's code, else an index's shards.

    Raises:
      JllamaError: there are none, or not all; says what lies there instead.
    """
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if (directory / INDEX).exists():
        return _shards(directory / INDEX)
    found = weight_files(directory)
    if len(found) > 1:
        raise JllamaError(f"{directory} holds {len(found)} safetensors files but no {INDEX}; download it too")
    if not found:
        hint = " (its .bin files are not read: convert them to safetensors)" * any(directory.glob("*.bin"))
        nothing = f"holds no safetensors weights{hint}; download {SINGLE} into it"
        raise JllamaError(f"{directory} {foreign_layout(directory) or nothing}")
    return found


def _shards(index: Path) -> list[Path]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise JllamaError(f"{index} is no index with a weight_map; download it again")
    names = sorted(set(places.values()))
    odd = [name for name in names if Path(name).name != name]
    if odd:
        raise JllamaError(f"{index} names shards that are no plain file names: {', '.join(odd)}")
    # os.path.isfile, unlike the method of Path, says False of a name that no file can have.
    missing = [name for name in names if not os.path.isfile(index.parent / name)]
    if missing:
        raise JllamaError(f"{index.parent} lacks the shards {', '.join(missing)}; download them too")
    return [index.parent / name for name in names]


def read_header(path: Path) -> list[Stored]:
    """The tensors of one file.

    Raises:
      JllamaError: unreadable, empty, truncated, or not what it says it is.
    """
    with file_errors(path):
        check_file(path)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(256)
            refuse_stand_in(path, head)
            length = int.from_bytes(head[:8], "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise JllamaError(f"{path} is truncated, or no safetensors file; download it again")
            file.seek(8)
            text = file.read(length)
        tensors = _tensors(path, _header(path, text), 8 + length, size)
        _check_order(path, tensors, 8 + length, size)
    return tensors


def _header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = parse_object(path, text, most=_MAX_VALUES, object_pairs_hook=_unique)
    except JllamaError:
        raise JllamaError(f"{path} has no safetensors header that makes sense; download it again") from None
    header.pop("__metadata__", None)
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensors(path: Path, header: dict[str, Any], start: int, size: int) -> list[Stored]:
    tensors = []
    for name, entry in header.items():
        stored = _stored(path, name, entry, start)
        if stored is None:
            raise JllamaError(f"{path}: the header's entry for {name} makes no sense; download it again")
        if stored.offset + stored.nbytes > size:
            raise JllamaError(f"{path} is truncated: {name} lies beyond its end; download it again")
        tensors.append(stored)
    return tensors


def _stored(path: Path, name: str, entry: Any, start: int) -> Stored | None:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        return None
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if len(numbers) > _MAX_AXES + 2:
        return None
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in numbers) or end < begin:
        return None
    encoding = _ENCODINGS.get(dtype, Encoding(name=dtype))
    if encoding.size and math.prod(shape) * encoding.size != end - begin:
        return None
    return Stored(
        name=name,
        path=path,
        offset=start + begin,
        nbytes=end - begin,
        shape=tuple(shape),
        encoding=encoding,
    )


def _check_order(path: Path, tensors: list[Stored], start: int, size: int) -> None:
    """The format wants every byte behind the header to belong to one tensor."""
    end = start
    for stored in sorted(tensors, key=lambda stored: (stored.offset, stored.nbytes)):
        if stored.offset != end:
            wrong = "overlaps the tensor before it" if stored.offset < end else "lies behind a gap"
            raise JllamaError(f"{path} is damaged: {stored.name} {wrong}; download it again")
        end += stored.nbytes
    if end != size:
        raise JllamaError(f"{path} is damaged: {size - end} bytes belong to no tensor; download it again")
