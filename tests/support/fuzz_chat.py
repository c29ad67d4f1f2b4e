"""Damaged saved conversations: the JSON, its values, and the cache beside it. See `fuzz.py`.

Whatever is accepted must also go on: an answer is asked for.
"""

import copy
import functools
import hashlib
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from tests.support.tiny_checkpoint import TEMPLATE, write_tiny_model

LONG = "x" * 100_000
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 10**9, 2**31, -(2**63), 10**30, 10**400),
    *(0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf")),
    *("", "a", "main", "user", "assistant", "drop_oldest", "\ud800", "\0", "\x1b[2J", "é" * 50, LONG),
    *(
        "{{",
        "{% for %}",
        "{{ messages }}",
        "{{ 1 // 0 }}",
        "{user}{ai}",
        "U: {user}\\nA: {ai}\\n",
        "{ai}{user}",
    ),
    *([], {}, [[]], [1, 2], {"a": 1}, [None] * 100, {"5": 1.0}, {"role": "user", "content": "x"}),
)


@functools.cache
def _model() -> Any:
    import jllama

    with tempfile.TemporaryDirectory() as place:
        return jllama.load(write_tiny_model(Path(place) / "tiny", template=TEMPLATE), dtype="float32")


def _conversation() -> Any:
    from jllama.chat.conversation import Conversation

    return Conversation(_model(), max_seq_len=192)


@functools.cache
def _saved() -> dict[str, bytes]:
    """The files of a sound conversation of two branches, with its cache."""
    from jllama.chat.archive import archive
    from jllama.settings import GenerationSettings

    settings = GenerationSettings(max_new_tokens=6, temperature=0.5, stop=("\n\n",), logit_bias={7: -1.0})
    talk = _conversation()
    talk.set_system("Be kind.")
    "".join(talk.ask("Hello", settings))
    talk.fork("other")
    "".join(talk.ask("Who are you?", settings))
    with tempfile.TemporaryDirectory() as place:
        files = archive.save(talk, settings, Path(place) / "talk.json", cache=True)
        return {file.name: file.read_bytes() for file in files}


def _read(directory: Path) -> None:
    """Loads the conversation and goes on with it."""
    import dataclasses

    from jllama.chat.archive import archive

    talk = _conversation()
    settings, _ = archive.load(talk, directory / "talk.json")
    short = dataclasses.replace(settings, max_new_tokens=2)
    "".join(talk.ask("Go on", short))
    archive.save(talk, settings, directory / "talk.json", cache=True)


def _copied(directory: Path) -> tuple[Path, Path]:
    for name, data in _saved().items():
        (directory / name).write_bytes(data)
    return directory / "talk.json", directory / "talk.json.safetensors"


def _spoilt(draw: random.Random, data: bytes) -> bytes:
    """A few bytes cut, changed, doubled or put in."""
    for _ in range(draw.choice((1, 1, 2, 5))):
        at, size = draw.randrange(len(data) + 1), draw.choice((1, 1, 2, 8, 100))
        new = draw.choice(
            (b"", draw.randbytes(size), data[at : at + size] * 2, b'"', b"[", b"{", b"9" * size)
        )
        data = data[:at] + new + data[at + draw.choice((0, size)) :]
    return data


def _places(value: Any, place: tuple = ()) -> list[tuple]:
    """The way to each value within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, inner in items for found in _places(inner, (*place, key)))]


def _changed(draw: random.Random, document: Any) -> Any:
    """The document with one value replaced, removed, or put elsewhere."""
    document = copy.deepcopy(document)
    *way, last = draw.choice(_places(document)[1:])
    inner = document
    for key in way:
        inner = inner[key]
    act = draw.randrange(4)
    if act == 0:
        del inner[last]
    elif act == 1 and isinstance(inner, dict):
        inner[draw.choice((LONG, "", "more", "\x1b", "-1", "5"))] = inner[last]
    elif act == 1:
        inner.insert(draw.randrange(len(inner) + 1), draw.choice((inner[last], draw.choice(ODD))))
    else:
        inner[last] = copy.deepcopy(draw.choice(ODD))
    return document


def bytes_of_json(draw: random.Random, directory: Path) -> None:
    file, _ = _copied(directory)
    file.write_bytes(_spoilt(draw, file.read_bytes()))
    _read(directory)


def values_of_json(draw: random.Random, directory: Path) -> None:
    file, _ = _copied(directory)
    document = json.loads(file.read_text())
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        document = _changed(draw, document)
    file.write_text(json.dumps(document))
    _read(directory)


def _agree(directory: Path) -> None:
    """Lets the document say that this is its cache."""
    file, cache = directory / "talk.json", directory / "talk.json.safetensors"
    digest = hashlib.sha256(cache.read_bytes()).hexdigest()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cache_sha256": digest}))


def bytes_of_cache(draw: random.Random, directory: Path) -> None:
    _, cache = _copied(directory)
    data = cache.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    cut = draw.choice((8, header, len(data)))
    cache.write_bytes(_spoilt(draw, data[:cut]) + data[cut:])
    _agree(directory)
    _read(directory)


def tensors_of_cache(draw: random.Random, directory: Path) -> None:
    _, cache = _copied(directory)
    with safetensors.safe_open(cache, framework="numpy") as opened:
        metadata = opened.metadata()
    tensors = load_file(cache)
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice([*tensors, "more"])
        changed = _changed_tensor(draw, tensors.get(name, np.zeros((2, 2), np.float32)))
        tensors = {key: value for key, value in tensors.items() if key != name}
        if changed is not None:
            tensors[name] = np.ascontiguousarray(changed)
    if draw.random() < 0.1:
        metadata |= {draw.choice(("model", "format", "fingerprint", "more")): draw.choice(("", LONG, "\x1b"))}
    save_file(tensors, cache, metadata=metadata)
    _agree(directory)
    _read(directory)


def _changed_tensor(draw: random.Random, array: np.ndarray) -> np.ndarray | None:
    def one(value: float) -> np.ndarray:
        copied = array.copy()
        if copied.size:
            copied.flat[draw.randrange(copied.size)] = value
        return copied

    axis = draw.randrange(array.ndim) if array.ndim else 0
    changes: list[Callable[[], np.ndarray | None]] = [
        lambda: None,
        lambda: one(
            draw.choice((-1, 2**31 - 1)) if array.dtype.kind == "i" else draw.choice((np.nan, np.inf, 1e38))
        ),
        lambda: array[None],
        lambda: array[..., 0] if array.ndim and array.shape[-1] else array,
        lambda: np.concatenate([array, array], axis) if array.ndim else array,
        lambda: array.take(range(draw.randrange(array.shape[axis] + 1)), axis) if array.ndim else array,
        lambda: array.astype(
            draw.choice((np.int8, np.int32, np.int64, np.float16, np.float32, np.float64, np.bool_))
        ),
        lambda: array.T,
        lambda: np.zeros((0,), array.dtype),
    ]
    with np.errstate(all="ignore"):
        return draw.choice(changes)()


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    function.__name__: function
    for function in (bytes_of_json, values_of_json, bytes_of_cache, tensors_of_cache)
}
