"""Paths as users write them, and where jllama keeps what it fetched or compiled."""

import os
from pathlib import Path

from jllama.errors import JllamaError


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, with `~` and `~name` replaced by the home directory.

    Raises:
      JllamaError: nobody of that name has one.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise JllamaError(
            f"{path}: there is no such home directory; for a file of that name write ./{path}"
        ) from None


def cache_dir(*parts: str) -> Path:
    """The cache directory, or a directory under it, made if need be with access for this user only.

    `$JLLAMA_CACHE`, else `$XDG_CACHE_HOME/jllama`, else `~/.cache/jllama`. Compiled programs in it are
    trusted code, hence the closed permissions.

    Raises:
      JllamaError: it can't be made or written.
    """
    root = _root()
    path = root.joinpath(*parts)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for directory in (root, *(root.joinpath(*parts[: n + 1]) for n in range(len(parts)))):
            directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise JllamaError(_advice(path, error.strerror)) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise JllamaError(_advice(path, "it is not writable"))
    return path


def _root() -> Path:
    chosen = os.environ.get("JLLAMA_CACHE")
    if chosen:
        return expanded(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache").absolute() / "jllama"
    except RuntimeError:
        raise JllamaError("no home directory for the cache; set JLLAMA_CACHE to a directory") from None


def _advice(path: Path, reason: str | None) -> str:
    return f"cannot use the cache directory {path}: {reason}; set JLLAMA_CACHE to a directory you can write"
