"""Numbers that flags give as text."""

import re

from jllama.errors import JllamaError


def positive(text: str, flag: str, otherwise: str = "") -> int:
    """A whole number from 1 to 99999; `otherwise`: what else the flag takes.

    Raises:
      JllamaError: it is none.
    """
    if not re.fullmatch("0*[1-9][0-9]{0,4}", text.strip()):
        raise JllamaError(f"{flag}={text[:40]}: give a whole number from 1 to 99999{otherwise}")
    return int(text)
