"""GGUF's block types as quantised leaves: the numbers that the gguf package reads, in any form."""

import dataclasses
import itertools

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

from jllama import sharding
from jllama.checkpoint import automatic_mode, load_params, memory, read_config
from jllama.checkpoint.formats.saved import save
from jllama.checkpoint.leaves.automatic import kept_bytes, kept_outline
from jllama.checkpoint.leaves.block_types import TYPES, common_form
from jllama.checkpoint.leaves.gguf_blocks import fill
from jllama.checkpoint.reading import open_checkpoint
from jllama.errors import JllamaError
from jllama.hub.references import resolve
from jllama.kernels import gpu
from jllama.kernels.gpu import launch
from jllama.kernels.target import Target, of_platform
from jllama.layers.cache import KVCache
from jllama.layers.linear import linear
from jllama.layers.qtensor import QTensor, dequantize, embed_rows, recorded
from tests.support.block_files import (
    numbers_of,
    random_blocks,
    random_weight,
    weight_of,
    write_mixed_gguf,
)
from tests.support.checkpoint_files import KEYS
from tests.support.checkpoint_generator import random_tensors
from tests.support.kernels_cpu import skip_without_kernels

every_type = pytest.mark.parametrize("kind", TYPES)
COLUMNS = 768


def seeded(kind: str) -> np.random.Generator:
    return np.random.default_rng(list(TYPES).index(kind))


@every_type
def test_a_type_holds_what_the_gguf_package_reads(kind):
    for rows in (1, 16, 37):
        raw = random_blocks(seeded(kind), kind, rows, COLUMNS)
        np.testing.assert_array_equal(dequantize(weight_of(raw, kind)), numbers_of(raw, kind))


@every_type
def test_blocks_of_zeros_and_of_ones_alone(kind):
    """Every bit of scales, minima and values, the signs among them."""
    block, size = gguf.GGML_QUANT_SIZES[GgmlType[kind]]
    for byte in (0x00, 0x3B, 0xBB):  # no float16 of these bytes alone is NaN
        raw = np.full((2, COLUMNS // block * size), byte, np.uint8)
        np.testing.assert_array_equal(dequantize(weight_of(raw, kind)), numbers_of(raw, kind))


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(TYPES, 2)])
def test_a_common_form_loses_nothing(one, other):
    form = common_form({TYPES[one].form, TYPES[other].form})
    for kind in (one, other):
        raw = random_blocks(seeded(kind), kind, 5, COLUMNS)
        np.testing.assert_array_equal(dequantize(weight_of(raw, kind, form)), numbers_of(raw, kind))


def test_the_common_forms_of_files_that_people_have():
    def bits(*kinds: str) -> float:
        arrays = common_form({TYPES[kind].form for kind in kinds}).outline(256)
        return sum(length * dtype.itemsize for length, dtype in arrays.values()) / 32

    assert [bits(kind) for kind in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL")] == [
        8.5,
        4.5,
        5,
        8.5,
        9,
        8.5,
    ]
    assert [bits(kind) for kind in ("Q4_K", "Q5_K", "Q6_K")] == [4.625, 8.625, 8.5625]
    assert bits("Q4_K", "Q6_K") == bits("Q5_K", "Q6_K") == bits("Q4_K", "Q5_K", "Q6_K") == 9.125
    assert bits("Q4_K", "Q5_K") == 8.625
    assert bits("Q5_0", "Q8_0") == 8.5
    assert bits("Q5_1", "Q8_0") == 9
    assert bits("Q4_0", "Q4_1") == 6
    assert bits("Q4_K", "Q8_0") == 10


