"""Paths as users write them, and where jllama keeps what it fetched or compiled."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from jllama.errors import JllamaError
from jllama.files.errors import file_errors

_KINDS = {"a directory": stat.S_ISDIR, "a FIFO": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
_UNCHANGEABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
_GROUP_WRITES, _OTHERS_WRITE = 0o020, 0o002


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, with `~` and `~name` replaced by the home directory.

    Raises:
      JllamaError: nobody of that name has one.
    """
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # the latter of a name that no system has, such as a null character
        raise JllamaError(
            f"{path}: there is no such home directory; for a file of that name write ./{path}"
        ) from None


def check_file(path: Path) -> None:
    """Refuses what is no file before it is read: a FIFO waits for ever, a device has no end.

    Raises:
      JllamaError: it is a directory, FIFO, socket or device.
      OSError: there is nothing, or it can't be looked at.
    """
    if kind := special_kind(path):
        raise JllamaError(f"{path} is {kind} where a file is due; put the file itself there")


def special_kind(path: Path) -> str | None:
    """What is there instead of a file, such as `a directory`; None of a file.

    Raises:
      OSError: there is nothing, or it can't be looked at.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return None
    return next((name for name, is_kind in _KINDS.items() if is_kind(mode)), "a device")


def check_no_other_kind(path: Path) -> None:
    """For a file that was not found: says so if something else has its name, a directory or a dead link.

    Raises:
      JllamaError: something has it.
    """
    if os.path.lexists(path):
        with file_errors(path):
            check_file(path)


def cache_dir(*parts: str, writable: bool = True) -> Path:
    """The cache directory, or a directory under it, made if need be with access for this user only.

    `$JLLAMA_CACHE`, else `$XDG_CACHE_HOME/jllama`, else `~/.cache/jllama`. Compiled programs in it are
    trusted code, hence the closed permissions.

    Args:
      parts: of the path below it.
      writable: False where reading will do: a cache directory on a read-only or full disk is taken as it is,
        and what it lacks is not made.

    Raises:
      JllamaError: it can't be made or written, or others can write to it.
    """
    root = _root()
    path = root.joinpath(*parts)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for directory in (root, *(root.joinpath(*parts[: n + 1]) for n in range(len(parts)))):
            directory.mkdir(mode=0o700, exist_ok=True)
            _check_private(directory, may_be_sticky=directory != path)
    except OSError as error:
        if writable or error.errno not in _UNCHANGEABLE or not os.path.isdir(root):
            raise JllamaError(_advice(path, error.strerror)) from None
    if writable and not os.access(path, os.W_OK | os.X_OK):
        raise JllamaError(_advice(path, "it is not writable"))
    return path


@contextlib.contextmanager
def locked(name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Lets one process at a time do what has this name; the system lets go for one that was killed.

    Args:
      name: a file name.
      waiting: called before another process is waited for.

    Yields:
      False where the file system has no locks: others may be at it.

    Raises:
      JllamaError: the cache directory can't be written.
    """
    place = cache_dir("locks") / name
    try:
        file = place.open("wb")
    except OSError as error:
        raise JllamaError(_advice(place, error.strerror)) from None
    with file:
        yield _is_locked(file.fileno(), waiting)


def _is_locked(descriptor: int, waiting: Callable[[], None]) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _check_private(directory: Path, may_be_sticky: bool) -> None:
    """Whoever can write to it could have this user run his code.

    A sticky directory such as /tmp keeps others away from what lies in it. A group with the user's own number
    has no other members: a umask of 002 opens directories to it, which is undone.
    """
    if not hasattr(os, "getuid"):
        return
    state = directory.stat()
    if state.st_uid not in (0, os.getuid()):
        raise JllamaError(_advice(directory, "it belongs to another user, whose programs would be run"))
    sticky = may_be_sticky and state.st_mode & stat.S_ISVTX
    if state.st_mode & _GROUP_WRITES and state.st_gid == state.st_uid:
        with contextlib.suppress(OSError):
            directory.chmod(stat.S_IMODE(state.st_mode) & ~_GROUP_WRITES)
            state = directory.stat()
    if state.st_mode & (_GROUP_WRITES | _OTHERS_WRITE) and not sticky:
        raise JllamaError(
            f"others can write to the cache directory {directory}, and compiled programs in it are run: "
            "empty it and close it (chmod 700), or set JLLAMA_CACHE to another directory"
        )


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
