"""Where a program runs, and everything that this decides. Read once, outside of any trace."""

import dataclasses
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from jllama import sharding
from jllama.layers.shards import Shards
from jllama.machine import devices

CHUNK_SIZES = {"gpu": (64, 128, 256, 512, 1024, 2048)}  # a GPU reads all weights for any chunk, however short
SHORT_SIZES = (16, 32)  # of a GPU's chunks, where `kernels.short_refusal` has nothing against them
OTHER_CHUNK_SIZES = (32, 128, 512)
CUBLAS = {"xla_gpu_enable_triton_gemm": False}  # for every product, whatever Triton's would take
# A short chunk's kernels end sooner than the host can launch the next one: a CUDA graph launches them all.
# A long one's outlast their launches, but not the graph's update, which each call with other buffers needs.
SHORT_CHUNK = 512
ONE_BY_ONE = {**CUBLAS, "xla_gpu_enable_command_buffer": ""}


@dataclasses.dataclass(frozen=True)
class Target:
    """A platform and its way to run programs. Hashable: a static argument of `jax.jit`."""

    platform: str  # `cpu`, `gpu`, or another of XLA's
    kernels: bool = True  # hand-written kernels may run: `JLLAMA_KERNELS=0` leaves everything to XLA
    mesh: Mesh | None = None  # the devices that hold the model together, under `jax.shard_map`; None: one

    @property
    def on_gpu(self) -> bool:
        """The loop has a fixed length, plain settings a program of their own, an empty cache a faster way."""
        return self.platform == "gpu"

    @property
    def devices(self) -> int:
        """How many hold the model together."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def layout(self) -> str:
        """That of `QTensor`s which kernels read here; a part of a model is in tiles for none."""
        alone = "tiles" if self.platform == "cpu" and self.devices == 1 else "rows"
        return "records" if self.on_gpu else alone

    @property
    def shards(self) -> Shards | None:
        """What a device knows of the others; None: it is alone."""
        return None if self.mesh is None else Shards(count=self.devices)

    def whole(self, logits: Array, vocab_size: int) -> Array:
        """All logits `[..., V]` of those that a call gave: each device's own, or all where it is alone."""
        if self.shards is None or logits.shape[-1] == vocab_size:
            return logits
        return self.shards.gathered(logits)

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """The sizes, in tokens, that prompts are cut into; rising."""
        return CHUNK_SIZES.get(self.platform, OTHER_CHUNK_SIZES)

    def chunk_options(self, size: int) -> dict[str, Any] | None:
        """XLA's options for a chunk of so many tokens."""
        if not self.on_gpu:
            return None
        return CUBLAS if size <= SHORT_CHUNK else ONE_BY_ONE

    @property
    def chunk_steps(self) -> int:
        """How many steps of one text take as long as its shortest chunk: a GPU's reads the weights once for
        64 tokens, 2.2 ms of TinyLlama's where a step takes 0.6; a CPU multiplies all 32.
        """
        return 4 if self.on_gpu else 12

    def step_options(self, batch: int) -> dict[str, Any] | None:
        """XLA's options for a decode step of so many rows: cuBLAS adds the residual as it stores."""
        return CUBLAS if self.on_gpu and batch > 1 else None


def of_platform(platform: str, mesh: Mesh | None = None) -> Target:
    """The target of a platform as the environment wants it."""
    return Target(platform.replace("cuda", "gpu"), devices.kernels_wanted(), mesh)


def target_of(tree: Any) -> Target:
    """The target of a program that works on a tree of arrays: where they lie."""
    platform = next(iter(jax.tree.leaves(tree)[0].devices())).platform
    return of_platform(platform, sharding.mesh_under(tree))
