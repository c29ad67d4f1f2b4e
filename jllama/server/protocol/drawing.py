"""Random seeds and names of answers.

The system's generator lets other threads of this process go first whenever it is asked: with many requests at
once such waits are most of what each takes. Nothing here is a secret.
"""

import random

_DRAWN = random.Random()  # begins with the system's


def drawn_seed() -> int:
    """32 bits."""
    return _DRAWN.getrandbits(32)


def drawn_id() -> str:
    """24 digits."""
    return f"{_DRAWN.getrandbits(96):024x}"
