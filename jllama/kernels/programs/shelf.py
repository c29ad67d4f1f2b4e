"""Programs of this process: which it will ask for, loaded by a thread meanwhile, and those it asked for."""

import contextlib
import threading
from typing import Any

import jax

from jllama.kernels.programs import store
from jllama.kernels.programs.key import surroundings, told
from jllama.machine import devices

MOST = 8  # programs of a start


class _Place:
    """A program that some thread loads, once."""

    def __init__(self) -> None:
        self._lock, self._looked = threading.Lock(), False
        self._program: jax.stages.Compiled | None = None

    def look(self, key: str) -> jax.stages.Compiled | None:
        with self._lock:
            if not self._looked:
                self._program, self._looked = store.read(key), True
            return self._program


class Shelf:
    """What the last start of this kind asked for, and what this one does."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._order_key, self._order, self._asked = "", list[str](), list[str]()
        self._lock = threading.Lock()

    def take(self, key: str) -> jax.stages.Compiled | None:
        """The program with this key, if it is kept; waits for the thread that is about to load it."""
        with self._lock:
            place = self._places.setdefault(key, _Place())
        program = place.look(key)
        self._note(key)
        return program

    def load(self, order_key: str) -> None:
        """Loads what is going to be asked for."""
        self._order_key, self._order = order_key, store.read_order(order_key)
        for key in self._order:
            with self._lock:
                if key in self._asked:
                    continue
                place = self._places.setdefault(key, _Place())
            place.look(key)

    def _note(self, key: str) -> None:
        with self._lock:
            self._places.pop(key, None)  # its owner has it now
            self._asked.append(key)
            asked = self._asked[:MOST]
            changed = key in asked and not set(asked) <= set(self._order)
            if changed:
                self._order = list(dict.fromkeys([*asked, *self._order]))[:MOST]
        if changed and self._order_key:
            store.write_order(self._order_key, self._order)


SHELF = Shelf()


def expect(*about: Any) -> None:
    """A thread begins to load what the last start with these values asked for, where programs are kept."""
    if not devices.keeps_programs():
        return

    def load() -> None:
        with contextlib.suppress(Exception):  # whoever asks for a program hears of it
            SHELF.load(f"{told(about)}\n{surroundings()}")

    threading.Thread(target=load, name="jllama programs", daemon=True).start()
