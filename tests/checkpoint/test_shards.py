"""What each of several devices takes of a checkpoint's tensors, against heads and rows counted by hand."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jllama import sharding
from jllama.checkpoint.formats.saved_check import leaf_name
from jllama.checkpoint.formats.saved_parts import read_part, stored_name
from jllama.checkpoint.formats.stored import PLAIN, Encoding, Stored
from jllama.checkpoint.layout import layout, parts
from jllama.checkpoint.leaves.choose import check_cuts, cut_blocks, quantized_bytes
from jllama.checkpoint.shards import device_share, each_leaf, leaf_rows, numbers, shard_layout
from jllama.errors import JllamaError

N, H, D, F, V = 8, 4, 6, 16, 12  # query heads, and the sizes of everything but key heads
CASES = [
    *[(dict(num_key_value_heads=K), t) for K in (1, 2, 4, 8) for t in (2, 4, 8)],
    (dict(num_key_value_heads=4, attention_bias=True, mlp_bias=True), 2),
    (dict(num_key_value_heads=2, attention_bias=True, mlp_bias=True), 4),
    *[(dict(num_key_value_heads=2, qk_norm=kind), t) for kind in ("head", "full") for t in (2, 4)],
    (dict(num_key_value_heads=2, tie_word_embeddings=True), 2),
    (dict(num_key_value_heads=2, tie_word_embeddings=True, vocab_size=13), 2),
    (dict(num_key_value_heads=2, vocab_size=13), 2),
]


def sized(tiny_config, **changes):
    sizes = dict(num_attention_heads=N, head_dim=H, hidden_size=D, intermediate_size=F, vocab_size=V)
    return dataclasses.replace(tiny_config, num_hidden_layers=1, **sizes | changes)


def filled(leaf, tensors):
    """The array that a leaf's parts make, each from its rows and columns."""
    out = np.full(leaf.shape, np.nan)
    for part in leaf.parts:
        rows, columns = slice(*part.rows or (None,)), slice(*part.columns or (None,))
        taken = tensors[part.name][rows]
        taken = taken[:, columns] if taken.ndim > 1 else taken
        assert (part.height, part.width) == (len(taken), math.prod(taken.shape[1:]))
        out[part.place] = taken.reshape(out[part.place].shape)
    assert not np.isnan(out).any()
    return out


def by_name(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path[-1].name: leaf for path, leaf in flat}


