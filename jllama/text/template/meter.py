"""What a template has left to spend while it renders."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2.utils import Namespace

# Chat templates spend some ten units a character of the conversation; these leave a wide margin.
BASE_UNITS = 8_000_000
UNITS_PER_INPUT_UNIT = 64
UNITS_PER_NODE = 32
UNITS_PER_TURN = 32
SECONDS = 2.0
MAX_INT_BITS = 4096
# A walk over this many nodes takes some milliseconds.
NODES_PER_LOOK = 1 << 14
_SEQUENCES: tuple[type, ...] = (list, tuple, set, frozenset, *map(type, ({}.keys(), {}.values(), {}.items())))


class TemplateRefused(jinja2.TemplateError):
    """The template tried what no chat template needs."""


class Meter:
    """Counts down what was made, and stops on too much of it or on too much processor time."""

    def __init__(self, given: Any = None):
        self._end = time.thread_time() + SECONDS
        self.left = sys.maxsize  # what is given is plain data, and was copied already
        self.left = BASE_UNITS + UNITS_PER_INPUT_UNIT * self.weight(given)

    def spend(self, units: int) -> None:
        if not isinstance(units, int) or units > self.left:
            raise TemplateRefused("it makes far more text than the conversation calls for")
        self.left -= max(0, units)

    def step(self) -> None:
        self.spend(1)
        self.look()

    def look(self) -> None:
        """Stop if the time is over."""
        if time.thread_time() > self._end:
            raise TemplateRefused(f"it ran for more than {SECONDS:g} seconds")

    def value(self, made: Any) -> Any:
        """Pay for a value and hand it on."""
        if isinstance(made, int) and made.bit_length() > MAX_INT_BITS:
            raise TemplateRefused("it computes a huge number")
        self.spend(self.weight(made))
        return made

    def weight(self, value: Any) -> int:
        """Characters and nodes of `value` as a tree: what printing or comparing it may cost.

        Shared parts count each time, or forty doublings would pass for forty nodes; for the same
        reason the walk stops as soon as it is beyond what is left.
        """
        total, nodes, stack = 0, 0, [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                total += len(item)
            else:
                total += UNITS_PER_NODE + (item.bit_length() >> 2 if isinstance(item, int) else 0)
                stack += _children(item)
                nodes += 1
                if nodes % NODES_PER_LOOK == 0:
                    self.look()
            if total > self.left:
                raise TemplateRefused("it builds far more than the conversation calls for")
        return total


def _children(item: Any) -> Any:
    if isinstance(item, _SEQUENCES):
        return item
    if isinstance(item, Namespace):
        item = object.__getattribute__(item, "_Namespace__attrs")
    return (*item, *item.values()) if isinstance(item, dict) else ()


_METER: ContextVar[Meter] = ContextVar("meter")


def current_meter() -> Meter:
    return _METER.get()


@contextmanager
def metering(given: Any) -> Iterator[Meter]:
    """Let templates spend, in this thread, in proportion to what they were `given`."""
    meter = Meter(given)
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)
