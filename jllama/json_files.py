"""The JSON files beside a model's weights: each is one object, or the error says which is not."""

import json
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file of a model holds.

    Raises:
      JllamaError: it can't be read, is not JSON, nests too deeply or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JllamaError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise JllamaError(f"{path} is not JSON ({error}); download it again") from None
    except RecursionError:
        raise JllamaError(f"{path} is not JSON of a model (it nests too deeply); download it again") from None
    if not isinstance(found, dict):
        raise JllamaError(f"{path} holds no JSON object; download it again")
    return found
