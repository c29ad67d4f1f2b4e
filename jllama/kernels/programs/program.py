"""A program that is traced, lowered and compiled only where no earlier start did so."""

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import jax

from jllama.kernels.cpu.build import settle
from jllama.kernels.programs import store
from jllama.kernels.programs.key import UntoldError, of_arrays, surroundings, told
from jllama.kernels.programs.shelf import SHELF
from jllama.machine import devices
from jllama.model import Params

NO_EFFECT = "xla_gpu_redzone_padding_bytes"  # an option of XLA's without one on a CPU


class Program:
    """A function compiled by `jax.jit`. It is called with arrays, never inside of a trace."""

    def __init__(self, function: Callable[..., Any], static: int = 0, **jit_options: Any) -> None:
        """Compiles nothing.

        Args:
          function: its arguments by name are static.
          static: how many of its first arguments are static, too.
          **jit_options: those of `jax.jit`.
        """
        functools.update_wrapper(self, function)  # its name, above all
        self.jitted = jax.jit(function, **jit_options)
        self._parts, self._static = (function, jit_options), static
        self._known: dict[Any, Callable[..., Any] | None] = {}
        self._weights: tuple[Callable[[], Any], Any] = (lambda: None, None)  # and what is known of them

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As the function does.

        Raises:
          JllamaError: see `build.settle`.
        """
        keeps = devices.keeps_programs()
        program = self._program(arguments, options) if keeps else None
        if any(isinstance(argument, Params) for argument in arguments):
            settle()
        return program(*arguments[self._static :]) if program else self.jitted(*arguments, **options)

    def prepare(self, *arguments: Any, **options: Any) -> None:
        """Makes it ready for such arguments, which may be shapes."""
        if not devices.keeps_programs() or self._program(arguments, options) is None:
            self.lower(*arguments, **options).compile()

    def lower(self, *arguments: Any, **options: Any) -> Any:
        """What `jax.jit` lowers, compiled nowhere yet."""
        return self.jitted.lower(*arguments, **options)

    def _program(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Callable[..., Any] | None:
        """What `jax.jit` would compile; None where no key tells all that it depends on."""
        shapes = tuple(map(self._shapes, arguments[self._static :]))
        asked = (arguments[: self._static], *options.items(), shapes)
        if asked not in self._known:
            try:
                parts = told([self._parts, arguments[: self._static], options])
                key = f"{parts}\n{shapes}\n{surroundings()}"
            except UntoldError:
                self._known[asked] = None
            else:
                self._known[asked] = self._kept(key, arguments, options)
        return self._known[asked]

    def _kept(self, key: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Callable[..., Any]:
        program = SHELF.take(key)
        structure: Any = jax.tree.structure((arguments[self._static :], {}))
        if program is not None and structure == program.in_tree:  # a key has but the words for it
            return program
        program = compiled_anew(self.lower(*arguments, **options))
        threading.Thread(target=store.write, args=(key, program), name="jllama program").start()
        return program

    def _shapes(self, argument: Any) -> Any:
        """`of_arrays`; that of the weights, many arrays in one object for all calls, is kept."""
        if not isinstance(argument, Params):
            return of_arrays(argument)
        if self._weights[0]() is not argument:
            self._weights = weakref.ref(argument), of_arrays(argument)
        return self._weights[1]


def compiled_anew(lowered: Any) -> Any:
    """Compiled here and now: of a program that JAX's own cache held, XLA writes down one half."""
    before = _hits()
    program = lowered.compile()
    if _hits() == before:
        return program
    return lowered.compile({NO_EFFECT: int.from_bytes(os.urandom(3))})  # by which JAX's cache knows none


class _Heard(threading.local):
    """What JAX said in this thread."""

    hits = 0


_HEARD = _Heard()


def _hear(event: str, **_: Any) -> None:
    _HEARD.hits += event == "/jax/compilation_cache/cache_hits"


@functools.cache
def _listening() -> None:
    jax.monitoring.register_event_listener(_hear)


def _hits() -> int:
    _listening()
    return _HEARD.hits


def kept(static: int = 0, **jit_options: Any) -> Callable[[Callable[..., Any]], Program]:
    """`Program` as a decorator."""
    return lambda function: Program(function, static, **jit_options)
