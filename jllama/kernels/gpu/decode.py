"""One decoding step as one CUDA kernel: which models it can run, its source's sizes, its call."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.gpu import launch
from jllama.layers.cache import KVCache
from jllama.layers.quantized import QTensor
from jllama.model import Params

THREADS = 17 * 32  # 16 warps that compute, one that streams
ROW_BYTES = 1024  # of a weight row per ring slot
GROUPS = 4  # of warps: each takes every fourth slot of the ring
TABLE_LAYER, TABLE_PER_LAYER = 16, 12  # the pointer table of decode.cu
SPIN_LIMIT = 1 << 27


@dataclasses.dataclass(frozen=True)
class Format:
    """How a weight is stored: bits, group (0: one float32 scale a row), bytes of a scale."""

    bits: int
    group: int
    scale_bytes: int

    @property
    def lane_bytes(self) -> int:
        """Bytes of a row that a lane of the kernel takes at a time."""
        return self.group * self.bits // 32 if self.group else 16

    @property
    def step(self) -> int:
        """Weights of a row that the kernel takes at a time."""
        if self.bits == 16:
            return 32
        return self.group or 64

    def row_scales(self, columns: int) -> int:
        """Bytes of scales in the ring per `columns` weights."""
        return columns // self.group * self.scale_bytes if self.group else 0


def weight_format(w: Array | QTensor) -> Format:
    if not isinstance(w, QTensor):
        return Format(8 * jnp.dtype(w.dtype).itemsize, 0, 0)
    whole_row = w.bits == 8 and w.group == w.shape[-1]
    return Format(w.bits, 0 if whole_row else w.group, jnp.dtype(w.scales.dtype).itemsize)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that the kernel's source depends on: a key of the cache of compiled kernels."""

    config: ModelConfig
    dtype: str
    blocks: int
    shared_bytes: int  # what a block may use
    formats: tuple[Format, ...]  # embed, qkv, o, gate_up, down, head
    tied: bool
    row_bytes: int  # of each weight row per ring slot
    groups: int

    @property
    def chunk(self) -> int:
        """Cached tokens that a block of the kernel attends to at a time: 16 KB of keys."""
        return min(128, 8192 // self.config.head_dim // 32 * 32)

    @property
    def slot(self) -> int:
        """Bytes of a ring slot: a tile's slices and their scales, or at least 32 cached tokens."""
        c = self.config
        mixed = c.num_attention_heads * c.head_dim
        columns = (c.hidden_size, mixed, c.hidden_size, c.intermediate_size, c.hidden_size)
        tiles = [self._tile(f, k) for f, k in zip(self.formats[1:], columns, strict=True)]
        return -(-max(*tiles, 32 * c.head_dim * 2) // 128) * 128

    def _tile(self, f: Format, columns: int) -> int:
        """Bytes in the ring of 8 or 16 rows' slices; the same sums as `Rows` in decode.cu."""
        row, row_scales = columns * f.bits // 8, f.row_scales(columns)
        rows = 16 if 2 * row <= self.row_bytes else 8
        pieces = -(-row // self.row_bytes)
        units = -(--(-row // 64) // pieces)
        units = -(-units // 4) * 4 if f.group else units
        piece = min(row, units * 64)
        data = rows * (piece + 4 * f.lane_bytes)
        if not f.group:
            return data
        if piece < row:
            return data + rows * (f.row_scales(piece * 8 // f.bits) + 16)
        return data + 2 * ((rows // 2 * row_scales + 47) // 16 * 16)

    @property
    def fixed_bytes(self) -> int:
        """Shared memory beside the ring; the same sums as in decode.cu."""
        c = self.config
        H, G, N = c.head_dim, c.num_attention_heads // c.num_key_value_heads, c.num_attention_heads
        widest = max(c.hidden_size, c.intermediate_size, N * H)
        warps = self.chunk // 8
        attention = 16 * (H * 2 + 16) + H * 4 + warps * 128 + 64 + warps * G * H * 4
        x = max(widest * 2 + widest // 8, attention, (512 // H) * (H + 2) * 4)
        table = (TABLE_LAYER + c.num_hidden_layers * TABLE_PER_LAYER) * 8
        return -(-x // 128) * 128 + 8192 + -(-c.hidden_size * 2 // 16) * 16 + H * 4 + 64 + table + 64

    @property
    def slots(self) -> int:
        fit = min(64, (self.shared_bytes - self.fixed_bytes) // (self.slot + 16))
        return fit // self.groups * self.groups

    @property
    def shared(self) -> int:
        """Bytes of shared memory that the kernel asks for."""
        return self.fixed_bytes + self.slots * (self.slot + 16)


def source(plan: Plan, pointers: list[int]) -> str:
    """CUDA C++ for `plan`; `pointers`: the table slot of each kernel argument, -1 for an unused one."""
    c = plan.config
    sizes = dict(
        D=c.hidden_size,
        F=c.intermediate_size,
        N=c.num_attention_heads,
        K_=c.num_key_value_heads,
        G=c.num_attention_heads // c.num_key_value_heads,
        H=c.head_dim,
        V=c.vocab_size,
        L=c.num_hidden_layers,
        EPS=f"{c.rms_norm_eps!r}f" if "." in repr(c.rms_norm_eps) else f"{c.rms_norm_eps:.9e}f",
        NCTA=plan.blocks,
        SRB=plan.row_bytes,
        NSLOT=plan.slots,
        NG=plan.groups,
        SLOT=plan.slot,
        TC=plan.chunk,
        FP16=int(plan.dtype == "float16"),
        SHARED=plan.shared,
        SPIN_LIMIT=SPIN_LIMIT,
    )
    names = ("EMBED", "QKV", "O", "GU", "DOWN", "HEAD")
    for name, f in zip(names, plan.formats, strict=True):
        sizes[f"FMT_{name}"] = f"{f.bits}, {f.group}, {f.scale_bytes}"
    sizes["KERNEL_PARAMS"] = ", ".join(f"const void* a{i}" for i in range(len(pointers)))
    sizes["LOAD_TABLE"] = _load_table(pointers, plan.tied)
    defines = "".join(f"#define {name} {value}\n" for name, value in sizes.items())
    return defines + (Path(__file__).parent / "decode.cu").read_text(encoding="utf-8")


def _load_table(pointers: list[int], tied: bool) -> str:
    """Statements that store every argument in the table, spread over the warps."""
    used = [(slot, i) for i, slot in enumerate(pointers) if slot >= 0]
    if tied:  # the head is the embedding
        used += [(slot + 3, i) for slot, i in used if slot in (5, 6)]
    share = -(-len(used) // 17)
    cases = []
    for warp in range(17):
        mine = used[warp * share : (warp + 1) * share]
        stores = " ".join(f"T[{slot}] = (u64)a{i};" for slot, i in mine)
        cases.append(f"case {warp}: {stores} break;")
    return "switch (warp) { " + " ".join(cases) + " }"


def decode_supported(config: ModelConfig, params: Params, cache: KVCache, tokens: Array) -> str | None:
    """Why the kernel can't run this step; None if it can."""
    if tokens.shape != (1, 1):
        return f"tokens have shape {tokens.shape}; the kernel decodes one token of one sequence"
    return launch.unavailable() or _unsupported_config(config) or _unsupported_arrays(config, params, cache)


def _unsupported_config(c: ModelConfig) -> str | None:
    blocks = _blocks(c)
    checks = (
        (c.attention_bias or c.mlp_bias, "biases"),
        (c.hidden_act != "silu", f"hidden_act {c.hidden_act}"),
        (c.head_dim % 32 or c.head_dim > 128, f"head_dim {c.head_dim} (32, 64, 96 or 128)"),
        (c.num_attention_heads > 16 * c.num_key_value_heads, "more than 16 query heads per key head"),
        (c.hidden_size % 32 or c.intermediate_size % 32, "sizes that are no multiple of 32"),
        (c.vocab_size % 2, "an odd vocabulary"),
        (blocks < c.num_key_value_heads, "more key heads than blocks"),
        (max(c.hidden_size, c.intermediate_size) > 32768, "rows longer than 32768"),
    )
    return next((f"the kernel does not know {what}" for bad, what in checks if bad), None)


def _unsupported_arrays(c: ModelConfig, params: Params, cache: KVCache) -> str | None:
    dtype = params.norm.dtype
    if dtype not in (jnp.bfloat16, jnp.float16) or cache.keys[0].dtype != dtype:
        return f"weights of {dtype} with a cache of {cache.keys[0].dtype}; the kernel wants 16 bits in both"
    plan = make_plan(c, params)
    for layer in params.layers:
        if _layer_formats(layer) != plan.formats[1:5]:
            return "layers whose weights are stored in different ways"
    columns = (c.hidden_size, c.hidden_size, c.num_attention_heads * c.head_dim, c.hidden_size)
    for f, width in zip(plan.formats, (*columns, c.intermediate_size, c.hidden_size), strict=True):
        reason = _unsupported_format(f, width, plan)
        if reason:
            return reason
    if any(isinstance(w, QTensor) and w.offsets is not None for w in _weights(params)):
        return "4-bit weights with offsets"
    return None if plan.slots >= 3 else "rows too long for the shared memory"


def _unsupported_format(f: Format, width: int, plan: Plan) -> str | None:
    known = {(16, 0), (8, 0), (8, 32), (8, 64), (4, 32), (4, 64), (4, 128)}
    if (f.bits, f.group) not in known:
        return f"the kernel does not know weights of {f.bits} bits in groups of {f.group}"
    if width % f.step or width * f.bits // 8 % 16:
        return f"rows of {width} weights of {f.bits} bits"
    if f.row_scales(width) % 16 and width * f.bits // 8 > plan.row_bytes:
        return f"rows of {width} weights with scales that are no multiple of 16 bytes"
    return None


def _blocks(c: ModelConfig) -> int:
    """One per multiprocessor, but none without work in some stage (the kernel's buffers rely on it)."""
    qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    return min(launch.blocks_at_once(), c.hidden_size // 2, c.intermediate_size // 2, qkv // 2)


def _layer_formats(layer) -> tuple[Format, ...]:
    a, m = layer.attention, layer.mlp
    return tuple(weight_format(w) for w in (a.qkv_proj, a.o_proj, m.gate_up_proj, m.down_proj))


def _weights(params: Params) -> list[Array | QTensor]:
    return jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QTensor))


def make_plan(c: ModelConfig, params: Params) -> Plan:
    head = params.embed_tokens if params.lm_head is None else params.lm_head
    return Plan(
        config=c,
        dtype=jnp.dtype(params.norm.dtype).name,
        blocks=_blocks(c),
        shared_bytes=launch.shared_memory(),
        formats=(weight_format(params.embed_tokens), *_layer_formats(params.layers[0]), weight_format(head)),
        tied=params.lm_head is None,
        row_bytes=ROW_BYTES,
        groups=GROUPS,
    )


def decode_step(
    config: ModelConfig, params: Params, tokens: Array, cache: KVCache, rope: tuple[Array, Array]
) -> tuple[Array, KVCache]:
    """`forward` of one token of one sequence; asks `decode_supported` first.

    Args:
      tokens: int32 `[1, 1]`.
      cache: updated in place where XLA may (the caller donates it); `length` is left to the caller.
      rope: cosines and sines of the new position, float32 `[1, 1, H/2]`.

    Returns:
      float32 logits `[1, 1, V]` and the cache with the token's keys and values.
    """
    with jax.named_scope("decode_step"):
        operands, slots = _operands(config, params, tokens, cache, rope)
        first_cache = len(operands) - 2 * len(cache.keys)
        logits = jax.ShapeDtypeStruct((1, 1, config.vocab_size), jnp.float32)
        caches = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (*cache.keys, *cache.values)]
        slots += [10] + [-1] * len(caches)
        plan = make_plan(config, params)
        logits, *caches = launch.call(
            _source(plan, tuple(slots)),
            "jllama_decode",
            operands,
            [logits, *caches],
            grid=plan.blocks,
            threads=THREADS,
            shared=plan.shared,
            aliases={first_cache + i: 1 + i for i in range(len(caches))},
        )
        keys, values = tuple(caches[: len(cache.keys)]), tuple(caches[len(cache.keys) :])
        return logits, dataclasses.replace(cache, keys=keys, values=values)


@functools.lru_cache(maxsize=32)
def _source(plan: Plan, slots: tuple[int, ...]) -> str:
    return source(plan, list(slots))


def _operands(
    config: ModelConfig, params: Params, tokens: Array, cache: KVCache, rope: tuple[Array, Array]
) -> tuple[list[Array], list[int]]:
    """The kernel's operands, the caches last, and the slot of each in the kernel's pointer table."""
    limits = np.array([cache.max_len, config.sliding_window or 0], np.int32)
    operands: list[Array] = [tokens, cache.length, *rope, jnp.asarray(limits)]
    slots = [0, 1, 2, 3, 4]

    def add(slot: int, weight: Array | QTensor) -> None:
        parts = [weight.values, weight.scales] if isinstance(weight, QTensor) else [weight]
        operands.extend(parts)
        slots.extend(range(slot, slot + len(parts)))

    add(5, params.embed_tokens)
    add(7, params.norm)
    if params.lm_head is not None:
        add(8, params.lm_head)
    for i, layer in enumerate(params.layers):
        a, m = layer.attention, layer.mlp
        weights = (layer.input_layernorm, a.qkv_proj, a.o_proj, layer.post_attention_layernorm)
        for offset, w in zip((0, 1, 3, 5, 6, 8), (*weights, m.gate_up_proj, m.down_proj), strict=True):
            add(TABLE_LAYER + TABLE_PER_LAYER * i + offset, w)
    for which, arrays in ((10, cache.keys), (11, cache.values)):
        operands.extend(arrays)
        slots.extend(TABLE_LAYER + TABLE_PER_LAYER * i + which for i in range(len(arrays)))
    return operands, slots
