"""The JSON files beside a model's weights: each is one object, or the error says which is not."""

import json
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from jllama.files.errors import file_errors, refuse_stand_in
from jllama.files.paths import check_file

MAX_BYTES = 1 << 27  # four times the largest tokenizer.json
MAX_VALUES = 1 << 22  # twice what it holds; Python spends up to 100 bytes on each


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file of a model holds.

    Raises:
      JllamaError: it can't be read, is not JSON, nests too deeply, is larger than any such file or holds
        something else.
    """
    with file_errors(path):
        check_file(path)
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        return parse_object(path, text)


def parse_object(path: Path, text: bytes, most: int | None = None, **options: Any) -> dict[str, Any]:
    """The JSON object in `text`, which came from `path`.

    Args:
      path: for messages.
      text: UTF-8.
      most: how many values it may hold; `MAX_VALUES` when None.
      options: those of `json.loads`.

    Raises:
      JllamaError: as `read_object`.
    """
    refuse_stand_in(path, text)
    # Each value but the first stands behind one of these, so that what parsing costs is known before it.
    values = sum(text.count(mark) for mark in (b",", b"[", b"{", b":"))
    if len(text) > MAX_BYTES or values > (most or MAX_VALUES):
        raise JllamaError(f"{path} is larger than any such file of a model; download it again")
    try:
        found = json.loads(text.decode("utf-8"), **options)
    except ValueError as error:
        raise JllamaError(f"{path} is not JSON ({error}); download it again") from None
    except RecursionError:
        raise JllamaError(f"{path} is not JSON of a model (it nests too deeply); download it again") from None
    if not isinstance(found, dict):
        raise JllamaError(f"{path} holds no JSON object; download it again")
    return found
