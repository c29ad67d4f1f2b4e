"""How many files, connections among them, this process may have open."""

import contextlib
import math
import resource

OWN = 64  # files of Python and of the libraries


def raise_limit() -> float:
    """Lets this process have as many connections as the system allows; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems say more than they give
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return math.inf if soft == resource.RLIM_INFINITY else max(soft - OWN, 0)
