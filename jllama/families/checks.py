"""What any file's sizes must be, and what arithmetic with anything else is called."""

import contextlib
from collections.abc import Iterator
from typing import Any

from jllama.errors import JllamaError

MAX_LAYERS = 10_000  # ten times the deepest that anyone trained: a damaged header must not exhaust memory


@contextlib.contextmanager
def types_checked(source: str) -> Iterator[None]:
    """Arithmetic with a text or a huge number where a size should be is the file's mistake, not ours."""
    try:
        yield
    except (TypeError, ValueError, ArithmeticError) as error:
        raise JllamaError(f"{source} holds a value of the wrong type or size: {error}") from None


def check_size(name: str, value: Any, otherwise: str = "below 2^31") -> None:
    """Sizes are int32 on the device."""
    if type(value) is not int or not 0 < value < 2**31:
        raise JllamaError(f"config: {name}={value!r} must be a positive whole number {otherwise}")


def check_layers(count: Any) -> None:
    """Refuses a number of layers before there is a list of so many."""
    check_size("num_hidden_layers", count)
    if count > MAX_LAYERS:
        raise JllamaError(f"config: num_hidden_layers={count} is absurd (over {MAX_LAYERS})")
