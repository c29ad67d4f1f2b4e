"""What NumPy computes for JAX in the tests (`host_programs.py`) has the bits of XLA's results."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.support import host_programs

KINDS = ("float32", "bfloat16", "float16", "int32", "uint8", "bool")
MOVES = {
    "broadcast_in_dim": lambda x: lax.broadcast_in_dim(x, (2, 4, 3, 6), (1, 3)),
    "concatenate": lambda x: lax.concatenate([x, x], 1),
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (3, -1), (2, 5)),
    "reshape": lambda x: lax.reshape(x, (3, 8)),
    "rev": lambda x: lax.rev(x, (1,)),
    "select_n": lambda x: lax.select_n(np.arange(24).reshape(4, 6) % 3 == 0, x, x[::-1]),
    "slice": lambda x: lax.slice(x, (1, 0), (4, 5), (2, 3)),
    "split": lambda x: lax.split(x, (1, 3, 2), 1),
    "squeeze": lambda x: lax.squeeze(x[:1], (0,)),
    "transpose": lambda x: lax.transpose(x, (1, 0)),
    "stack": lambda x: jnp.stack([x, x], 1),
}
OF_TWO = {
    **dict(add=lax.add, sub=lax.sub, mul=lax.mul, div=lax.div, max=lax.max, min=lax.min),
    **dict(eq=lax.eq, ne=lax.ne, lt=lax.lt, le=lax.le, gt=lax.gt, ge=lax.ge),
    "and": lax.bitwise_and,
    "or": lax.bitwise_or,
    "xor": lax.bitwise_xor,
    **dict(shift_left=lax.shift_left, shift_right_logical=lax.shift_right_logical),
    "shift_right_arithmetic": lax.shift_right_arithmetic,
}
OF_ONE = dict(abs=lax.abs, neg=lax.neg)
OF_ONE["not"] = lax.bitwise_not


@pytest.fixture
def compiled(monkeypatch):
    """What went on to XLA."""
    from jax._src import pjit

    ours, names = pjit._pjit_call_impl_python, []
    if not hasattr(ours, "given"):
        pytest.skip("this JAX has another interface: XLA computes all")

    def given(*arguments, name, **settings):
        names.append(name)
        return ours.given(*arguments, name=name, **settings)

    monkeypatch.setattr(pjit, "_pjit_call_impl_python", given)
    host_programs.without_programs()
    yield names
    jax.clear_caches()


def numbers(kind: str, seed: int = 0) -> np.ndarray:
    """`[4, 6]`, with the extremes."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(4, 6)) * 10.0 ** rng.integers(-3, 4, (4, 6))
    if kind.endswith(("float16", "float32")):
        found[0] = rng.permutation([np.inf, -np.inf, np.nan, 0, -0.0, 65504])
        return found.astype(np.float32).astype(jnp.dtype(kind))
    limits = (0, 1) if kind == "bool" else (np.iinfo(kind).min, np.iinfo(kind).max)
    return rng.integers(*limits, (4, 6), np.int64, endpoint=True).astype(kind)


def assert_same(operation, *arrays):
    """By NumPy and by XLA: the same error, or the same bits; what is no number has many."""
    arrays = [jnp.asarray(array) for array in arrays]
    got = result(operation, arrays)
    with host_programs.as_for_users():
        wanted = result(jax.jit(lambda *x: operation(*x)), arrays)
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours.dtype, ours.shape, ours.weak_type) == (theirs.dtype, theirs.shape, theirs.weak_type)
        bits, others = np.asarray(ours), np.asarray(theirs)
        np.testing.assert_array_equal(bits.astype(np.float64), others.astype(np.float64))
        np.testing.assert_array_equal(sign(bits), sign(others))


def sign(array):
    return np.signbit(array.astype(np.float64)) & (array == 0)


def result(operation, arrays):
    with contextlib.suppress(TypeError):  # an operation that has no such numbers
        return jax.tree.leaves(operation(*arrays))
    return []


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_numbers(compiled, name):
    for kind in KINDS[:4]:
        compiled.clear()
        assert_same(MOVES[name], numbers(kind))
        assert compiled == ["<lambda>"]


@pytest.mark.parametrize("name", [*OF_ONE, *OF_TWO])
def test_one_operation(compiled, name):
    for kind in KINDS:
        arrays = [numbers(kind, seed) for seed in (range(2) if name in OF_TWO else (0,))]
        if name.startswith("shift") and kind not in KINDS[:3]:
            arrays[1] = np.abs(arrays[1]) % np.asarray(8, arrays[1].dtype)
        if not (name == "div" and kind in ("int32", "uint8")):
            assert_same({**OF_ONE, **OF_TWO}[name], *arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_conversions(compiled, kind):
    for other in KINDS:
        compiled.clear()
        exact = kind not in KINDS[:3] or other in KINDS[:3]
        values = numbers(kind) if exact else np.ones((4, 6), jnp.dtype(kind))
        assert_same(lambda x, other=other: lax.convert_element_type(x, other), values)
        assert compiled == ["<lambda>"] or not exact or kind == other


def test_new_arrays(compiled):
    found = jnp.zeros((2, 3)), jnp.full((2,), 3, jnp.int8), jnp.arange(5, dtype=jnp.int32), jnp.float32(2)
    assert compiled == []
    kinds = [(x.dtype.name, x.shape) for x in found]
    assert kinds == [("float32", (2, 3)), ("int8", (2,)), ("int32", (5,)), ("float32", ())]
    np.testing.assert_array_equal(
        np.concatenate([np.ravel(x) for x in found]), [0] * 6 + [3, 3, *range(5), 2]
    )
    assert jnp.any(found[2] > 3)
    assert not jnp.all(found[2] > 3)
    assert compiled == []


@pytest.mark.parametrize(
    ("operation", "array"),
    [
        (lambda x: x * 0.5, np.float32([1e-38, 2e-38])),  # a result that XLA's threads take for 0
        (lambda x: x.astype(jnp.bfloat16), np.float32([1e-40])),
        (lambda x: x.astype(jnp.int32), np.float32([1.5, -1.5])),
        (lambda x: lax.shift_left(x, jnp.full_like(x, 32)), np.int32([1, 2])),
        (jax.jit(lambda x: x + x), np.float32([1])),  # not JAX's own
        (jnp.mean, np.float32([1, 2])),  # whose order counts
        (lambda x: x + x, np.zeros(host_programs.SIZE + 1, np.float32)),
    ],
)
def test_the_rest_is_xlas(compiled, operation, array):
    array = jnp.asarray(array)
    compiled.clear()
    operation(array)
    assert len(compiled) == 1


def test_arrays_that_were_placed_stay_there(compiled):
    placed = jax.device_put(np.float32([1, 2]), jax.devices()[0])
    assert (placed + placed).committed
    assert compiled == ["add"]


def test_an_array_that_was_read_can_be_donated(compiled):
    x = jnp.asarray(np.float32([1, 2, 3]))
    assert (x + x).sum() == 12
    y = jax.jit(lambda x: x * 2, donate_argnums=0)(x)
    assert x.is_deleted()
    np.testing.assert_array_equal(y, [2, 4, 6])
