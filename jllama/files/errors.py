"""Whatever a damaged file makes a parser or a native library raise is one `JllamaError`."""

import contextlib
import os
from collections.abc import Iterator

from jllama.errors import JllamaError

_BLANKS = b"\xef\xbb\xbf \t\r\n"  # a byte order mark, too
# How the files begin that some ways of downloading leave in place of the one that was asked for.
_STAND_INS = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    b"<!doctype": "a web page, not the file: download it again (the raw file)",
    b"<html": "a web page, not the file: download it again (the raw file)",
}


@contextlib.contextmanager
def file_errors(path: str | os.PathLike[str], advice: str = "download it again") -> Iterator[None]:
    """Around everything that reads a file of a model; `advice`: what its user is told to do.

    No list of types: native libraries raise their own, a panic in Rust is not even an `Exception`, and what a
    lie in a header leads to is anybody's guess.

    Raises:
      JllamaError: in place of whatever was raised, but for a request to stop.
    """
    try:
        yield
    except JllamaError:
        raise
    except OSError as error:
        raise JllamaError(f"cannot read {path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise JllamaError(f"{path} is damaged (it nests too deeply); {advice}") from error
    except MemoryError as error:
        raise JllamaError(f"{path} asks for more memory than there is; {advice}") from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise JllamaError(f"{path} is truncated or damaged ({_reason(error)}); {advice}") from error


def refuse_stand_in(path: str | os.PathLike[str], content: bytes) -> None:
    """Refuses what stands in a file's place.

    Args:
      path: for the message.
      content: the file's, or its first 256 bytes.

    Raises:
      JllamaError: it is a pointer of Git LFS or a web page.
    """
    head = content[:256].lstrip(_BLANKS).lower()
    for beginning, what in _STAND_INS.items():
        if head.startswith(beginning):
            raise JllamaError(f"{path} is {what}")


def _reason(error: BaseException) -> str:
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__
