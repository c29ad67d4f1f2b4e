"""Writes checkpoints of random weights in Hugging Face's layout, for tests and benchmarks."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jllama.checkpoint.formats.safetensors import INDEX, SINGLE
from jllama.checkpoint.formats.stored import PLAIN
from jllama.checkpoint.layout import Part, parts
from jllama.checkpoint.output import appearing, check_free, copy_tokenizer
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.families.known import family_of
from jllama.families.tensor_names import to_hf

Spell = Callable[[str], str]  # a name of ours -> as the file spells it
CHUNK = 1 << 20  # numbers drawn at a time
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def write_random_checkpoint(
    config_path: Path,
    output: Path,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    scale: float = 0.02,
    shard_bytes: int | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Writes weights, `config.json` and tokenizer files, in a directory that appears when it is complete.

    Matrices and biases are normal with deviation `scale`, norms normal around what changes nothing. The
    numbers of a tensor depend on the seed, its name's place and the scale alone: not on sharding.

    Raises:
      JllamaError: a bad configuration, an output that exists, a full disk.
    """
    config, family = ModelConfig.from_hf(config_path), family_of(config_path)
    shards = _shards(list(parts(config).values()), PLAIN[DTYPES[dtype]].size, shard_bytes)
    check_free(output)
    with appearing(output) as directory:
        if tokenizer is not None and not copy_tokenizer(tokenizer, directory):
            raise JllamaError(f"{tokenizer} holds no tokenizer files")
        shutil.copyfile(config_path, directory / "config.json")
        centre = 1.0 - config.norm_offset  # where a norm changes nothing
        _write_shards(shards, directory, partial(to_hf, family=family), dtype, seed, scale, centre)


def _shards(tensors: list[Part], size: int, limit: int | None) -> list[list[Part]]:
    """In order; a shard holds at least one tensor."""
    shards: list[list[Part]] = [[]]
    room = limit or math.inf
    for part in tensors:
        nbytes = math.prod(part.shape) * size
        if shards[-1] and nbytes > room:
            shards.append([])
            room = limit or math.inf
        shards[-1].append(part)
        room -= nbytes
    return shards


def _write_shards(
    shards: list[list[Part]],
    directory: Path,
    spell: Spell,
    dtype: str,
    seed: int,
    scale: float,
    norm_centre: float,
) -> None:
    names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE]
    number, encoding, total = 0, PLAIN[DTYPES[dtype]], 0
    for name, shard in zip(names, shards, strict=True):
        with (directory / name).open("wb") as file:
            total += _write_header(file, shard, spell, encoding.name, encoding.size)
            for part in shard:
                for numbers in _random(part, np.random.SFC64([seed, number]), scale, norm_centre):
                    file.write(numbers.astype(encoding.plain).view(np.uint8).data)
                number += 1
    if len(shards) > 1:
        places = {spell(part.name): name for name, shard in zip(names, shards, strict=True) for part in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index, indent=2), "utf-8")


def _write_header(file: BinaryIO, shard: list[Part], spell: Spell, dtype: str, size: int) -> int:
    """Returns how many bytes of numbers follow."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in shard:
        begin, end = end, end + math.prod(part.shape) * size
        header[spell(part.name)] = dict(dtype=dtype, shape=part.shape, data_offsets=[begin, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return end


def _random(
    part: Part, bits: np.random.BitGenerator, scale: float, norm_centre: float
) -> Iterator[np.ndarray]:
    generator, left = np.random.Generator(bits), math.prod(part.shape)
    centre = norm_centre if part.is_norm else 0.0
    while left:
        numbers = generator.standard_normal(min(left, CHUNK), np.float32)
        numbers *= np.float32(scale)
        numbers += np.float32(centre)
        yield numbers
        left -= numbers.size
