"""What a program depends on, told in words: two programs that differ have different keys.

Whatever can't be told in full is no part of a key, and then there is none.
"""

import dataclasses
import functools
import os
import platform
import sys
import types
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jllama.kernels.cpu.build import broken, load, threads
from jllama.machine import devices
from jllama.machine.native.packaged import processor

PACKAGE = Path(__file__).resolve().parents[2]
LIBRARIES = ("jax", "jaxlib", "numpy", "ml_dtypes")
SETTINGS = ("JLLAMA_", "JAX_", "XLA_", "TF_")  # how variables begin that may change a program
PLACES = ("JLLAMA_CACHE", "JLLAMA_STORY", "jax_compilation_cache_dir")  # and what changes none
PLAIN = (type(None), bool, int, float, complex, str, bytes)


class UntoldError(Exception):
    """Something that may hold more than could be told of it."""


def told(value: Any) -> str:
    """A value in words that no other value has.

    A function is known by its name, since all sources are in `surroundings`, and by the values it has closed
    over.

    Raises:
      UntoldError: it is of a type that is not known here.
    """
    kind = type(value)
    if kind in PLAIN:
        return repr(value)
    if kind in (tuple, list):
        return f"{kind.__name__}({', '.join(map(told, value))})"
    if kind is dict:
        return f"dict({', '.join(f'{told(name)}: {told(item)}' for name, item in value.items())})"
    if isinstance(value, np.dtype | jax.sharding.PartitionSpec):
        return f"{_name(kind)}({value})"
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, functools.partial):
        return f"partial({told(value.func)}, {told(value.args)}, {told(value.keywords)})"
    if isinstance(value, types.FunctionType):
        held = (cell.cell_contents for cell in value.__closure__ or ())
        return f"{_name(value)}({', '.join(map(told, [*held, value.__defaults__, value.__kwdefaults__]))})"
    if dataclasses.is_dataclass(value):
        return f"{_name(kind)}({', '.join(told(getattr(value, f.name)) for f in dataclasses.fields(value))})"
    raise UntoldError(_name(kind))


def _name(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"


def of_arrays(tree: Any) -> tuple[Any, ...]:
    """What a program knows of the arrays that it is given: structure, shapes, dtypes. Hashable.

    Where they lie is no part of it: there is one device.
    """
    leaves, structure = jax.tree.flatten(tree)
    return structure, *((leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in leaves)


def surroundings() -> str:
    """All that programs depend on beside their functions and arguments.

    Raises:
      UntoldError: sources may be others than those that run: they changed when the process had begun; or a
        part of the CPU kernels is lacking, which the next process may have.
    """
    if broken():
        raise UntoldError("the CPU kernels")
    return _all_surroundings()


@functools.cache
def _all_surroundings() -> str:
    return "\n".join(_surroundings())


def _surroundings() -> Iterator[str]:
    yield f"jllama {sources(PACKAGE, devices.process_began())}"
    yield f"{platform.python_implementation()} {sys.version}"
    yield from (f"{name} {version(name)}" for name in LIBRARIES)
    yield f"{[device.device_kind for device in jax.devices()]} {jax.devices()[0].client.platform_version}"
    yield f"{platform.platform()} {os.cpu_count()} {threads()}\n{processor()}"
    yield from _chosen(os.environ)
    yield from _chosen(jax.config.values)
    yield f"kernels {_library()}"


def _chosen(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in sorted(values.items()):
        if name not in PLACES and name.upper().startswith(SETTINGS):
            yield f"{name}={value!r}"


def _library() -> str:
    if not devices.kernels_wanted():
        return "none"
    library = load()
    return library if isinstance(library, str) else Path(library._name).name


def sources(package: Path, began: float) -> str:
    """The digest of all Python files below a directory.

    Raises:
      UntoldError: one was changed later than `began`.
    """
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if path.stat().st_mtime > began - 1:  # as exact as file systems are
            raise UntoldError(f"{path} changed")
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