def wanted(name, whole, config, t, at):
    """A device's part of a leaf, of the leaf as one device has it (`whole`)."""
    K, each, repeats = config.num_key_value_heads, N // t, max(t // config.num_key_value_heads, 1)
    keys = range(at * K // t, (at + 1) * K // t) if repeats == 1 else [at // repeats]
    queries = [divmod(head, N // K) for head in range(at * each, (at + 1) * each)]
    per_key = each // len(keys)
    if name in ("qkv_proj", "qkv_bias"):
        rows = [
            [whole[k, g] for k, g in queries[place * per_key :][:per_key]] + [whole[key, -2], whole[key, -1]]
            for place, key in enumerate(keys)
        ]
        return np.array(rows)
    if name == "q_norm" and whole.ndim > 1:
        return np.array([whole[k, g] for k, g in queries]).reshape(len(keys), per_key, H)
    if name == "k_norm" and whole.ndim > 1:
        return whole[list(keys)]
    cut = dict(o_proj=1, down_proj=1, gate_up_proj=1, gate_up_bias=1)
    if name == "lm_head" and config.vocab_size % t == 0:
        cut["lm_head"] = 0
    return np.split(whole, t, axis=cut[name])[at] if name in cut else whole


@pytest.mark.parametrize(("changes", "devices"), CASES, ids=str)
def test_each_device_takes_its_heads_and_rows(tiny_config, changes, devices):
    config = sized(tiny_config, **changes)
    tensors = {
        name: np.random.default_rng(at).random(part.shape)
        for at, (name, part) in enumerate(parts(config).items())
    }
    whole = by_name(layout(config))
    for at in range(devices):
        own = by_name(shard_layout(config, devices, at))
        untied = config.tie_word_embeddings and config.vocab_size % devices == 0
        assert own.keys() - whole.keys() == ({"lm_head"} if untied else set())
        for name, leaf in own.items():
            source = whole.get(name, whole["embed_tokens"])
            found, before = filled(leaf, tensors), filled(source, tensors)
            np.testing.assert_array_equal(found, wanted(name, before, config, devices, at), name)
            if not any(part.columns for part in leaf.parts):
                flat = before.reshape(-1, before.shape[-1] if source.is_matrix else 1)
                rows = leaf_rows(source, leaf)
                np.testing.assert_array_equal(flat[rows].reshape(found.shape), found, name)


@pytest.mark.parametrize(("mode", "devices"), [(m, t) for m in ("int8", "int4") for t in (1, 2, 4)])
def test_what_quantised_weights_take_of_each_device(tiny_config, mode, devices):
    """Counted by hand: 4 query heads on 2 key heads, which four devices repeat; the table lies on each."""
    sizes = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32, hidden_size=64)
    config = sized(tiny_config, **sizes, intermediate_size=256, vocab_size=40)
    t, K = devices, max(2, devices)
    matrices = [((4 + 2 * K) * 32 // t, 64), (64, 4 * 32 // t), (2 * 256 // t, 64), (64, 256 // t)]
    tables = [(40, 64), (40 // t, 64)]
    rows = matrices if mode == "int4" else []
    eight = tables if mode == "int4" else tables + matrices
    size = sum(out * (width + 4) for out, width in eight)  # a float32 scale a row
    size += sum(out * width // 32 * (16 + 2 + 2) for out, width in rows)  # float16 scale and offset
    assert quantized_bytes(config, mode, devices) == size + 3 * 64 * 2, "and three norms"


def test_groups_that_share_a_scale_are_not_planned_apart(tiny_config):
    config = sized(tiny_config, head_dim=32, num_key_value_heads=2, hidden_size=64, intermediate_size=96)
    assert quantized_bytes(config, "int8", 2)
    with pytest.raises(JllamaError, match="rows of 48 weights can't be cut into groups of 32: use int8"):
        quantized_bytes(config, "int4", 2)


@pytest.mark.parametrize(
    ("mode", "blocks"),
    [
        ("int4", [("o_proj", 32, (1,)), ("down_proj", 48, (1,))]),
        ("int8", [("o_proj", 32, ()), ("down_proj", 48, ())]),
        ("none", []),
        ("auto", []),  # without a file
    ],
)
def test_what_is_cut_along_its_rows_must_not_part_groups(tiny_config, mode, blocks):
    """Of all layers alike, each once."""
    assert cut_blocks(mode, tiny_config) == [sharding.Blocks(*row) for row in blocks]
    check_cuts(mode, tiny_config, None, None)
    four = sized(tiny_config, num_attention_heads=4, head_dim=32, intermediate_size=192)
    if mode != "int4":
        return check_cuts(mode, four, None, SimpleNamespace(size=4))
    with pytest.raises(JllamaError, match=r"^down_proj: rows of 192 .* one of 1, 2, or --quantize=none$"):
        check_cuts(mode, four, None, SimpleNamespace(size=4))
    check_cuts(mode, four, None, SimpleNamespace(size=2))
    with pytest.raises(JllamaError, match=r"^num_attention_heads=4 .* one of 1, 2$"):
        check_cuts(mode, four, None, SimpleNamespace(size=3))  # which 192 weights in groups of 32 allow
    return None


def test_how_many_numbers_a_process_and_a_device_make(tiny_config):
    config = sized(tiny_config, num_key_value_heads=2)
    whole = sum(math.prod(part.shape) for part in parts(config).values())
    alike = V * D + 3 * D  # the table and the norms lie whole on each
    assert numbers(config, None) == whole
    mesh = SimpleNamespace(size=4, devices=np.array([SimpleNamespace(process_index=p) for p in (0, 0, 1, 1)]))
    keys = 2 * 2 * H * D  # 2 heads of keys and of values, which 4 devices have twice
    each = alike + (whole - alike + keys) // 4
    assert numbers(config, mesh) == 2 * each
    assert device_share(config, 4) == each / whole
    assert device_share(config, 1) == 1


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_makes_the_parts_of_its_own_devices(tiny_config, process, monkeypatch):
    config = sized(tiny_config, num_key_value_heads=4)
    devices = [SimpleNamespace(process_index=p, name=n) for p, n in ((0, "a"), (1, "b"), (0, "c"), (1, "d"))]
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "device_put", lambda made, device: (*made, device.name))
    made = {}
    monkeypatch.setattr(
        sharding, "joined", lambda path, whole, parts, mesh: made.setdefault(path[-1].name, parts)
    )
    mesh = SimpleNamespace(size=4, devices=np.array(devices))
    each_leaf(config, None, mesh, lambda path, leaf, device: (leaf, device.name))
    one, two = (by_name(shard_layout(config, 4, at)) for at in (process, process + 2))
    first, second = ("a", "c") if process == 0 else ("b", "d")
    for name, leaf in one.items():
        copied = two[name] == leaf  # read once
        assert made[name] == [(leaf, first), (leaf, first, second) if copied else (two[name], second)]
    assert made.keys() == one.keys()
    assert {name for name, parts in made.items() if len(parts[1]) == 3} >= {"embed_tokens", "norm"}


class Held:
    """Reads arrays as a `Reader` reads files; counts the calls."""

    def __init__(self, arrays):
        self.arrays, self.calls = arrays, 0
        self.stored = {name: self._stored(name, array) for name, array in arrays.items()}

    def _stored(self, name, array):
        kinds = {
            "float32": PLAIN["F32"],
            "int8": Encoding(name="I8", size=1),
            "uint8": Encoding(name="U8", size=1),
        }
        encoding, place = kinds[array.dtype.name], Path("x")
        return Stored(
            name=name, path=place, offset=0, nbytes=array.nbytes, shape=array.shape, encoding=encoding
        )

    def read_rows(self, stored, row, column, out):
        self.calls += 1
        rows = self.arrays[stored.name].reshape(stored.shape)[row : row + len(out)]
        width = out.shape[1] // rows.dtype.itemsize
        out[...] = np.ascontiguousarray(rows[:, column : column + width]).view(np.uint8)


@pytest.mark.parametrize(("changes", "devices"), CASES, ids=str)
def test_of_a_saved_leaf_each_device_reads_its_part(tiny_config, changes, devices):
    config = sized(tiny_config, **changes)
    leaves = by_name(layout(config))
    draw = np.random.default_rng(1)
    arrays = {name: draw.random(leaf.shape, np.float32) for name, leaf in leaves.items()}
    held = Held(arrays)
    for at in range(devices):
        for name, own in by_name(shard_layout(config, devices, at)).items():
            known = name if name in leaves else "embed_tokens"
            read = read_part(held, held.stored, leaves[known], own, known)
            np.testing.assert_array_equal(read, wanted(name, arrays[known], config, devices, at), name)
    for name, leaf in leaves.items():
        held.calls = 0
        np.testing.assert_array_equal(read_part(held, held.stored, leaf, leaf, name), arrays[name])
        assert held.calls == 1


@pytest.mark.parametrize(
    ("bits", "columns"), [(8, [32, 4]), (8, [32, 1]), (4, [16, 4]), (4, [16, 2]), (4, [16, 1])]
)
@pytest.mark.parametrize("devices", [2, 4])
def test_of_rows_that_are_quantised_each_device_reads_its_columns(tiny_config, bits, columns, devices):
    """Values, and scales of groups; a scale of whole rows serves each, unless two weights share a byte."""
    config = sized(tiny_config, num_key_value_heads=4)
    leaf = by_name(layout(config))["o_proj"]
    draw = np.random.default_rng(2)
    values, scales = (draw.integers(0, 99, (D, n)) for n in columns)
    held = Held(
        {
            "layers.0.p.values": values.astype(np.int8 if bits == 8 else np.uint8),
            "layers.0.p.scales": scales.astype("f4"),
        }
    )
    for at in range(devices):
        own = by_name(shard_layout(config, devices, at))["o_proj"]
        assert own.parts[0].columns == (at * 32 // devices, (at + 1) * 32 // devices)
        for name, array in held.arrays.items():
            n = array.shape[1]
            if n % devices and (n > 1 or bits == 4):
                with pytest.raises(
                    JllamaError, match=f"^{name}: rows of 32 weights in blocks of {32 // n} can't be cut"
                ):
                    read_part(held, held.stored, leaf, own, name)
                continue
            part = array if n == 1 else np.split(array, devices, axis=1)[at]
            np.testing.assert_array_equal(read_part(held, held.stored, leaf, own, name), part)


def test_a_tied_head_is_stored_once(tiny_config):
    config = sized(tiny_config, tie_word_embeddings=True)
    flat, _ = jax.tree_util.tree_flatten_with_path(layout(config))
    leaves = {leaf_name(path): leaf for path, leaf in flat}
    paths, _ = jax.tree_util.tree_flatten_with_path(shard_layout(config, 2, 0))
    named = {leaf_name(path): stored_name(path, leaves) for path, _ in paths}
    assert named.pop("lm_head") == "embed_tokens"
    assert all(name == found for name, found in named.items())
