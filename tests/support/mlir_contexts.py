"""JAX makes an MLIR context, with every dialect, for each program: a fifth of what a small one costs."""

import threading
from collections.abc import Callable
from typing import Any

PROGRAMS = 200  # to a context, which keeps every constant and type that it was given


def shared(make: Callable[[], Any]) -> Callable[[], Any]:
    """Returns what `make` made for as many programs of a thread, instead of anew for each."""
    here = threading.local()

    def context() -> Any:
        here.left = getattr(here, "left", 0) - 1
        if here.left < 0:
            here.context, here.left = make(), PROGRAMS - 1
        return here.context

    return context
