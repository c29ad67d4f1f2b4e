"""The library that masks are made by; it is an extra."""

import importlib.util
from types import ModuleType

from jllama.errors import JllamaError


def installed() -> bool:
    """Whether it is there."""
    return importlib.util.find_spec("llguidance") is not None


def library() -> ModuleType:
    """`llguidance`, imported late: few requests need it.

    Raises:
      JllamaError: it is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise JllamaError(
            f"what an answer must match is enforced by llguidance, which can't be imported ({error}): "
            "pip install jllama[grammar]"
        ) from None
    return llguidance
