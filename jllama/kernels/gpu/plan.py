"""What the source of the decode kernel depends on, and its sizes."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.gpu import launch
from jllama.kernels.gpu.family import distinct_kinds, family_defines, layer_extras, table_per_layer
from jllama.kernels.gpu.layout import ROW_BYTES, Activations, Format, Tile, attention_map, block_map, rounded
from jllama.kernels.gpu.peers import places
from jllama.layers import records
from jllama.layers.qtensor import QTensor
from jllama.model import Block, Params

WARPS, GROUPS = 8, 2  # warps that compute; groups of them, each of which takes every second slot of the ring
PRODUCERS = 2  # warps that stream: 1, 2 or 4
IN_FLIGHT = 49152  # bytes on their way to a block, at most: more would hold up the hand-overs
LANE_PRODUCERS = 4  # where lanes copy
# On a bus of more bytes a second a warp's copies hold all up, not weights that words wait behind. There:
FAST, FAST_PRODUCERS, FAST_IN_FLIGHT = 4e12, 4, 65536
ROW_SIZES = range(640, 1345, 64)  # of a weight row per ring slot, where 1 KB leaves much of the slots empty
WORTH = 1.05  # so much better filled
SMALL_LAYER, FAST_LAYER = 64 << 20, 96 << 20  # bytes that take less than the waits
WIDE_GROUP = 1024  # query elements of a key head
SMALL_ROOM = 128 << 10  # bytes of shared memory, of which compute capability 8.6, 8.9 and 12 have fewer
JOINED_TOKENS, JOINED_VALUES, JOINED_PARTS = 640, 8192, 5  # of a text that every block joins itself
RUNS = 128  # bytes of a slot between runs of cached tokens
MOST_TURNS = 2  # of a block, rather than more parts than that
BRIEF_SLOTS = 8  # of one text with 4 bits, rather than one more
LOGITS_SLOT, PEERS_SLOT = 6, 13  # of the pointer table
SPIN_LIMIT = 1 << 27
# From so many texts on, weights of so many bits become 16-bit floats; with fewer, activations integers.
FLOAT_TEXTS = {8: 8, 4: 4}
MAX_FORMATS = 4  # of a weight, which may differ from layer to layer: two bits of a table say which
# The kernel's text, in this order; {} makes the copies.
PARTS = "layout products shares peers ring {} producer consumers attention step"


def weight_format(w: Array | QTensor) -> Format:
    if not isinstance(w, QTensor):
        return Format(8 * jnp.dtype(w.dtype).itemsize, 0, 0)
    if w.layout == "records":
        return Format(w.bits, records.GROUPS[w.bits], 0, offsets=True, record=records.SIZES[w.bits])
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
    embed: Format
    formats: tuple[tuple[Format, ...], ...]  # of qkv, o, gate_up, down and head: each that any layer has
    stored: tuple[tuple[int, ...], ...]  # for each layer, in which of them qkv, o, gate_up and down are
    extras: tuple[str, ...]  # the layers' weights beyond a Llama's
    normed: bool  # there are norms before attention and feed-forward layer
    tied: bool
    row_bytes: int  # of each weight row per ring slot
    warps: int
    groups: int
    producers: int
    team: int  # producers that stream the layers' weights; all stream the head's
    in_flight: int
    head_rows: int  # on this GPU
    gpus: int  # that share a step; the sizes of `config` are one's own
    texts: int  # that are decoded together: 1, 2, 4 or 8
    engine: bool  # the copy engine streams, else the lanes of the warps that would tell it to

    @property
    def chunk(self) -> int:
        """Tokens that a block attends to at a time: 16 KB of keys, or, with room, 64 of few wide heads."""
        c = self.config
        few = c.head_dim * c.num_attention_heads // c.num_key_value_heads <= WIDE_GROUP
        few = few and self.shared_bytes > SMALL_ROOM
        return 64 if c.head_dim > 128 and few else min(128, 8192 // c.head_dim // 32 * 32)

    @property
    def brief(self) -> bool:
        """4-bit weights of one or two texts: their products are so short that all else shows."""
        return self.texts < FLOAT_TEXTS[4] and any(tile.format.bits == 4 for tile in self.every_tile)

    @property
    def joined(self) -> int:
        """Parts of a text whose heads every block joins itself; of more parts one block a head does.

        So it does beside 4-bit weights of one or two texts, where instructions cost more than a hand-over.
        """
        if self.brief:
            return 1
        values = self.texts * self.columns[1]
        return max(1, min(JOINED_TOKENS // self.chunk, JOINED_VALUES // values, JOINED_PARTS))

    @property
    def turn(self) -> int:
        """Slots that a turn's keys and values take: all must have landed before the first is free."""
        fit = (self.slot - RUNS) // (2 * self.config.head_dim) // 16 * 16
        return 2 * -(-self.chunk // min(self.chunk, fit))

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
    def tiles(self) -> tuple[tuple[Tile, ...], ...]:
        """Of q·k·v, o, gate·up, down and head, in each of their formats."""
        pairs = zip(self.formats, self.columns, strict=True)
        return tuple(
            tuple(Tile(f, columns, self.row_bytes, self.groups, self.texts) for f in formats)
            for formats, columns in pairs
        )

    @property
    def every_tile(self) -> list[Tile]:
        return [tile for tiles in self.tiles for tile in tiles]

    @property
    def packed(self) -> bool:
        """Some weight has fewer than 16 bits."""
        return any(tile.format.bits < 16 for tile in self.every_tile)

    @property
    def floats(self) -> bool:
        """Activations are 16-bit floats whatever the weights' bits."""
        bits = {tile.format.bits for tile in self.every_tile} & FLOAT_TEXTS.keys()
        return any(self.texts >= FLOAT_TEXTS[b] for b in bits)

    @property
    def recorded(self) -> bool:
        """Some weight's scales and offsets lie in records."""
        return any(tile.format.record for tile in self.every_tile)

    @property
    def used(self) -> list[tuple[Tile, int]]:
        """Every weight of a token, in the order of use: its tile and how many rows it has."""
        tiles, head = self.tiles[:4], (self.tiles[4][0], self.rows[4])
        layers = [zip(tiles, which, self.rows[:4], strict=True) for which in self.stored]
        return [*((mine[i], rows) for layer in layers for mine, i, rows in layer), head]

    @property
    def rows(self) -> tuple[int, ...]:
        """How many rows q·k·v, o, gate·up, down and head have."""
        c = self.config
        qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
        return qkv, c.hidden_size, 2 * c.intermediate_size, c.hidden_size, self.head_rows

    @property
    def filled(self) -> float:
        """The part of the ring's slots that weights fill, on average over a token."""
        data = sum(rows * tile.row for tile, rows in self.used)
        return data / (self.slot * sum(tile.slots(rows) for tile, rows in self.used))

    @property
    def slot(self) -> int:
        """Bytes of a ring slot: a tile, or at least 32 cached tokens, 16 where heads are wide."""
        tokens = (32 if self.config.head_dim <= 128 else 16) * self.config.head_dim * 2 + RUNS
        return rounded(max(*(tile.size for tile in self.every_tile), tokens), 128)

    @property
    def slots(self) -> int:
        """As many as fit; for each group alike, if one could mistake a barrier's turn for the next.

        One text with 4 bits is faster with 8 than with 9 (measured; why is not known).
        """
        fixed, one = (self.map(slots)[1] for slots in (0, 1))
        fit = min(64, (self.shared_bytes - fixed) // (one - fixed))
        if self.brief and self.texts == 1 and fit == BRIEF_SLOTS + 1:
            return BRIEF_SLOTS
        return fit if fit >= self.groups + self.lag else fit // self.groups * self.groups

    @property
    def lag(self) -> int:
        """Slots that may be on their way at a time."""
        return max(1, self.in_flight // self.slot)

    @property
    def kept(self) -> int:
        """Numbers of the residual stream: whole, or of several texts a block's own rows of o and of down."""
        D = self.config.hidden_size
        whole = self.texts == 1 or "attn_post_norm" in self.extras
        return self.texts * (D if whole else 4 * -(-D // 2 // self.blocks))

    def map(self, slots: int) -> tuple[dict[str, int], int]:
        """Where everything lies in shared memory with so many slots, and the bytes taken."""
        c = self.config
        H, G = c.head_dim, c.num_attention_heads // c.num_key_value_heads
        inner, attention = attention_map(H, G, self.chunk, self.warps)
        tiles = ((tile.format, tile.columns, self.floats) for tile in self.every_tile)
        activations = [Activations(*tile).of(self.texts) for tile in tiles]
        x = max(*activations, attention, (128 * self.warps // H) * (H + 4) * 4)  # the last: the splits joined
        family = (table_per_layer(self.extras), len(distinct_kinds(c)), "attn_post_norm" in self.extras)
        sizes = (slots, self.slot, x, self.kept, H, c.num_hidden_layers, self.warps)
        places, total = block_map(*sizes, *family, self.texts)
        return inner | places, total

    @property
    def threads(self) -> int:
        return 32 * (self.warps + self.producers)

    @property
    def shared(self) -> int:
        """Bytes of shared memory that the kernel asks for."""
        return self.map(self.slots)[1]


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
        V=plan.head_rows,
        VOCABULARY=c.vocab_size,
        L=c.num_hidden_layers,
        EPS=f"{c.rms_norm_eps!r}f" if "." in repr(c.rms_norm_eps) else f"{c.rms_norm_eps:.9e}f",
        NCTA=plan.blocks,
        NSLOT=plan.slots,
        NW=plan.warps,
        NG=plan.groups,
        PW=plan.producers,
        TEAM=plan.team,
        LAG=plan.lag,
        SLOT=plan.slot,
        TC=plan.chunk,
        FP16=int(plan.dtype == "float16"),
        SHARED=plan.shared,
        SPIN_LIMIT=SPIN_LIMIT,
        JOINED=plan.joined,
        TEXTS=plan.texts,
        MOST_TURNS=MOST_TURNS,
        TO_FLOATS=int(plan.floats),
    )
    sizes |= family_defines(c, plan.dtype, plan.extras, plan.normed)
    sizes |= places(plan.gpus)
    sizes["FORMAT_EMBED"] = f"Format<{_stored(plan.embed)}>"
    for name, tiles in zip(("QKV", "O", "GU", "DOWN", "HEAD"), plan.tiles, strict=True):
        sizes[f"FORMATS_{name}"] = ", ".join(_format_type(tile, plan.floats) for tile in tiles)
    sizes["MIXED"] = int(any(len(formats) > 1 for formats in plan.formats))
    sizes["FORMATS_OF_LAYERS"] = _formats_of_layers(plan)
    sizes |= plan.map(plan.slots)[0]
    sizes["KERNEL_PARAMS"] = ", ".join(f"const void* a{i}" for i in range(len(pointers)))
    sizes["LOAD_TABLE"] = _load_table(pointers, plan.tied, plan.warps + plan.producers)
    defines = launch.define(sizes)
    parts = PARTS.format("bulk" if plan.engine else "lanes").split()
    return launch.assemble(defines, "primitives.cu", *(f"decode_kernel/{part}.cu" for part in parts))


def _stored(f: Format) -> str:
    return f"{f.bits}, {f.group}, {f.scale_bytes}, {str(f.offsets).lower()}, {f.record}"


def _format_type(tile: Tile, floats: bool) -> str:
    lies = (tile.units, tile.rows, tile.stride, tile.scale_stride, tile.second)
    x = Activations(tile.format, tile.columns, floats)
    return f"Format<{_stored(tile.format)}, {x.stride}, {x.text}, {', '.join(map(str, lies))}>"


def _formats_of_layers(plan: Plan) -> str:
    """A byte a layer: two bits for each of its weights, q·k·v's the lowest."""
    each = (sum(which << 2 * i for i, which in enumerate(layer)) for layer in plan.stored)
    return "{" + ", ".join(map(str, each)) + "}"


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


def make_plan(c: ModelConfig, params: Params, gpus: int = 1, texts: int = 1) -> Plan:
    """1 KB of each row per ring slot, or, of rows in 16 bits, what fills the slots much better.

    Of packed rows 512 bytes, where a card without copy engine would have room for too few slots.
    """
    plan = _plan(c, params, gpus, texts)
    if plan.packed:
        few = not plan.engine and plan.slots < 2 * plan.groups
        return dataclasses.replace(plan, row_bytes=ROW_BYTES // 2) if few else plan
    others = (dataclasses.replace(plan, row_bytes=size) for size in ROW_SIZES)
    best = max(others, key=lambda other: other.filled)
    plan = best if best.filled > WORTH * plan.filled else plan
    fast = launch.memory_rate() > FAST
    if fast:
        plan = dataclasses.replace(
            plan, producers=FAST_PRODUCERS, team=FAST_PRODUCERS, in_flight=FAST_IN_FLIGHT
        )
    layer = sum(rows * tile.row for tile, rows in plan.used[:4])
    if layer < SMALL_LAYER:
        plan = _for_small_layers(plan)
    return _in_groups(plan) if layer < (FAST_LAYER if fast or not plan.engine else SMALL_LAYER) else plan


def _for_small_layers(plan: Plan) -> Plan:
    """Half of the warps stream: no bursts that words wait behind."""
    qkv = plan.tiles[0][0]
    row, slices = qkv.row, qkv.slices
    split = row // slices < ROW_BYTES < row <= 2 * ROW_BYTES
    row_bytes = 2 * ROW_BYTES if split else plan.row_bytes
    return dataclasses.replace(plan, team=plan.producers // 2, row_bytes=row_bytes)


def _in_groups(plan: Plan) -> Plan:
    """More of them, so that a warp takes more of a slot, where they find as much to do, and as many slots."""
    even = all(tile.slices == 2 or tile.slices > 3 for tile in plan.every_tile)
    more = dataclasses.replace(plan, groups=2 * GROUPS)
    return more if even and (plan.engine or more.slots == plan.slots) else plan


def _plan(c: ModelConfig, params: Params, gpus: int, texts: int) -> Plan:
    head = params.embed_tokens if params.lm_head is None else params.lm_head
    layers = [layer_formats(layer) for layer in params.layers]
    formats = tuple(tuple(dict.fromkeys(column)) for column in zip(*layers, strict=True))
    producers = PRODUCERS if launch.engine() else LANE_PRODUCERS
    return Plan(
        config=c,
        dtype=jnp.dtype(params.norm.dtype).name,
        blocks=blocks(c),
        shared_bytes=launch.shared_memory(),
        embed=weight_format(params.embed_tokens),
        formats=(*formats, (weight_format(head),)),
        stored=tuple(tuple(map(tuple.index, formats, layer)) for layer in layers),
        extras=layer_extras(params.layers[0]),
        normed=params.layers[0].attn_norm is not None,
        tied=params.lm_head is None,
        row_bytes=ROW_BYTES,
        warps=WARPS,
        groups=GROUPS,
        producers=producers,
        team=producers,
        in_flight=IN_FLIGHT,
        head_rows=head.shape[0],
        gpus=gpus,
        texts=texts,
        engine=launch.engine(),
    )


def blocks(c: ModelConfig) -> int:
    """One per multiprocessor, but none without work in some stage (the kernel's buffers rely on it)."""
    qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    return min(launch.blocks_at_once(), c.hidden_size // 2, c.intermediate_size // 2, qkv // 2)


def layer_formats(layer: Block) -> tuple[Format, ...]:
    a, m = layer.attention, layer.mlp
    return tuple(weight_format(w) for w in (a.qkv_proj, a.o_proj, m.gate_up_proj, m.down_proj))
