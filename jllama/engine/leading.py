"""Several processes run the same programs in the same order: what process 0 does, it tells the others."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jllama.engine.plans import packed_call, unpacked_call
from jllama.machine import processes

NEW, RESUMED, COPIED, FORGOTTEN = range(4)  # operations on caches; those of `Slots` follow
OPERATIONS: list[str] = []  # methods of `Slots` that are told
_numbers = itertools.count()
_gone: list[int] = []


def told(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of `Slots` that runs programs: of process 0 all others hear of it first."""
    operation = FORGOTTEN + 1 + len(OPERATIONS)
    OPERATIONS.append(method.__name__)

    @functools.wraps(method)
    def tell(self: Any, *arguments: Any, **named: Any) -> Any:
        group = processes.group()
        if group is not None and group.rank == 0:
            given = (*arguments, *named.values())
            group.tell(packed_call(self.name, operation, given))
        return method(self, *arguments, **named)

    return tell


def number() -> int:
    """A new name for slots or a session, by which the others know them."""
    return next(_numbers)


def tell(name: int, operation: int, *arguments: int) -> None:
    """Of process 0 all others hear of an operation on a cache; alone, nobody does."""
    group = processes.group()
    if group is not None and group.rank == 0:
        while _gone:
            group.tell(packed_call(_gone.pop(), FORGOTTEN, ()))
        group.tell(packed_call(name, operation, arguments))


def forget(name: int) -> None:
    """Nobody needs a session's cache any more; the others hear of it with the next operation."""
    if processes.group() is not None:
        _gone.append(name)


def followed() -> bool:
    """Whether others do what this process does: then no cache comes from a file or goes there."""
    return processes.group() is not None


class Follower:
    """What a process that follows holds: the slots of the leader's engines and sessions, by their names."""

    def __init__(self, make: Callable[..., Any]) -> None:
        """`make(cache, slots, max_len, stops)`: new `Slots`, around a cache where it is not None."""
        self._make, self._slots = make, dict[int, Any]()
        self._last: Any = None

    def run(self) -> None:
        """Does as process 0 says, until it says that nothing follows."""
        group = processes.group()
        assert group is not None
        while (words := group.hear())[0] != processes.END:
            name, operation, arguments = unpacked_call(words, self._last)
            if operation <= FORGOTTEN:
                self._cache(name, operation, *arguments)
                continue
            result = getattr(self._slots[name], OPERATIONS[operation - FORGOTTEN - 1])(*arguments)
            if isinstance(result, tuple | jax.Array):
                self._last = result[0] if isinstance(result, tuple) else result

    def _cache(self, name: int, operation: int, *arguments: int) -> None:
        if operation == FORGOTTEN:
            self._slots.pop(name, None)
        elif operation == NEW:
            self._slots[name] = self._make(None, *arguments)
        else:
            source, *sizes = arguments
            cache = self._slots[source].state.cache
            cache = jax.tree.map(jnp.copy, cache) if operation == COPIED else cache
            self._slots[name] = self._make(cache, *sizes)
