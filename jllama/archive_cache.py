"""A session's key-value cache in a safetensors file, for the very model that made it."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from jllama.conversation import Conversation
from jllama.errors import JllamaError
from jllama.fingerprint import fingerprint
from jllama.layers.cache import KVCache
from jllama.session import Session

FORMAT = "jllama cache 1"


def write(conversation: Conversation, path: Path) -> str:
    """Writes the current branch's cache; returns the file's SHA-256.

    Raises:
      JllamaError: there is none yet.
    """
    session = conversation.branch.session
    cache = session.snapshot()
    if cache is None or not session.ids:
        raise JllamaError("there is no cache yet: ask something first, or save without it")
    tensors = {"ids": np.array(session.ids, np.int32)}
    for name, array in _named(cache).items():
        tensors[name] = np.ascontiguousarray(np.asarray(array)[:, :, : len(session.ids)])
    name = session.model.name.encode("utf-8", "replace").decode()  # a path may be no UTF-8
    metadata = {"format": FORMAT, "fingerprint": fingerprint(session.model), "model": name}
    save_file(tensors, path, metadata=metadata)
    return _sha256(path)


def check_overwrite(path: Path) -> None:
    """Refuses to replace a file that is no cache of ours: it may be a model."""
    if not path.exists():
        return
    with contextlib.suppress(OSError, safetensors.SafetensorError):
        if _metadata(path).get("format") == FORMAT:
            return
    raise JllamaError(f"{path} exists and is no saved cache: give another name")


def read_into(session: Session, path: Path, sha256: str) -> None:
    """Lets a session go on from a saved cache.

    Raises:
      JllamaError: the file is not there, is damaged, or is the cache of another model or a longer context.
    """
    with _reported(path):
        if _sha256(path) != sha256:
            raise JllamaError(f"{path} is damaged, or of another conversation")
        metadata = _metadata(path)
        if metadata.get("fingerprint") != fingerprint(session.model):
            raise JllamaError(
                f"{path} is the cache of another model, dtype or version of jllama "
                f"({metadata.get('model', 'unknown')})"
            )
        ids, cache = _read(session, path)
    session.adopt(ids, cache)


def _read(session: Session, path: Path) -> tuple[list[int], KVCache]:
    model = session.model
    empty = KVCache.empty(model.config, batch=1, max_len=session.max_seq_len, dtype=model.dtype)
    with safetensors.safe_open(path, framework="numpy") as file:
        ids = file.get_tensor("ids").tolist()
        if not 0 < len(ids) <= session.max_seq_len:
            raise JllamaError(f"{path} holds {len(ids)} tokens and max_seq_len is {session.max_seq_len}")
        full = {name: _padded(file.get_tensor(name), array) for name, array in _named(empty).items()}
    layers = range(model.config.num_hidden_layers)
    keys, values = (tuple(full[f"{kind}.{layer}"] for layer in layers) for kind in ("keys", "values"))
    return ids, KVCache(keys=keys, values=values, length=jnp.array([len(ids)], jnp.int32))


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
        raise JllamaError(f"{path} is damaged: {error}") from None
