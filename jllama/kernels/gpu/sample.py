"""From logits to the state that the next decode step begins with, as one CUDA kernel."""

import dataclasses
import functools

import jax
from jax import Array

from jllama.kernels.gpu import launch
from jllama.layers.sampling import Sampling, TokenCounts

MAX_CLUSTER = 8  # blocks that may share a row on any GPU that knows clusters
MIN_SLICE = 1024  # logits: fewer are not worth a block
SMALL_SLICE, SMALL, LARGE = 8192, 512, 1024  # threads of a block with so many logits at most, and with more
BINS, FEW = 2048, 128  # as in sample.cu
MAX_VOCABULARY = 1 << 22  # ids have 22 bits in the kernel


@dataclasses.dataclass(frozen=True)
class Shape:
    """Everything that the kernel's source depends on: a key of the cache of compiled kernels."""

    V: int
    CLUSTER: int
    NT: int
    STOPS: int
    APART: int = 0  # logits do not fit into the shared memory

    @property
    def shared(self) -> int:
        """Bytes of shared memory, the same sum as in sample.cu."""
        slice_bytes = 16 if self.APART else -(-(-(-self.V // self.CLUSTER) * 4) // 16) * 16
        bins = BINS * 16 + BINS // self.CLUSTER * 16 + self.NT * 16
        extremes = (self.NT // 32 + 2 * self.CLUSTER) * 16
        lists = 2 * 48 + (1 + self.CLUSTER) * FEW * 16 + -(-self.CLUSTER * 4 // 16) * 16
        return slice_bytes + bins + extremes + lists + 32 + 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """What sampling a token changes of each row beside its counts: fields of `decode_state.DecodeState`."""

    token: Array  # int32 [B]
    generated: Array  # int32 [B]
    done: Array  # bool [B]
    healthy: Array  # bool [B]


def sampling_refusal(vocab_size: int) -> str | None:
    """Why the kernel can't choose among so many tokens; None if it can."""
    set_to = jax.config.values
    if not set_to["jax_threefry_partitionable"] or set_to["jax_default_prng_impl"] != "threefry2x32":
        return "the kernel knows JAX's default random numbers alone"
    reason = launch.refusal()
    if reason:
        return reason
    fits = vocab_size <= MAX_VOCABULARY and make_shape(1, vocab_size, 1).shared <= launch.shared_memory()
    return None if fits else f"a vocabulary of {vocab_size} is too large for the shared memory"


def sample_rows(
    logits: Array,
    sampling: Sampling,
    counts: TokenCounts,
    rows: Rows,
    *,
    keys: Array,
    limit: Array,
    stop_ids: Array,
) -> tuple[Rows, TokenCounts]:
    """`decode_state.take_token` without its state; asks `sampling_refusal` first.

    Args:
      logits: float32 `[B, V]`.
      sampling: the settings of each row.
      counts: what each row has seen; updated in place where XLA may, like `rows`.
      rows: see there; rows that are done stay as they are.
      keys: uint32 `[B, 2]`.
      limit: int32 `[B]`.
      stop_ids: int32 `[B, E]`.
    """
    with jax.named_scope("sample"):
        B, V = logits.shape
        shape, s = make_shape(B, V, stop_ids.shape[1]), sampling
        changed = (rows.token, rows.generated, rows.done, rows.healthy, counts.answer)
        numbers = (s.temperature, s.top_k, s.top_p, s.min_p)
        penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
        read = (logits, *numbers, *penalties, s.logit_bias, s.biased, counts.prompt, keys, limit, stop_ids)
        results = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in changed]
        results += [jax.ShapeDtypeStruct(logits.shape, logits.dtype)] * shape.APART
        token, generated, done, healthy, answer, *_ = launch.call(
            sample_source(shape),
            "jllama_sample",
            [*read, *changed],
            results,
            grid=B * shape.CLUSTER,
            threads=shape.NT,
            shared=shape.shared,
            aliases={len(read) + i: i for i in range(len(changed))},
        )
        rows = Rows(token=token, generated=generated, done=done, healthy=healthy)
        return rows, dataclasses.replace(counts, answer=answer)


def make_shape(B: int, V: int, stops: int) -> Shape:
    """As many blocks a row as fill the GPU, few enough to have work, many enough for the shared memory."""

    def cut(cluster: int) -> Shape:
        return Shape(V, cluster, SMALL if SMALL_SLICE * cluster >= V else LARGE, stops)

    cluster, most = 1, MAX_CLUSTER if launch.engine() else 1
    while cluster < most and (
        (B * cluster * 2 <= launch.blocks_at_once() and MIN_SLICE * cluster * 2 <= V)
        or cut(cluster).shared > launch.shared_memory()
    ):
        cluster *= 2
    apart = cluster == most == 1 and cut(1).shared > launch.shared_memory()
    return dataclasses.replace(cut(cluster), APART=int(apart))


@functools.lru_cache(maxsize=32)
def sample_source(shape: Shape) -> str:
    sizes = dataclasses.asdict(shape) | {"FP16": 0, "SHARED": shape.shared}
    defines = launch.define(sizes)
    return launch.assemble(defines, "primitives.cu", "sample.cu")