@every_type
def test_xla_multiplies_and_looks_up(kind):
    raw = random_blocks(seeded(kind), kind, 37, COLUMNS)
    w, full = weight_of(raw, kind), numbers_of(raw, kind)
    tokens = np.array([[0, 36, 5, 37, -1]])
    np.testing.assert_array_equal(embed_rows(w, jnp.asarray(tokens), jnp.float32)[0, :3], full[tokens[0, :3]])
    assert np.isnan(embed_rows(w, jnp.asarray(tokens), jnp.float32)[0, 3:]).all()
    for rows in (1, 5):
        x = jnp.asarray(seeded(kind).normal(size=(1, rows, COLUMNS)), jnp.float32)
        exact = np.asarray(x, np.float64) @ full.T.astype(np.float64)
        np.testing.assert_allclose(linear(w, x), exact, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_rows_are_taken_apart_a_few_at_a_time(monkeypatch, rows):
    monkeypatch.setattr("jllama.checkpoint.leaves.gguf_blocks.CHUNK", 3 * 210)
    raw = random_blocks(seeded("Q6_K"), "Q6_K", rows + 2, 256)
    kind, wanted = TYPES["Q6_K"], weight_of(raw[:rows], "Q6_K")
    arrays = {n: np.zeros((rows, size), dtype) for n, (size, dtype) in kind.form.outline(256).items()}
    fill(arrays, raw.reshape(rows + 2, 1, -1), kind, kind.form)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, getattr(wanted, name))


# Files.

WIDE = KEYS | dict(hidden_size=256, intermediate_size=512, num_attention_heads=8, num_key_value_heads=4)
WIDE |= dict(head_dim=32, num_hidden_layers=2)
# As llama.cpp makes Q4_K_M: v and down of some layers, and the tables, in more bits.
MEDIUM = {"layers.0.self_attn.v_proj": "Q6_K", "layers.0.mlp.down": "Q6_K", "proj": "Q4_K", "": "Q6_K"}


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    """A file like Q4_K_M."""
    path = tmp_path_factory.mktemp("gguf") / "medium.gguf"
    return write_mixed_gguf(path, WIDE, random_tensors(WIDE), MEDIUM, seed=0)


def quantised(params) -> list[QTensor]:
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return [leaf for leaf in leaves if isinstance(leaf, QTensor)]


def loaded(path, **options):
    files = resolve(str(path))
    return load_params(files, read_config(files), "float32", **options)


def test_a_mixed_file_is_kept_whole(medium):
    skip_without_kernels()
    full, kept, rows = (
        loaded(medium, **options)
        for options in ({}, {"quantize": "auto"}, {"quantize": "auto", "pack": False})
    )
    assert len(quantised(kept)) == 2 * 4 + 2
    assert {leaf.layout for leaf in quantised(kept)} == {"tiles"}
    for params in (kept, rows):
        wide = jax.tree.map(
            lambda leaf: dequantize(leaf) if isinstance(leaf, QTensor) else leaf,
            params,
            is_leaf=lambda leaf: isinstance(leaf, QTensor),
        )
        jax.tree.map(np.testing.assert_array_equal, wide, full)
    first, second = (layer.attention.qkv_proj for layer in kept.layers)
    assert (first.bits, first.group, second.bits, second.group) == (6, 16, 4, 32)
    assert (kept.layers[0].mlp.down_proj.group, kept.embed_tokens.group) == (16, 16)


def test_rows_whose_pairs_lie_beside_one_another_are_put_apart(tmp_path):
    """The architecture llama: q and k of several types in one leaf, as the expanded file has them."""
    skip_without_kernels()
    kinds = {"q_proj": "Q5_K", "k_proj": "Q4_0", "v_proj": "Q8_0", "": "IQ4_NL"}
    path = write_mixed_gguf(tmp_path / "x.gguf", WIDE, random_tensors(WIDE), kinds, seed=1)
    full, kept = loaded(path), loaded(path, quantize="auto")
    for ours, theirs in zip(kept.layers, full.layers, strict=True):
        np.testing.assert_array_equal(dequantize(ours.attention.qkv_proj), theirs.attention.qkv_proj)


