"""Outside `jax.jit` each operation of each shape is a program of JAX's own, of 10 to 20 ms: NumPy has none.

Only what gives the same bits: data moved, conversions, one rounded operation. XLA computes whatever else.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

SIZE = 1 << 20  # elements of what NumPy computes
_SMALLEST = np.finfo(np.float32).tiny  # what is less is 0 to XLA's threads
_FLOATS = {np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16)}
_INTEGERS = {np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32)}
_KNOWN = _FLOATS | _INTEGERS | {np.dtype(bool)}
Operation = Callable[..., Any]
_device_put = jax.device_put  # a test may have another in its place


def _converted(x: np.ndarray, new_dtype: Any, **_: Any) -> np.ndarray:
    if x.dtype in _FLOATS and np.dtype(new_dtype) not in _FLOATS:
        raise NotImplementedError  # what has no such integer is another one to NumPy
    return x.astype(new_dtype)


def _broadcast(x: np.ndarray, shape: Sequence[int], broadcast_dimensions: Sequence[int], **_: Any) -> Any:
    sizes = np.ones(len(shape), int)
    sizes[list(broadcast_dimensions)] = x.shape
    return np.broadcast_to(x.reshape(sizes), shape)


def _dynamic_slice(x: np.ndarray, *starts: np.ndarray, slice_sizes: Sequence[int]) -> np.ndarray:
    first = [
        min(max(int(start), 0), n - size) for start, n, size in zip(starts, x.shape, slice_sizes, strict=True)
    ]
    return x[tuple(slice(start, start + size) for start, size in zip(first, slice_sizes, strict=True))]


def _slice(
    x: np.ndarray, start_indices: Sequence[int], limit_indices: Sequence[int], strides: Any
) -> np.ndarray:
    return x[tuple(map(slice, start_indices, limit_indices, strides or [1] * x.ndim))]


def _iota(dtype: Any, shape: Sequence[int], dimension: int, **_: Any) -> np.ndarray:
    sizes = [n if axis == dimension else 1 for axis, n in enumerate(shape)]
    return np.broadcast_to(np.arange(shape[dimension]).astype(dtype).reshape(sizes), shape)


def _reshaped(x: np.ndarray, new_sizes: Sequence[int], dimensions: Any, **_: Any) -> np.ndarray:
    if dimensions is not None:
        raise NotImplementedError
    return x.reshape(new_sizes)


def _chosen(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    if which.dtype != bool or len(cases) != 2:
        raise NotImplementedError
    return np.where(which, cases[1], cases[0])


def _of_integers(operation: Operation) -> Operation:
    def run(*arrays: np.ndarray) -> np.ndarray:
        if arrays[0].dtype in _FLOATS:
            raise NotImplementedError  # of 0 and -0 either; of nothing, an error
        return operation(*arrays)

    return run


def _of_floats(operation: Operation) -> Operation:
    def run(*arrays: np.ndarray) -> np.ndarray:
        if arrays[0].dtype not in _FLOATS:
            raise NotImplementedError
        return operation(*arrays)

    return run


def _reduced(operation: np.ufunc) -> Operation:
    return lambda x, axes, **_: operation.reduce(x, axis=axes)


def _shift(operation: Operation) -> Operation:
    def run(x: np.ndarray, by: np.ndarray) -> np.ndarray:
        if ((by < 0) | (by >= 8 * x.dtype.itemsize)).any():
            raise NotImplementedError
        return operation(x, by)

    return run


def _right(sign: str) -> Operation:
    """Fills up with the highest bit ("") or with zeros ("u"), whatever the numbers are."""

    def run(x: np.ndarray, by: np.ndarray) -> np.ndarray:
        kind = np.dtype(sign + x.dtype.name.removeprefix("u"))
        return (x.view(kind) >> by.astype(kind)).view(x.dtype)

    return _shift(run)


MOVES: dict[str, Operation] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda *parts, dimension: np.concatenate(parts, dimension),
    "convert_element_type": _converted,
    "copy": lambda x: x,
    "dynamic_slice": _dynamic_slice,
    "iota": _iota,
    "reduce_and": _reduced(np.bitwise_and),
    "reduce_or": _reduced(np.bitwise_or),
    "reshape": _reshaped,
    "rev": lambda x, dimensions: np.flip(x, dimensions),
    "select_n": _chosen,
    "slice": _slice,
    "split": lambda x, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "squeeze": lambda x, dimensions: x.squeeze(dimensions),
    "stack": lambda *parts, axis: np.stack(parts, axis),
    "transpose": lambda x, permutation: x.transpose(permutation),
}
OPERATIONS: dict[str, Operation] = {
    "abs": np.abs,
    "add": np.add,
    "and": np.bitwise_and,
    "div": _of_floats(np.divide),
    "eq": np.equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "max": _of_integers(np.maximum),
    "min": _of_integers(np.minimum),
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": _of_floats(np.negative),
    "not": np.invert,
    "or": np.bitwise_or,
    "shift_left": _shift(np.left_shift),
    "shift_right_arithmetic": _right(""),
    "shift_right_logical": _right("u"),
    "sub": np.subtract,
    "xor": np.bitwise_xor,
}
_CALLS = {**MOVES, **OPERATIONS}


def without_programs() -> None:
    """From now on NumPy computes what JAX's own functions do to arrays outside `jax.jit`."""
    with contextlib.suppress(ImportError, AttributeError):  # not JAX's public interface
        from jax._src import pjit

        given = pjit._pjit_call_impl_python
        plans: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

        def run(*arguments: Any, jaxpr: Any, **settings: Any) -> tuple:
            if jaxpr not in plans:
                plans[jaxpr] = _plan(jaxpr)
            plan = plans[jaxpr]
            if plan is not None and _plain(settings):
                with contextlib.suppress(NotImplementedError), np.errstate(all="ignore"):
                    return _computed(jaxpr, plan, arguments), None, None, []
            return given(*arguments, jaxpr=jaxpr, **settings)

        run.given = given
        pjit._pjit_call_impl_python = run


