"""JAX compiles a program for each shape of an array that comes from NumPy, outside `jax.jit`: 12 ms."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from tests.support import host_programs


def without_programs() -> None:
    """From now on such an array is copied to the device, as it would be by the program."""
    host_programs.without_programs()
    with contextlib.suppress(ImportError, AttributeError):  # not JAX's public interface; since jax 0.10
        from jax._src.core import stage_p

        given = stage_p.impl

        def impl(x: Any) -> Any:
            return jax.device_put(x, may_alias=False) if type(x) is np.ndarray else given(x)

        impl.given = given
        stage_p.def_impl(impl)


@contextlib.contextmanager
def as_for_users() -> Iterator[None]:
    """With those programs: where a test counts what is compiled."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(host_programs.as_for_users())
        with contextlib.suppress(ImportError, AttributeError):
            from jax._src.core import stage_p

            ours = stage_p.impl
            stage_p.def_impl(ours.given)
            stack.callback(stage_p.def_impl, ours)
        yield
