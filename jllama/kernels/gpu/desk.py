"""A desk: the host's memory, in which a program on a GPU and the host talk while it runs (`desk.cu`).

At each step the program tells which tokens came and goes on with the next logits; the host answers with
masks before the next choice. Turns count the steps, those of all programs at a desk in their order; both
take turns, so that nothing is overwritten before it was read.
"""

import ctypes
import dataclasses
import functools
import platform
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama.kernels.gpu import launch
from jllama.kernels.gpu.peers import context_of

BLOCK_SIZE = 256
LINE = 32  # words of 4 bytes; what the host writes and what kernels write never share a line of a cache
READY, TOLD_TURN, GIVEN_UP, TOLD = 0, LINE, 2 * LINE, 3 * LINE  # a LINE of bursts that gave up, in turn
PATIENCE = 60  # seconds that a program waits for the host: a process may be stopped and go on
PORTABLE, MAPPED = 1, 2  # CU_MEMHOSTALLOC_PORTABLE, CU_MEMHOSTALLOC_DEVICEMAP
_spare: defaultdict[tuple[int, int, int], "list[Desk]"] = defaultdict(list)


@functools.cache
def desk_refusal() -> str | None:
    """Why no program can talk with the host while it runs; None if one can."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "only on x86 others see the host's stores in their order"
    if (reason := launch.refusal()) is not None:
        return reason
    try:
        _mapped(launch.device().local_hardware_id, 4096)  # type: ignore[union-attr]
    except (OSError, MemoryError) as error:
        return str(error)
    return None


class Desk:
    """Where programs on a GPU talk with the host.

    Attributes:
      masks: int32 `[rows, W]`, for the host to write before `answer`.
      told: int32 `[rows, 3]`, of each row its token, whether it is done and whether it is healthy.
      addresses: int32 `[4]`, of its words and of the masks, on the device.
      turn: of the next step. Bursts have 4n steps: no last one is 0, which is nobody's among those that gave
        up, and those of two that follow each other have other places there.
    """

    def __init__(self, device: jax.Device, rows: int, width: int) -> None:
        """Takes memory that is never given back: programs may run until the process ends."""
        masks = TOLD + -(-3 * rows // LINE) * LINE
        count = masks + rows * width
        here, there = _mapped(device.local_hardware_id, 4 * count)
        self._words = np.ctypeslib.as_array((ctypes.c_uint32 * count).from_address(here))
        self._words[:] = 0
        self.masks = self._words[masks:].view(np.int32).reshape(rows, width)
        self.told = self._words[TOLD : TOLD + 3 * rows].view(np.int32).reshape(rows, 3)
        addresses = np.array([there, there + 4 * masks], np.int64)
        self.addresses = jax.device_put(addresses.view(np.int32), device)
        self.turn, self._key = 2, (device.local_hardware_id, rows, width)

    @classmethod
    def taken(cls, device: jax.Device, rows: int, width: int) -> "Desk":
        """One that nobody sits at, or a new one."""
        spare = _spare[device.local_hardware_id, rows, width]
        return spare.pop() if spare else cls(device, rows, width)

    def leave(self) -> None:
        """For others to take; no program talks here any more."""
        _spare[self._key].append(self)

    def answer(self, turn: int) -> None:
        """The masks of all steps up to that turn are there."""
        self._words[READY] = turn & 0xFFFFFFFF

    def has_told(self, turn: int) -> bool:
        """Whether the program has told what came of that turn."""
        return (int(self._words[TOLD_TURN]) - turn) & 0xFFFFFFFF < 1 << 31

    def given_up(self, last: int) -> bool:
        """Whether the program whose last turn that is waited too long, and went on."""
        last &= 0xFFFFFFFF
        return int(self._words[GIVEN_UP + last // 4 % LINE]) == last


def _mapped(number: int, size: int) -> tuple[int, int]:
    """Pinned memory of the host: its address here, and the one that a GPU knows it by."""
    driver = ctypes.CDLL("libcuda.so.1")
    before, here, there = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
    driver.cuCtxGetCurrent(ctypes.byref(before))
    driver.cuCtxSetCurrent(context_of(driver, number))
    try:
        flags = ctypes.c_uint(PORTABLE | MAPPED)
        code = driver.cuMemHostAlloc(ctypes.byref(here), ctypes.c_size_t(size), flags)
        code = code or driver.cuMemHostGetDevicePointer_v2(ctypes.byref(there), here, ctypes.c_uint(0))
    finally:
        driver.cuCtxSetCurrent(before)
    if code:
        raise MemoryError(f"{size} bytes of memory that a GPU reaches: CUDA's error {code}")
    return here.value or 0, there.value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """What a program needs to talk with the host."""

    addresses: Array  # int32 [4]
    turn: Array  # int32 scalar: of this step
    last: Array  # int32 scalar: of the program's last step
    steps: int = dataclasses.field(metadata={"static": True})  # of the program

    def after(self, steps: Array) -> "Line":
        """So many steps later."""
        return dataclasses.replace(self, turn=self.turn + steps)


def tell(line: Line, told: Array, token: Array) -> Array:
    """Tells the host what came of a step.

    Args:
      line: of this step.
      told: int32 `[b, 3]`, as `Desk.told`.
      token: int32 `[b]`.

    Returns:
      `token`, for what runs after it was told.
    """
    with jax.named_scope("tell"):
        (same,) = launch.call(
            desk_source(token.shape[0], 0),
            "jllama_tell",
            [line.addresses, _turns(line), told, token],
            [jax.ShapeDtypeStruct(token.shape, token.dtype)],
            grid=1,
            threads=BLOCK_SIZE,
        )
        return same


def hear(line: Line, logits: Array) -> Array:
    """Waits for the host's masks of a step, int32 `[b, ceil(V/32)]`: not before these logits are there.

    Args:
      line: of this step.
      logits: float32 `[b, V]`.
    """
    with jax.named_scope("hear"):
        b, width = logits.shape[0], -(-logits.shape[1] // 32)
        (mask,) = launch.call(
            desk_source(b, width),
            "jllama_hear",
            [line.addresses, _turns(line), logits],
            [jax.ShapeDtypeStruct((b, width), jnp.int32)],
            grid=b,
            threads=BLOCK_SIZE,
            shared=16,
        )
        return mask


def _turns(line: Line) -> Array:
    return jnp.stack([line.turn, line.last])


@functools.lru_cache(maxsize=64)
def desk_source(rows: int, width: int) -> str:
    sizes = dict(ROWS=rows, W=width, BLOCK_SIZE=BLOCK_SIZE, FP16=0, PATIENCE=f"{PATIENCE * 10**9}ull")
    sizes |= dict(READY=READY, TOLD_TURN=TOLD_TURN, GIVEN_UP=GIVEN_UP, TOLD=TOLD, LINE=LINE)
    defines = launch.define(sizes)
    return launch.assemble(defines, "primitives.cu", "desk.cu")
