"""What the tests of the CPU kernels share: instruction sets, random weights, a step."""

import ctypes
import dataclasses
import functools
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.checkpoint.layout import layout
from jllama.config import ModelConfig
from jllama.kernels import cpu
from jllama.kernels.cpu import build
from jllama.layers.cache import KVCache
from jllama.layers.qtensor import LEVELS, QTensor
from jllama.machine.native import compiling, packaged
from jllama.model import places
from tests.support import aarch64
from tests.support.checkpoint_generator import named_tensors

BASE = ModelConfig(
    vocab_size=83,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
)
FORMATS = [  # bits, group, offsets
    (8, 32, False),
    (8, 96, False),
    (8, 32, True),
    (4, 32, False),
    (4, 32, True),
    (4, 96, False),
    (4, 96, True),
]
WIDER = [(4, 64, False), (4, 64, True)]  # for rows of 192
SIX = [(6, 32, False), (6, 96, True), (6, 16, False), (6, 16, True)]  # 8 bit until they are prepared
# 9 s of the compiler's for three sets, where -O1 takes 33. `JLLAMA_CXXFLAGS` comes behind it: users get -O2.
QUICKLY = "-O0"
ALL_PARTS = Path(__file__).parent / "all_parts.cc"


def machines() -> dict[str, tuple[str, ...] | None]:
    """Compiler flags by instruction set; None: as for users, with all that this processor has."""
    sets: dict[str, tuple[str, ...] | None] = {"native": None}
    if platform.machine() == "x86_64":
        text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        has = set(text.split())
        sets["sse2"] = ("-march=x86-64",)
        if {"avx2", "fma", "f16c"} <= has:
            sets["avx2"] = ("-march=x86-64-v3",)
        if "avx_vnni" in has:
            sets["avx_vnni"] = ("-march=x86-64-v3", "-mavxvnni")
        if "amx_tile" in has:
            sets["no_tiles"] = ("-march=native", "-mno-amx-tile")
    sets["plain_tiles"] = (*compiling.native_flags(), "-DJLLAMA_PLAIN_TILES")
    return sets


def marked(machine: str, *more: object):
    """A case of a test: of an emulated processor it is for `pytest -m neon`."""
    return pytest.param(machine, *more, marks=[pytest.mark.neon] if machine in aarch64.PROCESSORS else [])


every_machine = pytest.mark.parametrize(
    "machine", [marked(name) for name in (*machines(), *aarch64.PROCESSORS)]
)


@functools.cache
def suffix_of(machine: str) -> str:
    """What the names of the kernels compiled for this instruction set end in; skips without a compiler."""
    skip_without_kernels()
    if machines().get(machine, ()) is None:
        return ""
    build.register(_library(machine), f"_{machine}")
    return f"_{machine}"


def register_copy(machine: str, path: Path, suffix: str) -> None:
    """Registers a copy of the kernels, which has threads of its own."""
    if machine in aarch64.PROCESSORS:
        return build.register(aarch64.connected(machine), suffix)
    flags = machines()[machine]
    library = ctypes.CDLL(shutil.copy(_compiled(flags), path))
    build.register(library, suffix)
    for part in compiling.PARTS if flags is None else ():
        build._connect(library, ctypes.CDLL(str(compiling.compiled(units=(part,)))), part)


def _loaded(flags: tuple[str, ...]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(_compiled(flags)))
    assert all(hasattr(library, compiling.symbol(part)) for part in compiling.PARTS)
    return library


def _compiled(flags: tuple[str, ...] | None) -> Path:
    """This machine's core; of other sets it and all parts, which are two files instead of thirteen."""
    if flags is not None:
        flags = (*flags, QUICKLY, f"-I{packaged.HERE}", str(ALL_PARTS))
    return compiling.compiled(flags, (compiling.CORE,))


@functools.partial(jax.jit, static_argnames="machine")
def products(weight: jax.Array | QTensor, many: Sequence[jax.Array], machine: str) -> list[jax.Array]:
    """The kernel's product with each of `many`; in one program, for each would take as long to compile."""
    return [cpu.quantized_linear(weight, x, target=f"jllama_product{suffix_of(machine)}") for x in many]