@pytest.mark.parametrize(
    ("name", "kind", "at"), [("down", "Q4_K", 2), ("v_proj", "Q6_K", 208), ("up", "Q8_0", 0)]
)
def test_a_scale_that_is_no_number_is_refused(tmp_path, name, kind, at):
    skip_without_kernels()
    path = tmp_path / "x.gguf"
    write_mixed_gguf(path, WIDE, random_tensors(WIDE), {name: kind, "": "Q4_0"}, seed=1)
    files = resolve(str(path))
    ours = next(stored for stored in open_checkpoint(files).tensors.values() if stored.encoding.name == kind)
    raw = bytearray(path.read_bytes())
    for last in (b"\x00\x7e", b"\x00\xfc"):  # NaN, minus infinity
        start = ours.offset + ours.nbytes - ours.encoding.size + at
        raw[start : start + 2] = last
        path.write_bytes(raw)
        with pytest.raises(JllamaError, match=r"holds numbers that are NaN or infinite; download it again"):
            loaded(path, quantize="auto")


def test_what_a_file_takes_is_known_before_it_is_read(medium, monkeypatch):
    skip_without_kernels()
    files = resolve(str(medium))
    config = read_config(files)
    kept = load_params(files, config, "float32", quantize="auto", pack=False)
    planned = kept_outline(files, config, "float32")
    sizes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)] for params in (planned, kept)]
    assert sizes[0] == sizes[1]
    assert kept_bytes(files, config, "float32") == sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
    needed = kept_bytes(files, config, "float32", "tiles")
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    memory.check_weights(files, config, "float32", "auto")
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 1)
    with pytest.raises(JllamaError, match="weights need"):
        memory.check_weights(files, config, "float32", "auto")


def test_what_each_of_several_devices_takes_of_a_file(tmp_path, medium):
    """Halves of what is cut; blocks of a row are not parted."""
    skip_without_kernels()
    path = write_mixed_gguf(tmp_path / "x.gguf", WIDE, random_tensors(WIDE), {"proj": "Q4_1", "": "Q8_0"}, 0)
    files = resolve(str(path))
    config = read_config(files)
    kept, each = load_params(files, config, "float32", quantize="auto", pack=False), 0.0
    leaves = jax.tree_util.tree_leaves_with_path(kept, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    for at, leaf in leaves:
        parts = 1 if sharding.cut_axis(at, leaf, 2) is None else 2
        each += sum(array.nbytes for array in jax.tree.leaves(leaf)) / parts
    assert kept_bytes(files, config, "float32", devices=2) == each
    assert memory.weight_bytes(files, config, "float32", "auto", 2) == each
    assert kept_bytes(files, config, "float32", devices=4) < each
    with pytest.raises(JllamaError, match=r"can't be cut into 3 equal parts: use .* one of 1, 2, 4, 8$"):
        kept_bytes(files, config, "float32", devices=3)
    with pytest.raises(JllamaError, match=r"^o_proj: rows of 256 weights in blocks of 256 .* one of 1, or"):
        kept_bytes(resolve(str(medium)), config, "float32", devices=2)


FILES = [
    MEDIUM,
    *({"": kind} for kind in TYPES),
    {"k_proj": "IQ4_NL", "": "Q5_0"},
    {"k_proj": "Q8_0", "": "Q6_K"},
]


@pytest.mark.parametrize("kinds", FILES, ids=lambda kinds: "_".join(kinds.values()))
def test_what_a_file_takes_in_tiles_is_known_before_it_is_read(tmp_path, monkeypatch, kinds):
    """Numbers of 5 and 6 bits take 6, levels 4; all rows are multiples of 16."""
    skip_without_kernels()
    path = write_mixed_gguf(tmp_path / "x.gguf", WIDE, random_tensors(WIDE), kinds, seed=0)
    files, kept = resolve(str(path)), loaded(path, quantize="auto")
    config = read_config(files)
    planned = kept_outline(files, config, "float32", layout="tiles")
    told = [[(w.shape, w.bits, w.levels) for w in quantised(params)] for params in (planned, kept)]
    assert told[0] == told[1]
    needed = sum(array.nbytes for array in jax.tree.leaves(kept))
    assert kept_bytes(files, config, "float32", "tiles") == needed
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    memory.check_weights(files, config, "float32", "auto")


def test_without_kernels_blocks_are_to_be_expanded(medium, monkeypatch):
    files = resolve(str(medium))
    config = read_config(files)
    monkeypatch.setattr("jllama.kernels.cpu.build.load", lambda *_: None)
    assert automatic_mode(files, config, "bfloat16", of_platform("cpu")) == "auto"
    monkeypatch.setenv("JLLAMA_KERNELS", "0")
    assert automatic_mode(files, config, "bfloat16", of_platform("cpu")) == "none"
    assert automatic_mode(files, config, "bfloat16", of_platform("gpu")) == "none"
    assert {leaf.layout for leaf in quantised(loaded(medium, quantize="auto"))} == {"rows"}


def test_a_gpu_keeps_a_mixed_file_in_records(medium, monkeypatch):
    monkeypatch.delenv("JLLAMA_KERNELS", raising=False)
    monkeypatch.setattr(launch, "refusal", lambda: None)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 4)
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)
    files = resolve(str(medium))
    config, full = read_config(files), loaded(medium)
    assert automatic_mode(files, config, "bfloat16", Target("gpu")) == "auto"
    monkeypatch.setattr("jllama.checkpoint.leaves.choose.of_platform", lambda platform: Target("gpu"))
    kept = load_params(files, config, "bfloat16", quantize="auto")
    token, two = jnp.zeros((1, 1), jnp.int32), jnp.zeros((2, 1), jnp.int32)
    for tokens, refusal in ((token, gpu.decode_refusal), (two, gpu.batch_refusal)):
        cache = KVCache.empty(config, batch=len(tokens), max_len=32, dtype="bfloat16")
        assert refusal(config, kept, cache, tokens) is None
    assert {leaf.layout for leaf in quantised(kept)} == {"records"}
    assert [layer.mlp.down_proj.bits for layer in kept.layers] == [8, 4]
    for ours, theirs in zip(kept.layers, full.layers, strict=True):
        np.testing.assert_array_equal(dequantize(ours.attention.qkv_proj), theirs.attention.qkv_proj)
        np.testing.assert_array_equal(dequantize(ours.mlp.down_proj), theirs.mlp.down_proj)
    np.testing.assert_array_equal(dequantize(kept.lm_head), full.lm_head)


