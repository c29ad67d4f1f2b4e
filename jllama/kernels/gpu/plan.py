"""What the source of the decode kernel depends on, and its sizes."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.gpu import launch
from jllama.layers.qtensor import QTensor
from jllama.layers.rope import attention_factor
from jllama.model import Block, Params

ROW_BYTES = 1024  # of a weight row per ring slot
WARPS, GROUPS = 8, 2  # warps that compute; groups of them, each of which takes every second slot of the ring
PRODUCERS = 2  # warps that stream: 1, 2 or 4
IN_FLIGHT = 49152  # bytes on their way to a block, at most: more would hold up the hand-overs
LOGITS_SLOT, TABLE_LAYER, TABLE_PER_LAYER = 6, 16, 16  # the pointer table of layout.cu
SPIN_LIMIT = 1 << 27
# The kernel's text, in this order.
PARTS = ("layout", "products", "shares", "producer", "consumers", "attention", "step")


@dataclasses.dataclass(frozen=True)
class Format:
    """How a weight is stored: bits, group (0: one scale a row), bytes of a scale, whether with offsets."""

    bits: int
    group: int
    scale_bytes: int
    offsets: bool = False

    @property
    def unit(self) -> int:
        """Bytes of a row that the kernel takes at a time: four groups' where there are groups."""
        return self.group * self.bits // 2 if self.group else 64

    def activations(self, columns: int) -> int:
        """Bytes of shared memory that so many activations take; the same sums as `X` in layout.cu."""
        if self.bits == 16:
            return 2 * columns
        limb = -(-columns // 128) * 128 + 64
        return 2 * limb + columns // self.group * 8 if self.group else 3 * limb

    def row_scales(self, columns: int) -> int:
        """Bytes of scales per `columns` weights."""
        return columns // self.group * self.scale_bytes if self.group else 0


def weight_format(w: Array | QTensor) -> Format:
    if not isinstance(w, QTensor):
        return Format(8 * jnp.dtype(w.dtype).itemsize, 0, 0)
    whole_row = w.bits == 8 and w.group == w.shape[-1]
    size = jnp.dtype(w.scales.dtype).itemsize
    return Format(w.bits, 0 if whole_row else w.group, size, w.offsets is not None)


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
    warps: int
    groups: int
    producers: int
    in_flight: int

    @property
    def chunk(self) -> int:
        """Cached tokens that a block of the kernel attends to at a time: 16 KB of keys."""
        return min(128, 8192 // self.config.head_dim // 32 * 32)

    @property
    def columns(self) -> tuple[int, ...]:
        """The length of a row of q·k·v, o, gate·up, down and head."""
        c = self.config
        return (
            c.hidden_size,
            c.num_attention_heads * c.head_dim,
            c.hidden_size,
            c.intermediate_size,
            c.hidden_size,
        )

    @property
    def slot(self) -> int:
        """Bytes of a ring slot: a tile's slices and their scales, or at least 32 cached tokens."""
        tiles = [self._tile(f, k) for f, k in zip(self.formats[1:], self.columns, strict=True)]
        return -(-max(*tiles, 32 * self.config.head_dim * 2) // 128) * 128

    def _tile(self, f: Format, columns: int) -> int:
        """Bytes in the ring of 8 or 16 rows' slices; the same sums as `Rows` in layout.cu."""
        row, row_scales = columns * f.bits // 8, f.row_scales(columns)
        rows = 16 if f.bits < 16 or 2 * row <= self.row_bytes else 8
        pieces = -(-row // self.row_bytes)
        if f.group and pieces > 1:
            pieces = -(-pieces // self.groups) * self.groups
        units = ((row + 63) // 64 + pieces - 1) // pieces
        units = -(-units // 4) * 4 if f.group else units
        piece = min(row, units * 64)
        data = rows * (-(-piece // 128) * 128 + (64 if f.unit == 64 else 16))
        if not f.group:
            return data
        lists = 2 if f.offsets else 1
        if row_scales % 16 == 0:
            return data + lists * rows * (f.row_scales(piece * 8 // f.bits) + 16)
        return data + lists * 2 * ((rows // 2 * row_scales + 47) // 16 * 16)

    @property
    def fixed_bytes(self) -> int:
        """Shared memory beside the ring; the same sums as in layout.cu."""
        c = self.config
        H, G = c.head_dim, c.num_attention_heads // c.num_key_value_heads
        activations = [f.activations(k) for f, k in zip(self.formats[1:], self.columns, strict=True)]
        readers = self.chunk // (16 if self.chunk > 8 * self.warps else 8)
        attention = 16 * (H * 2 + 16) + H * 4 + readers * 128 + 64 + readers * G * H * 4
        x = max(*activations, attention, (32 * self.warps // H) * (H + 2) * 4)
        table = (TABLE_LAYER + c.num_hidden_layers * TABLE_PER_LAYER) * 8
        sums = 512 * self.warps + 8 * self.warps + 16
        return -(-x // 128) * 128 + sums + -(-c.hidden_size * 2 // 16) * 16 + H * 4 + table + 64

    @property
    def slots(self) -> int:
        fit = min(64, (self.shared_bytes - self.fixed_bytes) // (self.slot + 16))
        return fit // self.groups * self.groups

    @property
    def threads(self) -> int:
        return 32 * (self.warps + self.producers)

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
        ROPE_SCALE=f"{attention_factor(c.rope):.9e}f",
        EPS=f"{c.rms_norm_eps!r}f" if "." in repr(c.rms_norm_eps) else f"{c.rms_norm_eps:.9e}f",
        NCTA=plan.blocks,
        SRB=plan.row_bytes,
        NSLOT=plan.slots,
        NW=plan.warps,
        NG=plan.groups,
        PW=plan.producers,
        LAG=max(1, plan.in_flight // plan.slot),
        SLOT=plan.slot,
        TC=plan.chunk,
        FP16=int(plan.dtype == "float16"),
        SHARED=plan.shared,
        SPIN_LIMIT=SPIN_LIMIT,
    )
    names = ("EMBED", "QKV", "O", "GU", "DOWN", "HEAD")
    for name, f in zip(names, plan.formats, strict=True):
        sizes[f"FMT_{name}"] = f"{f.bits}, {f.group}, {f.scale_bytes}, {str(f.offsets).lower()}"
    sizes["KERNEL_PARAMS"] = ", ".join(f"const void* a{i}" for i in range(len(pointers)))
    sizes["LOAD_TABLE"] = _load_table(pointers, plan.tied, plan.warps + plan.producers)
    defines = "".join(f"#define {name} {value}\n" for name, value in sizes.items())
    return launch.assemble(defines, "primitives.cu", *(f"decode_kernel/{part}.cu" for part in PARTS))


def _load_table(pointers: list[int], tied: bool, warps: int) -> str:
    """Statements that store every argument in the table, spread over the warps."""
    used = [(slot, i) for i, slot in enumerate(pointers) if slot >= 0]
    if tied:  # the head is the embedding
        used += [(slot + 3, i) for slot, i in used if slot in (7, 8, 9)]
    share = -(-len(used) // warps)
    cases = []
    for warp in range(warps):
        mine = used[warp * share : (warp + 1) * share]
        stores = " ".join(f"T[{slot}] = (u64)a{i};" for slot, i in mine)
        cases.append(f"case {warp}: {stores} break;")
    return "switch (warp) { " + " ".join(cases) + " }"


def make_plan(c: ModelConfig, params: Params) -> Plan:
    head = params.embed_tokens if params.lm_head is None else params.lm_head
    return Plan(
        config=c,
        dtype=jnp.dtype(params.norm.dtype).name,
        blocks=blocks(c),
        shared_bytes=launch.shared_memory(),
        formats=(weight_format(params.embed_tokens), *layer_formats(params.layers[0]), weight_format(head)),
        tied=params.lm_head is None,
        row_bytes=ROW_BYTES,
        warps=WARPS,
        groups=GROUPS,
        producers=PRODUCERS,
        in_flight=IN_FLIGHT,
    )


def blocks(c: ModelConfig) -> int:
    """One per multiprocessor, but none without work in some stage (the kernel's buffers rely on it)."""
    qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    return min(launch.blocks_at_once(), c.hidden_size // 2, c.intermediate_size // 2, qkv // 2)


def layer_formats(layer: Block) -> tuple[Format, ...]:
    a, m = layer.attention, layer.mlp
    return tuple(weight_format(w) for w in (a.qkv_proj, a.o_proj, m.gate_up_proj, m.down_proj))