def has_tiles(machine: str) -> bool:
    """Whether many rows of activations meet weights in tile registers, or in their twin."""
    return bool(_library(machine).jllama_tiles())


def rounds(machine: str, columns: int) -> bool:
    """Whether many rows of activations are rounded to bfloat16 where the weights are."""
    return has_tiles(machine) or (columns % 2 == 0 and bool(_library(machine).jllama_pairs()))


@functools.cache
def _library(machine: str) -> ctypes.CDLL:
    if machine in aarch64.PROCESSORS:
        return aarch64.connected(machine)
    flags = machines()[machine]
    if flags is None:
        library = build.load()
        assert not isinstance(library, str), library
        return library
    return _loaded(flags)


def skip_without_kernels() -> None:
    reason = cpu.refusal()
    if reason:
        pytest.skip(reason)


def random_weight(rng, shape: tuple[int, ...], bits: int, group: int, offset: bool) -> QTensor:
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    size, ends = (
        (columns, (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)) if bits > 4 else (columns // 2, (0, 255))
    )
    scales = rng.uniform(0.5, 1.5, (rows, columns // group)) * columns**-0.5 / 2 ** (bits - 2)
    scale_type = rng.choice(["float16", "float32"])
    return QTensor(
        values=jnp.asarray(
            rng.integers(*ends, (rows, size), np.int8 if bits > 4 else np.uint8, endpoint=True)
        ),
        scales=jnp.asarray(scales.astype(scale_type)),
        offsets=jnp.asarray((-3 * scales).astype(scale_type)) if offset else None,
        shape=shape,
        bits=max(bits, 8) if bits > 4 else 4,
    )


def random_levels(rng, shape: tuple[int, ...]) -> QTensor:
    """As GGUF's IQ4_NL is loaded."""
    w = random_weight(rng, shape, 8, 32, False)
    return dataclasses.replace(w, values=jnp.asarray(rng.choice(np.array(LEVELS, np.int8), w.values.shape)))


def activations(rng: np.random.Generator, *shape: int) -> jax.Array:
    """That the kernels' 16 bits in blocks of 32 hold as they are: nothing but sums is rounded."""
    steps = rng.integers(-32639, 32640, shape)
    steps[..., ::32] = 32639
    return jnp.asarray((steps / 16384).astype(np.float32))


def weights_like(params, rng, make):
    """The same tree with every matrix made anew by `make(shape)`."""
    return jax.tree.map(
        lambda leaf: make(leaf.shape) if leaf.ndim > 1 and leaf.shape[-1] >= 96 else leaf, params
    )


def params_of(config: ModelConfig, dtype="float32"):
    """Random weights for a configuration of any family, so large that mistakes show."""

    def drawn(leaf):
        name = leaf.parts[0].name
        return jnp.asarray(named_tensors({name: leaf.shape})[name], dtype)

    return jax.tree.map(drawn, layout(config))


def filled_cache(config, rng, lengths, max_len, dtype) -> KVCache:
    cache = KVCache.empty(config, batch=len(lengths), max_len=max_len, dtype=dtype)
    noise = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), cache)
    return dataclasses.replace(noise, length=jnp.asarray(lengths, jnp.int32))


def kernel_step(config, params, tokens, cache, suffix, *, n_valid=None, last_only=False):
    """`cpu.forward` with its tables, and the cache's length behind it: one program."""
    n_valid = jnp.full_like(cache.length, tokens.shape[1]) if n_valid is None else n_valid
    return _kernel_step(config, params, tokens, cache, n_valid, f"jllama_forward{suffix}", last_only)


@functools.partial(jax.jit, static_argnames=("config", "target", "last_only"))
def _kernel_step(config, params, tokens, cache, n_valid, target, last_only):
    positions = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    tables = places(config, positions, cache.length + n_valid)
    logits, cache = cpu.forward(
        config, params, tokens, cache, tables, n_valid, target=target, last_only=last_only
    )
    return logits, cache.advance(n_valid)