@pytest.mark.parametrize("kinds", ["Q4_K", "Q5_K", "Q6_K", "Q4_K Q5_K", "Q4_K Q6_K", "Q6_K Q5_K Q4_K"])
def test_records_hold_what_their_blocks_hold(kinds):
    for seed, rows in enumerate((3, 16, 37)):
        w = random_weight(seed, kinds.split(), (rows, COLUMNS))
        packed = recorded(w)
        assert (packed.layout, packed.group) == ("records", 32 if kinds == "Q4_K" else 16)
        assert packed.scales.nbytes == rows * COLUMNS // 256 * (16 if kinds == "Q4_K" else 32)
        np.testing.assert_array_equal(dequantize(packed), dequantize(w))
        tokens = jnp.array([[0, rows - 1, rows]])
        ours, theirs = (embed_rows(table, tokens, jnp.float32) for table in (packed, w))
        np.testing.assert_array_equal(ours, theirs)


def test_what_has_no_place_in_records_is_left():
    one_level, w = random_weight(0, ["Q5_1"], (2, 256)), random_weight(0, ["Q4_K", "Q6_K"], (2, 256))
    assert recorded(one_level) is one_level
    torn = dataclasses.replace(w, offsets=w.offsets.at[0, 3].set(w.offsets[0, 2] + 1))  # within 32 weights
    assert recorded(torn) is torn
    four = random_weight(0, ["Q4_K"], (2, 256))
    for large in (dict(scales=four.scales.at[1, 7].set(64)), dict(offsets=four.offsets.at[0, 0].set(-1))):
        changed = dataclasses.replace(four, **large)
        assert recorded(changed) is changed
    wide = dataclasses.replace(four, scales=four.scales[:, ::2], offsets=four.offsets[:, ::2])
    assert recorded(wide) is wide


def test_a_saved_model_keeps_its_blocks(medium, tmp_path):
    skip_without_kernels()
    files = resolve(str(medium))
    config = read_config(files)
    params = load_params(files, config, "float32", quantize="auto", pack=False)
    save(files, config, params, tmp_path / "small", "auto")
    again = loaded(tmp_path / "small", pack=False)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
