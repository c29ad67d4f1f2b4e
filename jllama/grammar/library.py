"""The library that masks are made by; it is an extra."""

import importlib.util
import re
from types import ModuleType

from jllama.errors import JllamaError

OLDEST = (1, 7)  # takes several tokens that end an answer


def installed() -> bool:
    """Whether it is there."""
    return importlib.util.find_spec("llguidance") is not None


def library() -> ModuleType:
    """`llguidance`, imported late: few requests need it.

    Raises:
      JllamaError: it is not installed, or too old.
    """
    try:
        import llguidance
    except ImportError as error:
        raise JllamaError(
            f"what an answer must match is enforced by llguidance, which can't be imported ({error}): "
            "pip install jllama[grammar]"
        ) from None
    from importlib.metadata import version

    found = version("llguidance")
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST:
        raise JllamaError(f"llguidance {found} is too old: pip install --upgrade jllama[grammar]")
    return llguidance
