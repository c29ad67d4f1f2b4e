"""A session's key-value cache in a safetensors file, for the very model that made it."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from jllama.chat.archive.fingerprint import fingerprint
from jllama.chat.conversation import Conversation
from jllama.checkpoint.memory import check_cache
from jllama.checkpoint.sizes import cache_bytes
from jllama.engine import leading
from jllama.errors import JllamaError
from jllama.layers.cache import KVCache
from jllama.loading import Model
from jllama.session import Session
from jllama.sharding import devices_under

FORMAT = "jllama cache 1"
_DTYPES = {"int32": "I32", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def write(conversation: Conversation, path: Path) -> str:
    """Writes the current branch's cache; returns the file's SHA-256.

    Raises:
      JllamaError: there is none yet, or several processes hold it.
    """
    if leading.followed():
        raise JllamaError("a chat of several processes saves no cache: save without it")
    session = conversation.branch.session
    cache = session.snapshot()
    if cache is None or not session.ids:
        raise JllamaError("there is no cache yet: ask something first, or save without it")
    tensors = {"ids": np.array(session.ids, np.int32)}
    for name, array in _named(cache).items():
        tensors[name] = np.ascontiguousarray(np.asarray(array)[:, :, : len(session.ids)])
    name = session.model.name.encode("utf-8", "replace").decode()  # a path may be no UTF-8
    devices = str(devices_under(session.model.params))
    marks = {"fingerprint": fingerprint(session.model), "devices": devices}
    metadata = {"format": FORMAT, "model": name, **marks}
    save_file(tensors, path, metadata=metadata)
    return _sha256(path)


def check_overwrite(path: Path) -> None:
    """Refuses to replace a file that is no cache of ours: it may be a model."""
    if path.exists() and not _is_ours(path):
        raise JllamaError(f"{path} exists and is no saved cache: give another name")


def remove(path: Path) -> None:
    """Removes a cache that no conversation uses any more; a file that is no cache of ours stays."""
    with contextlib.suppress(OSError):
        if _is_ours(path):
            path.unlink()


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(OSError, safetensors.SafetensorError):
        return path.is_file() and _metadata(path).get("format") == FORMAT
    return False


def read_into(session: Session, path: Path, sha256: str) -> None:
    """Lets a session go on from a saved cache.

    Raises:
      JllamaError: the file is not there, is damaged, or is the cache of another model, another number of
        devices or a longer context; or several processes run the chat.
    """
    if leading.followed():
        raise JllamaError("a chat of several processes reads its conversation anew")
    with _reported(path):
        if not path.is_file() and path.exists():
            raise JllamaError(f"{path} is not a file")
        if path.stat().st_size > _most_bytes(session.model) or _sha256(path) != sha256:
            raise JllamaError(f"{path} is damaged, or of another conversation")
        _check_origin(path, session.model)
        ids, cache = _read(session, path)
    session.adopt(ids, cache)


def _check_origin(path: Path, model: Model) -> None:
    """Refuses what this very model, in this dtype and on as many devices, did not compute."""
    metadata, here = _metadata(path), str(devices_under(model.params))
    if (there := metadata.get("devices", here)) != here:
        raise JllamaError(f"{path} was computed with tensor_parallel={_shown(there)}, and here it is {here}")
    if metadata.get("fingerprint") != fingerprint(model):
        name = _shown(metadata.get("model", "unknown"))
        raise JllamaError(f"{path} is the cache of another model, dtype or version of jllama ({name})")


def _shown(text: str) -> str:
    """What a file says, which may be anything."""
    text = text[:80]
    return text if text.isprintable() else repr(text)


def _read(session: Session, path: Path) -> tuple[list[int], KVCache]:
    model = session.model
    check_cache(model.config, model.dtype, batch=1, max_len=session.max_seq_len)
    empty = KVCache.empty(model.config, batch=1, max_len=session.max_seq_len, dtype=model.dtype)
    wanted = _named(empty)
    with safetensors.safe_open(path, framework="numpy") as file:
        if set(file.keys()) != {"ids", *wanted}:
            raise ValueError("it has other tensors than a cache of this model")
        ids = _ids(file, session)
        full = {name: _padded(_rows(file, name, array, len(ids)), array) for name, array in wanted.items()}
    layers = range(model.config.num_hidden_layers)
    keys, values = (tuple(full[f"{kind}.{layer}"] for layer in layers) for kind in ("keys", "values"))
    return ids, KVCache(keys=keys, values=values, length=jnp.array([len(ids)], jnp.int32))


def _ids(file: Any, session: Session) -> list[int]:
    """The token ids that the cache holds, checked."""
    (count,) = file.get_slice("ids").get_shape()  # else a ValueError
    if not 0 < count <= session.max_seq_len:
        raise JllamaError(f"the cache holds {count} tokens and max_seq_len is {session.max_seq_len}")
    ids = _tensor(file, "ids", (count,), "int32")
    if ids.min() < 0 or ids.max() >= session.model.config.vocab_size:
        raise ValueError("a token id is not in the vocabulary")
    return [int(token) for token in ids]


def _rows(file: Any, name: str, like: jax.Array, count: int) -> np.ndarray:
    """One layer's keys or values of the first `count` positions, checked."""
    batch, heads, _, width = like.shape
    rows = _tensor(file, name, (batch, heads, count, width), str(like.dtype))
    if not np.isfinite(rows).all():
        raise ValueError(f"{name} holds what is not finite")
    return rows


def _tensor(file: Any, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Read only if the header says that it is what it should be: a file may claim anything."""
    header = file.get_slice(name)
    found, wanted = (header.get_dtype(), [*header.get_shape()]), (_DTYPES[dtype], [*shape])
    if found != wanted:
        raise ValueError(f"{name} is {found}, not {wanted}")
    return file.get_tensor(name)


def _most_bytes(model: Model) -> int:
    """The largest file that a cache of this model can make; a MiB for the header."""
    return cache_bytes(model.config, batch=1, max_len=model.config.context_length, dtype=model.dtype) + 2**20


def _named(cache: KVCache) -> dict[str, jax.Array]:
    keys = {f"keys.{layer}": array for layer, array in enumerate(cache.keys)}
    return keys | {f"values.{layer}": array for layer, array in enumerate(cache.values)}


def _padded(saved: np.ndarray, like: jax.Array) -> jax.Array:
    rows = np.zeros(like.shape, like.dtype)
    rows[:, :, : saved.shape[2]] = saved
    return jnp.asarray(rows)


def _metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JllamaError(f"cannot read {path}: {error.strerror or error}") from None
    except (safetensors.SafetensorError, ValueError, IndexError) as error:
        raise JllamaError(f"{path} is damaged: {str(error)[:200]}") from None
