"""Mailboxes in the memory of every GPU of a machine, which kernels of the others store words into.

A word is 8 bytes, {32 bits of data, tag}: its arrival is its own signal. No tag comes twice: each GPU counts
the turns in the head of its own mailbox, and all of them take the same turns in the same order.
"""

import ctypes
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jllama.kernels.gpu import launch

# Words of 8 bytes. The places do not depend on the model: two models in one process never disturb each other.
HEAD = 16
MAX_ROW = 32768  # D, at most
MAX_VOCABULARY = 1 << 19
MAX_SUMS = 1 << 18  # numbers that one exchange of a batch adds, at most
MAX_BLOCKS = 256  # of a launch that reads other GPUs' arrays
MAX_GPUS = 8
ALREADY_ENABLED = 704  # CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED


def places(gpus: int) -> dict[str, int]:
    """Where in a mailbox what lies, in words, by its name in the kernels' sources; `BOX_END`: all of them."""
    sizes = dict(
        BOX_O=gpus * MAX_ROW,
        BOX_DOWN=gpus * MAX_ROW,
        BOX_LOGITS=MAX_VOCABULARY,
        BOX_PULL=4 * MAX_BLOCKS,
        BOX_SUMS=2 * gpus * MAX_SUMS,  # used in turn
        BOX_BARE=2 * gpus * MAX_SUMS // 4,  # so are these: four numbers of 16 bits in each
    )
    found, at = (
        dict(GPUS=gpus, MAX_ROW=MAX_ROW, MAX_SUMS=MAX_SUMS, BOX_EPOCH=0, BOX_TURNS=1, BOX_PULLS=2),
        HEAD,
    )
    for name, size in sizes.items():
        found[name], at = at, at + size
    return found | dict(BOX_END=at)


def peers_refusal(devices: Sequence[jax.Device]) -> str | None:
    """Why kernels can't store into the memory of all these GPUs; None if they can."""
    if len(devices) > MAX_GPUS:
        return f"{len(devices)} GPUs (at most {MAX_GPUS} exchange words)"
    if any(device.process_index != jax.process_index() for device in devices):
        return "some GPUs belong to other processes"
    if not launch.engine():
        return "words between GPUs of compute capability 8 were never tried"
    reason = launch.refusal()
    return reason or _unreachable(tuple(device.local_hardware_id for device in devices))


@functools.cache
def _unreachable(numbers: tuple[int, ...]) -> str | None:
    """Makes each GPU's memory reachable from all others; which one can't be."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "libcuda.so.1 is missing"
    contexts = [context_of(driver, number) for number in numbers]
    before = ctypes.c_void_p()
    driver.cuCtxGetCurrent(ctypes.byref(before))
    try:
        for number, context in zip(numbers, contexts, strict=True):
            driver.cuCtxSetCurrent(context)
            for other, peer in zip(numbers, contexts, strict=True):
                if other != number and driver.cuCtxEnablePeerAccess(peer, 0) not in (0, ALREADY_ENABLED):
                    return f"GPU {number} can't reach the memory of GPU {other} (no NVLink, no peer access)"
    finally:
        driver.cuCtxSetCurrent(before)
    return None


def context_of(driver: ctypes.CDLL, number: int) -> ctypes.c_void_p:
    """The context that JAX works in on a GPU: the device's primary one."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    return context


def mailboxes(mesh: Mesh) -> Array:
    """The addresses of the mailboxes of a mesh's GPUs, in its order: int32 `[t, 2]`, on each of them.

    Made once for a process and kept: programs go on writing there.
    """
    addresses = np.array([_address(box) for box in _boxes(tuple(mesh.devices.flat))], np.int64)
    return jax.device_put(addresses.view(np.int32).reshape(-1, 2), NamedSharding(mesh, PartitionSpec()))


@functools.cache
def _boxes(devices: tuple[jax.Device, ...]) -> tuple[Array, ...]:
    empty = np.zeros((places(len(devices))["BOX_END"], 2), np.uint32)
    return tuple(jax.block_until_ready(jax.device_put(empty, device)) for device in devices)


def _address(box: Array) -> int:
    return box.unsafe_buffer_pointer()