@contextlib.contextmanager
def as_for_users() -> Iterator[None]:
    """With those programs."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, AttributeError):
            from jax._src import pjit

            ours = pjit._pjit_call_impl_python
            pjit._pjit_call_impl_python = ours.given
            stack.callback(setattr, pjit, "_pjit_call_impl_python", ours)
        yield


def _plan(jaxpr: Any) -> list[tuple[Operation, Any]] | None:
    """What NumPy calls for each equation of a function of JAX's own; None: that is XLA's."""
    names = [equation.primitive.name for equation in jaxpr.jaxpr.eqns]
    if "/jax/_src/" not in str(jaxpr.jaxpr.debug_info.func_src_info) or jaxpr.effects or jaxpr.consts:
        return None
    if sum(name in OPERATIONS for name in names) > 1 or not all(name in _CALLS for name in names):
        return None
    values = [*jaxpr.jaxpr.invars, *jaxpr.jaxpr.outvars, *(v for e in jaxpr.jaxpr.eqns for v in e.outvars)]
    if any(v.aval.dtype not in _KNOWN or v.aval.size > SIZE for v in values):
        return None
    if any(v.aval.weak_type or hasattr(v, "val") for v in jaxpr.jaxpr.outvars):  # no array of NumPy's is weak
        return None
    return [(_CALLS[name], equation) for name, equation in zip(names, jaxpr.jaxpr.eqns, strict=True)]


def _plain(settings: dict[str, Any]) -> bool:
    """Whether the program is for the default device and leaves its arguments as they are."""
    shardings = (*settings["in_shardings"], *settings["out_shardings"])
    return (
        not any(settings["donated_invars"])
        and not settings["compiler_options_kvs"]
        and settings["ctx_mesh"].empty
        and all(type(sharding).__name__ == "UnspecifiedValue" for sharding in shardings)
    )


def _computed(jaxpr: Any, plan: list[tuple[Operation, Any]], arguments: Sequence[Any]) -> list[jax.Array]:
    found = dict(zip(jaxpr.jaxpr.invars, map(_array, arguments, jaxpr.jaxpr.invars), strict=True))
    for call, equation in plan:
        given = [np.asarray(v.val, v.aval.dtype) if hasattr(v, "val") else found[v] for v in equation.invars]
        results = call(*given, **({} if equation.primitive.name in OPERATIONS else equation.params))
        results = results if equation.primitive.multiple_results else [results]
        for variable, result in zip(equation.outvars, results, strict=True):
            found[variable] = _checked(result, variable.aval)
    return [_device_put(np.array(found[v], order="C"), may_alias=False) for v in jaxpr.jaxpr.outvars]


def _array(argument: Any, variable: Any) -> np.ndarray:
    """An argument's numbers; nothing keeps the array's memory afterwards, which may be donated."""
    if not isinstance(argument, jax.Array):
        return _checked(np.asarray(argument, variable.aval.dtype), variable.aval)
    if argument._committed:  # as the results would be
        raise NotImplementedError
    return _checked(np.asarray(argument.addressable_data(0)), variable.aval)


def _checked(array: np.ndarray, aval: Any) -> np.ndarray:
    """The array, none of whose numbers is so small that XLA's threads take it for 0."""
    array = np.asarray(array)
    if (array.dtype, array.shape) != (aval.dtype, aval.shape):
        raise NotImplementedError
    if array.dtype in _FLOATS and array.dtype != np.float16:
        size = np.abs(array)
        if ((size > 0) & (size < _SMALLEST)).any():
            raise NotImplementedError
    return array
