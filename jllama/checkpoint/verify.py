"""Checks a checkpoint's headers against a configuration, before anything big is allocated."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable

from jllama.checkpoint.formats.stored import ZERO, Checkpoint, Stored
from jllama.checkpoint.layout import Part, parts
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.families.tensor_names import EMBED, FUSED, HEAD
from jllama.files.foreign import foreign_tensors

FEW = 24  # names listed one by one; longer lists are folded over the layers


def verified(checkpoint: Checkpoint, config: ModelConfig) -> Checkpoint:
    """The checkpoint with exactly the tensors that the configuration needs.

    Tied embeddings may be stored as the embedding, as the unembedding, or as both.

    Raises:
      JllamaError: names every tensor that is missing, extra, misshapen or of a type that can't be read.
    """
    tensors = dict(checkpoint.tensors)
    if config.tie_word_embeddings and HEAD in tensors:
        tensors.setdefault(EMBED, tensors[HEAD])
        del tensors[HEAD]
    wanted = parts(config)
    tensors = _with_zeros(checkpoint, _unfused(tensors, wanted), wanted)
    problems = {
        "missing": [checkpoint.spell(name) for name in wanted if name not in tensors],
        "extra": [stored.name for name, stored in tensors.items() if name not in wanted],
    }
    known = [(wanted[name], stored) for name, stored in tensors.items() if name in wanted]
    problems["wrong shape"] = [
        f"{stored.name} {list(stored.shape)}, not {list(part.shape)}"
        for part, stored in known
        if stored.shape != part.shape
    ]
    problems["type that jllama cannot read"] = [
        f"{stored.name} ({stored.encoding.name})" for part, stored in known if not _readable(part, stored)
    ]
    _report(checkpoint.description, problems)
    return dataclasses.replace(checkpoint, tensors=tensors)


def _unfused(tensors: dict[str, Stored], wanted: dict[str, Part]) -> dict[str, Stored]:
    """A tensor that holds several, one behind another, as those."""
    apart: dict[str, Stored] = {}
    for name, stored in tensors.items():
        layer = re.fullmatch(r"(layers\.\d+\.)(.+)\.(weight|bias)", name)
        inner = [f"{layer[1]}{part}.{layer[3]}" for part in FUSED.get(layer[2], ())] if layer else []
        rows = [wanted[part].shape[0] for part in inner if part in wanted]
        if inner and len(rows) == len(inner) and stored.shape[:1] == (sum(rows),):
            apart |= zip(inner, _cut(stored, rows), strict=True)
        else:
            apart[name] = stored
    return apart


def _cut(stored: Stored, rows: list[int]) -> list[Stored]:
    """Consecutive rows of a tensor as tensors."""
    size, start, pieces = stored.nbytes // stored.shape[0], stored.offset, []
    for count in rows:
        shape = (count, *stored.shape[1:])
        pieces.append(dataclasses.replace(stored, offset=start, nbytes=count * size, shape=shape))
        start += count * size
    return pieces


def _with_zeros(
    checkpoint: Checkpoint, tensors: dict[str, Stored], wanted: dict[str, Part]
) -> dict[str, Stored]:
    """With the biases that a format may leave out: of all layers, for one that only some lack is lost."""
    first = next(iter(tensors.values()), None)
    if not checkpoint.optional_biases or first is None:
        return tensors
    held = {_of_any_layer(name) for name in tensors}
    absent = {
        name: dataclasses.replace(
            first, name=checkpoint.spell(name), offset=0, nbytes=0, shape=part.shape, encoding=ZERO
        )
        for name, part in wanted.items()
        if part.is_bias and _of_any_layer(name) not in held
    }
    return tensors | absent


def _of_any_layer(name: str) -> str:
    return re.sub(r"^layers\.\d+", "layers", name)


def _readable(part: Part, stored: Stored) -> bool:
    """Blocks must not straddle rows, so that rows can be read on their own."""
    block = stored.encoding.block
    return stored.encoding.readable and (block == 1 or (len(part.shape) > 1 and part.shape[-1] % block == 0))


def _report(description: str, problems: dict[str, list[str]]) -> None:
    found = [f"{kind}: {', '.join(_folded(names))}" for kind, names in problems.items() if names]
    if found:
        hint = foreign_tensors(problems["extra"])
        why = f" ({hint})" if hint else ""
        raise JllamaError(f"{description} does not fit its configuration{why}: {'; '.join(found)}")


def _folded(names: list[str]) -> Iterable[str]:
    """A long list with one entry for the same tensor of many layers: `model.layers.{0,1,2}.mlp...`."""
    if len(names) <= FEW:
        return names
    layers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        head, number, tail = (
            re.split(r"(\d+)", name, maxsplit=1) if re.search(r"\d", name) else (name, "", "")
        )
        layers[head, tail].append(number)
    return (
        head + (numbers[0] if len(numbers) == 1 else "{" + ",".join(numbers) + "}") + tail
        for (head, tail), numbers in layers.items()
    )
