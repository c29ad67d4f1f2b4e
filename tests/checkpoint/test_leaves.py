"""Leaves, blocks and files of a checkpoint, each by itself: borders, bits and places."""

import contextlib
import dataclasses
import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace

import jax
import ml_dtypes
import numpy as np
import pytest

from jllama.checkpoint import reading, shards
from jllama.checkpoint.formats import gguf
from jllama.checkpoint.formats.saved import WEIGHTS, _quantized, is_saved, saved_config
from jllama.checkpoint.formats.stored import PLAIN, Checkpoint, Encoding, Reader, Stored
from jllama.checkpoint.layout import Leaf, Part, layout
from jllama.checkpoint.leaves import automatic, choose, dense
from jllama.checkpoint.leaves.block_types import TYPES, Form
from jllama.checkpoint.leaves.choose import converter_for, placed, scheme_for
from jllama.checkpoint.leaves.dense import DenseConverter, aligned_empty, all_finite
from jllama.checkpoint.leaves.gguf_blocks import form_of, outline
from jllama.config import LayerKind, ModelConfig
from jllama.errors import JllamaError
from jllama.files.model_files import ModelFiles
from jllama.kernels.target import Target
from jllama.layers.qtensor import QTensor
from jllama.layers.rope import Rope
from tests.support.block_files import random_blocks, weight_of

FLOATS = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_is_finite_is_told_by_its_bits(dtype):
    largest = ml_dtypes.finfo(dtype).max
    for value in (0.0, -0.0, 1.5, -2.5, largest, -largest, ml_dtypes.finfo(dtype).smallest_subnormal):
        assert all_finite(np.array([1.0, value, 2.0], dtype))
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        assert not all_finite(np.array([1.0, value, 2.0], dtype))
    assert all_finite(np.zeros((0,), dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_an_array_begins_where_a_device_takes_it(dtype):
    for count in (1, 3, 100):
        made = aligned_empty((count, 5), dtype)
        assert (made.ctypes.data % 64, made.shape, made.dtype) == (0, (count, 5), dtype)
    assert aligned_empty((), dtype).shape == ()


class Numbers(Reader):
    """A reader of one tensor per name, kept in memory; notes what it is asked for."""

    def __init__(self, **tensors):
        self.data, self.asked = (
            {name: np.ascontiguousarray(t).view(np.uint8).ravel() for name, t in tensors.items()},
            [],
        )

    def read(self, stored, start, out):
        self.asked.append((stored.name, start, out.nbytes))
        out.reshape(-1)[:] = self.data[stored.name][start : start + out.nbytes]


def checkpoint(interleaved=False, **tensors):
    kinds = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
    return Checkpoint(
        description="it",
        spell=str,
        rotary_interleaved=interleaved,
        tensors={
            name: Stored(
                name=name, path="f", offset=0, nbytes=t.nbytes, shape=t.shape, encoding=PLAIN[kinds[t.dtype]]
            )
            for name, t in tensors.items()
        },
    )


def converted(leaf, dtype=np.float32, interleaved=False, **tensors):
    steps = []
    bar = SimpleNamespace(advance=steps.append)
    with contextlib.closing(
        DenseConverter(checkpoint(interleaved, **tensors), Numbers(**tensors), np.dtype(dtype), bar)
    ) as convert:
        made = np.asarray(convert(leaf))
    assert sum(steps) == made.nbytes
    return made


def test_tensors_become_a_leaf_part_by_part(monkeypatch):
    """Two heads of keys and values, each with two heads of queries, four wide."""
    q, k, v = (
        np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) + 100 * n for n, rows in enumerate((16, 8, 8))
    )
    every = slice(None)
    leaf = Leaf(
        shape=(2, 4, 4, 3),
        parts=(
            Part(name="q", shape=(16, 3), place=(every, slice(0, 2)), rotary=True),
            Part(name="k", shape=(8, 3), place=(every, 2), rotary=True),
            Part(name="v", shape=(8, 3), place=(every, 3)),
        ),
    )
    plain = converted(leaf, q=q, k=k, v=v)
    np.testing.assert_array_equal(plain[:, :2].reshape(16, 3), q)
    np.testing.assert_array_equal(plain[:, 2].reshape(8, 3), k)
    np.testing.assert_array_equal(plain[:, 3].reshape(8, 3), v)
    turned = converted(leaf, interleaved=True, q=q, k=k, v=v)
    np.testing.assert_array_equal(turned[:, :, [0, 2, 1, 3]][:, :3], plain[:, :3])
    np.testing.assert_array_equal(turned[:, 3], plain[:, 3])
    for chunk in (1, 4, 6, 7):
        monkeypatch.setattr(dense, "CHUNK", chunk)
        np.testing.assert_array_equal(converted(leaf, np.float16, q=q, k=k, v=v), plain.astype(np.float16))


def test_what_the_device_may_use_as_it_is_nobody_changes(monkeypatch):
    taken = []
    monkeypatch.setattr(
        dense.jax, "device_put", lambda host, _: taken.append(host.flags.writeable) or jax.numpy.array(host)
    )
    leaf = Leaf(shape=(2,), parts=(Part(name="t", shape=(2,)),))
    converted(leaf, t=np.ones(2, np.float32))
    assert taken == [False]


def test_a_leaf_is_handed_over_when_the_one_before_is_there(monkeypatch):
    """So that few lie on the host, and the next one is read meanwhile."""
    told = []

    def device_put(host, _):
        name = float(host.sum())
        told.append(("put", name))
        return SimpleNamespace(block_until_ready=lambda: told.append(("wait", name)))

    monkeypatch.setattr(dense.jax, "device_put", device_put)
    tensors = {name: np.full(2, at, np.float32) for at, name in enumerate("abc")}
    bar = SimpleNamespace(advance=lambda count: told.append(("read", count)))
    reader = Numbers(**tensors)
    with contextlib.closing(DenseConverter(checkpoint(**tensors), reader, np.dtype("f4"), bar)) as convert:
        for name in tensors:
            convert(Leaf(shape=(2,), parts=(Part(name=name, shape=(2,)),)))
    read = ("read", 8)
    first, second = [read, ("put", 0.0)], [read, ("wait", 0.0), ("put", 2.0)]
    assert told == [*first, *second, read, ("wait", 2.0), ("put", 4.0)]


def test_numbers_are_read_as_they_are_where_they_need_no_change(monkeypatch):
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    reader, bar = Numbers(t=table), SimpleNamespace(advance=lambda count: None)
    monkeypatch.setattr(dense, "CHUNK", 6)
    leaf = Leaf(shape=(4, 3), parts=(Part(name="t", shape=(4, 3)),))
    with contextlib.closing(
        DenseConverter(checkpoint(t=table), reader, np.dtype(np.float32), bar)
    ) as convert:
        np.testing.assert_array_equal(convert(leaf), table)
    assert sorted(reader.asked) == [("t", 0, 24), ("t", 24, 24)]


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (np.nan, np.float32, "holds numbers that are NaN or infinite; download it again"),
        (-np.inf, np.float16, "holds numbers that are NaN or infinite"),
        (1e30, np.float16, "holds numbers too large for float16; use bfloat16"),
        (3.4e38, ml_dtypes.bfloat16, "holds numbers too large for bfloat16; use float32"),
    ],
)
def test_a_number_that_does_not_fit_is_told(value, dtype, words):
    leaf = Leaf(shape=(2,), parts=(Part(name="t", shape=(2,)),))
    with pytest.raises(JllamaError, match=words):
        converted(leaf, dtype, t=np.array([1.0, value], np.float32))


# GGUF's blocks.


def test_a_leaf_keeps_what_is_stored_in_blocks_alone():
    def stored(kind):
        return SimpleNamespace(encoding=Encoding(name=kind))

    types = {"a": "Q8_0", "b": "Q5_0", "c": "Q4_0", "d": "Q6_K", "e": "F16", "f": "Q2_K", "g": "Q4_K"}
    held = SimpleNamespace(tensors={name: stored(kind) for name, kind in types.items()})
    eight, four = TYPES["Q8_0"].form, TYPES["Q4_0"].form
    for names, form in (
        ("a", eight),
        ("aa", eight),
        ("c", four),
        ("ab", eight),
        ("b", eight),
        ("ac", Form(8, 32, offsets=False, scales="float16")),
        ("d", TYPES["Q6_K"].form),
        ("dg", Form(8, 16, offsets=True, scales="int8")),
        ("ga", Form(8, 32, offsets=True, scales="float32")),
        ("e", None),
        ("ce", None),
        ("f", None),
        ("df", None),
    ):
        leaf = Leaf(shape=(2, 2), parts=tuple(Part(name=name, shape=(1,)) for name in names))
        assert form_of(leaf, held) == form
    vector = Leaf(shape=(2,), parts=(Part(name="a", shape=(2,)),))
    assert form_of(vector, held) is None


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("layout_", ["rows", "tiles", "records"])
def test_a_leaf_without_its_numbers_has_its_format_and_where_it_has_one_the_layout(kind, layout_):
    """Records hold weights of two levels alone."""
    form, parts = TYPES[kind].form, (Part(name="t", shape=(6, 512)),)
    made = outline(Leaf(shape=(2, 3, 512), parts=parts), form, layout_)
    two_levels = form.scales == "int8"
    assert made.layout == ("rows" if layout_ == "records" and not two_levels else layout_)
    assert (made.shape, made.bits) == ((2, 3, 512), form.bits)
    assert made.values.shape == (6, 512 * form.bits // 8)
    assert (made.scales.shape, made.scales.dtype.name) == ((6, 512 // form.group), form.scales)
    assert (made.offsets is not None) == form.offsets
    assert (made.scale_units is not None) == two_levels
    assert (made.offset_units is not None) == (two_levels and form.offsets)
    assert made.scale_units is None or made.scale_units.shape == (6, 2)


SMALL = ModelConfig(
    vocab_size=10,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    attention_bias=True,
)


def test_what_each_mode_makes_of_each_leaf():
    tree = layout(SMALL)
    block = tree.layers[0]
    for leaf in (tree.norm, block.attn_norm, block.attention.qkv_bias, block.attention.o_bias):
        assert scheme_for(leaf, "int8") is scheme_for(leaf, "int4") is None
    for leaf in (tree.embed_tokens, tree.lm_head):
        assert (scheme_for(leaf, "int4").bits, scheme_for(leaf, "int4").group) == (8, None)
    for leaf in (block.attention.qkv_proj, block.mlp.down_proj):
        assert (scheme_for(leaf, "int4").bits, scheme_for(leaf, "int4").group) == (4, 32)
        assert (scheme_for(leaf, "int8").bits, scheme_for(leaf, "int8").group) == (8, None)


@pytest.mark.parametrize(
    ("mode", "kinds"), [("none", (False, False)), ("int8", (True, False)), ("auto", (False, False))]
)
def test_a_mode_s_converter(mode, kinds):
    table, norm = np.ones((3, 32), np.float32), np.ones(32, np.float32)
    steps, placed_ = [], []
    bar = SimpleNamespace(advance=steps.append)

    def place(leaf, where):
        placed_.append(where)
        return leaf

    convert, ends = converter_for(
        mode, checkpoint(t=table, n=norm), Numbers(t=table, n=norm), np.dtype(np.float16), bar, place
    )
    leaves = [
        Leaf(shape=t.shape, parts=(Part(name=name, shape=t.shape),))
        for name, t in (("t", table), ("n", norm))
    ]
    made = [convert(leaf, None) for leaf in leaves]
    assert tuple(isinstance(leaf, QTensor) for leaf in made) == kinds
    assert placed_ == [None] * sum(kinds)
    np.testing.assert_array_equal(made[1], norm)
    assert sum(steps) == 2 * (table.size + norm.size)  # whatever a leaf becomes: bytes of the run dtype
    assert len(ends) == (2 if mode == "int8" else 1)
    for end in ends:
        end.close()


def test_blocks_that_are_kept_count_in_the_bar_too(monkeypatch):
    table, steps = np.ones((3, 32), np.float32), []
    monkeypatch.setattr(choose, "form_of", lambda leaf, checkpoint: "a form")
    monkeypatch.setattr(choose, "QuantizedConverter", lambda *given: lambda leaf, form: form)
    given = (checkpoint(t=table), Numbers(t=table), np.dtype("f2"), SimpleNamespace(advance=steps.append))
    convert, (end,) = converter_for("auto", *given, lambda leaf, where: leaf)
    assert convert(Leaf(shape=(3, 32), parts=(Part(name="t", shape=(3, 32)),)), None) == "a form"
    assert steps == [2 * 3 * 32]
    end.close()


@pytest.mark.parametrize(("first", "last"), [(0, 32), (32, 64)])
def test_a_device_s_columns_of_8_bits_have_the_scales_of_whole_rows(first, last):
    table = np.arange(192, dtype=np.float32).reshape(3, 64) - 70
    bar = SimpleNamespace(advance=lambda count: None)
    convert, ends = converter_for(
        "int8", checkpoint(t=table), Numbers(t=table), np.dtype("f4"), bar, lambda leaf, where: leaf
    )
    part = Part(name="t", shape=(3, 64), columns=(first, last))
    own = convert(Leaf(shape=(3, 32), parts=(part,)), None)
    whole = convert(Leaf(shape=(3, 64), parts=(dataclasses.replace(part, columns=None),)), None)
    assert own.shape == (3, 32)
    np.testing.assert_array_equal(own.scales, whole.scales)
    np.testing.assert_array_equal(own.values, np.asarray(whole.values)[:, first:last])
    for end in ends:
        end.close()


@pytest.mark.parametrize(
    ("name", "less"), [("norm.weight", 1), ("q_norm.weight", 1), ("o_proj.bias", 0), ("t", 0)]
)
def test_a_shift_is_the_norms_alone(name, less):
    held, steps = np.array([1.5, 2.0], np.float32), []
    shifted = dataclasses.replace(checkpoint(**{name: held}), norm_shift=1.0)
    bar, reader = SimpleNamespace(advance=steps.append), Numbers(**{name: held})
    with contextlib.closing(DenseConverter(shifted, reader, np.dtype("f4"), bar)) as convert:
        made = np.asarray(convert(Leaf(shape=(2,), parts=(Part(name=name, shape=(2,)),))))
    np.testing.assert_array_equal(made, held - less)
    assert held.tolist() == [1.5, 2.0]


def test_a_quantised_leaf_lies_as_the_kernels_there_read(monkeypatch):
    leaf = weight_of(random_blocks(np.random.default_rng(0), "Q8_0", 4, 64), "Q8_0")
    monkeypatch.setattr("jllama.kernels.cpu.refusal", lambda **_: None)
    monkeypatch.delenv("JLLAMA_KERNELS", raising=False)
    assert placed(leaf).layout == "tiles"
    assert placed(leaf, pack=False).layout == "rows"
    bound = placed(leaf, jax.devices()[0])
    assert (bound.layout, bound.values.committed, placed(leaf).values.committed) == ("tiles", True, False)
    assert placed(leaf, alone=False).layout == "rows"
    monkeypatch.setattr("jllama.kernels.cpu.refusal", lambda **_: "no compiler")
    assert placed(leaf).layout == "rows"
    monkeypatch.setattr("jllama.kernels.cpu.refusal", lambda **_: None)
    monkeypatch.setenv("JLLAMA_KERNELS", "0")
    assert placed(leaf).layout == "rows"
    two_levels = weight_of(random_blocks(np.random.default_rng(0), "Q4_K", 4, 256), "Q4_K")
    targets = {Target("gpu"): "records", Target("gpu", False): "rows", Target("tpu"): "rows"}
    for target, layout_ in targets.items():
        monkeypatch.setattr("jllama.checkpoint.leaves.choose.of_platform", lambda platform, t=target: t)
        assert placed(two_levels).layout == placed(two_levels, alone=False).layout == layout_
        assert placed(leaf).layout == placed(two_levels, pack=False).layout == "rows"


# Ends of a tie.


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
@pytest.mark.parametrize("at", [0, 7, 15])  # bytes
def test_a_tie_is_compared_from_its_beginning_to_its_end(monkeypatch, chunk, at):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    tied = dataclasses.replace(SMALL, tie_word_embeddings=True)
    one = np.arange(4, dtype=np.float32)
    other = one.copy()
    other.view(np.uint8)[at] ^= 1

    def check(config, embed, head):
        names = {"embed_tokens.weight": embed, "lm_head.weight": head}
        names = {name: t for name, t in names.items() if t is not None}
        reading._check_tied(checkpoint(**names), config, Numbers(**names))

    check(tied, one, one.copy())
    check(tied, one, None)
    check(SMALL, one, other)
    for head in (other, one[:3], one.astype(np.float16)):
        with pytest.raises(
            JllamaError, match=r"it: tie_word_embeddings is true, but lm_head.weight differs from embed"
        ):
            check(tied, one, head)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "the weights need 3 MiB in float16"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: x"), "the weights need 3 MiB"),
    ],
)
def test_weights_for_which_there_is_no_memory(error, words):
    with (
        pytest.raises(JllamaError, match=f"out of memory: {words}"),
        reading._memory_errors(3 << 20, np.dtype(np.float16)),
    ):
        raise error
    with pytest.raises(jax.errors.JaxRuntimeError), reading._memory_errors(1, np.dtype(np.float16)):
        raise jax.errors.JaxRuntimeError("INTERNAL: x")


# GGUF files.


def text(value):
    return struct.pack("<Q", len(value)) + value


def write_gguf(path, *tensors, data=b"", **fields):
    """A file with whole numbers as metadata and float32 tensors `(name, numbers, offset)`."""
    head = b"".join(
        text(key.replace("__", ".").encode()) + struct.pack("<II", 4, value) for key, value in fields.items()
    )
    listed = b"".join(
        text(name) + struct.pack("<IQIQ", 1, count, kind, at) for name, count, kind, at in tensors
    )
    whole = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + head + listed
    alignment = fields.get("general__alignment", 32)
    path.write_bytes(whole + bytes(-len(whole) % max(alignment, 1)) + data)
    return path


@pytest.mark.parametrize("alignment", [1, 8, 32])
def test_a_header_may_end_anywhere(tmp_path, alignment):
    """Also where the tensors may begin at once."""
    ends = set()
    for length in range(1, 34):
        name = b"t" * length
        path = write_gguf(tmp_path / "a.gguf", (name, 2, 0, 0), data=bytes(8), general__alignment=alignment)
        (stored,) = gguf.read_gguf_header(path).tensors
        assert (stored.name, stored.offset) == (name.decode(), path.stat().st_size - 8)
        ends.add((path.stat().st_size - 8) % 32)
        path.unlink()
    assert len(ends) == 32 // alignment


def test_tensors_lie_behind_the_header_where_it_is_aligned(tmp_path):
    for alignment in (8, 32, 64):
        path = write_gguf(
            tmp_path / "a.gguf",
            (b"t", 3, 0, 0),
            (b"u", 2, 0, -(-12 // alignment) * alignment),
            data=bytes(alignment * 2 + 16),
            general__alignment=alignment,
        )
        header = gguf.read_gguf_header(path)
        start = header.tensors[0].offset
        assert start % alignment == 0
        assert 0 <= start - path.read_bytes().rindex(b"u") < alignment + 32
        assert header.tensors[1].offset - start == -(-12 // alignment) * alignment
        assert [stored.nbytes for stored in header.tensors] == [12, 8]
        os.utime(path, (0, alignment))


@pytest.mark.parametrize(
    ("tensors", "data", "fields", "words"),
    [
        ([(b"t", 3, 0, 0)], 11, {}, "is truncated: t lies beyond its end"),
        ([(b"t", 3, 0, 32)], 64, {}, "t lies behind a gap"),
        ([(b"t", 9, 0, 0), (b"u", 1, 0, 32)], 64, {}, "u overlaps the tensor before it"),
        ([(b"t", 8, 0, 0), (b"u", 1, 0, 32)], 36, {}, None),
        ([(b"t", 8, 99, 0), (b"u", 1, 0, 320)], 400, {}, None),
        ([(b"t", 8, 0, 0), (b"u", 0, 0, 0)], 32, {}, None),
        ([], 0, {"general__alignment": 0}, "general.alignment=0 makes no sense"),
        ([], 0, {"general__alignment": 24}, "general.alignment=24 makes no sense"),
        ([], 0, {"general__alignment": 1}, None),
        ([], 0, {"split__count": 0}, None),
        ([], 0, {"split__count": 1}, None),
        ([], 0, {"split__count": 2}, "is a part of a split GGUF, but its name is not"),
    ],
)
def test_a_gguf_from_both_sides_of_each_rule(tmp_path, tensors, data, fields, words):
    path = write_gguf(tmp_path / "a.gguf", *tensors, data=bytes(data), **fields)
    if words is None:
        assert len(gguf.read_gguf_header(path).tensors) == len(tensors)
    else:
        with pytest.raises(JllamaError, match=words):
            gguf.read_gguf_header(path)


@pytest.mark.parametrize("size", [0, 4, 8, 23, 24])
def test_a_gguf_has_24_bytes_at_least(tmp_path, size):
    whole = write_gguf(tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(whole[:size])
    if size == 24:
        assert gguf.read_gguf_header(tmp_path / "a.gguf").fields == {}
        return
    with pytest.raises(JllamaError, match=r"a.gguf is too short for a GGUF file; download it again"):
        gguf.read_gguf_header(tmp_path / "a.gguf")


def split(tmp_path, names=b"tu", **changes):
    for number in (0, 1):
        fields = {"split__no": number, "split__count": 2, "split__tensors__count": 2} | (
            changes if number else {}
        )
        write_gguf(
            tmp_path / f"m-0000{number + 1}-of-00002.gguf",
            (names[number : number + 1], 2, 0, 0),
            data=bytes(8),
            **fields,
        )
    return tmp_path / "m-00002-of-00002.gguf"


def test_parts_that_belong_together(tmp_path):
    header = gguf.read_gguf_header(split(tmp_path))
    assert [stored.name for stored in header.tensors] == ["t", "u"]
    assert header.fields["split.no"] == 0


@pytest.mark.parametrize("changes", [{"split__no": 0}, {"split__count": 3}, {"split__tensors__count": 3}])
def test_a_part_of_another_model_is_told(tmp_path, changes):
    ((key, value),) = changes.items()
    with pytest.raises(
        JllamaError,
        match=f"00002-of-00002.gguf does not belong .* its {key.replace('__', '.')} is {value}, not",
    ):
        gguf.read_gguf_header(split(tmp_path, **changes))


def test_a_tensor_that_two_parts_have_is_told(tmp_path):
    with pytest.raises(JllamaError, match=r"00001-of-00002.gguf does not belong .* some tensor is in two of"):
        gguf.read_gguf_header(split(tmp_path, b"tt"))


def test_metadata_are_copied_without_tensors(tmp_path):
    source = write_gguf(tmp_path / "a.gguf", (b"t", 3, 0, 0), data=bytes(12), one=1, two=2)
    gguf.copy_gguf_fields(source, tmp_path / "b.gguf")
    header = gguf.read_gguf_header(tmp_path / "b.gguf")
    assert (header.fields, header.tensors) == ({"one": 1, "two": 2}, ())
    assert gguf.read_gguf_fields(str(tmp_path / "b.gguf")) == {"one": 1, "two": 2}


def test_a_header_is_read_again_where_the_file_changed(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", one=1)
    assert gguf.read_gguf_fields(path) == {"one": 1}
    gguf.read_gguf_fields(path)["one"] = 5
    assert gguf.read_gguf_fields(path) == {"one": 1}
    write_gguf(path, one=2)
    os.utime(path, (1, 1))
    assert gguf.read_gguf_fields(path) == {"one": 2}


def test_a_vector_in_a_gguf(tmp_path):
    (tmp_path / "f").write_bytes(bytes(4) + np.array([1.5, -2.0], np.float32).tobytes())
    stored = Stored(name="t", path=tmp_path / "f", offset=4, nbytes=8, shape=(2,), encoding=PLAIN["F32"])
    assert reading._vector(stored) == (1.5, -2.0)
    for wrong in (dict(encoding=Encoding(name="Q", size=2)), dict(nbytes=reading.CHUNK + 1)):
        with pytest.raises(JllamaError, match="f: t makes no sense; download it again"):
            reading._vector(dataclasses.replace(stored, **wrong))
    longest = np.arange(reading.CHUNK // 4, dtype=np.float32)
    (tmp_path / "f").write_bytes(longest.tobytes())
    whole = dataclasses.replace(stored, offset=0, nbytes=longest.nbytes)
    assert reading._vector(whole) == tuple(longest.tolist())


# Quantised directories.

SAVED = {
    "quantization_config": {"quant_method": "jllama"},
    "jllama": json.loads(json.dumps(dataclasses.asdict(SMALL))),
}


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (SAVED, SMALL),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"quant_method": "awq"}}, None),
        ({"quantization_config": "jllama"}, None),
        ({}, None),
    ],
)
def test_a_directory_of_ours_says_so(tmp_path, keys, found):
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert saved_config(tmp_path) == found
    assert is_saved(ModelFiles(description="x", directory=tmp_path)) == (found is not None)
    assert not is_saved(ModelFiles(description="x", gguf=tmp_path / WEIGHTS))


def test_settings_of_layers_come_back_as_they_were(tmp_path):
    factors = (1.0, 2.0)
    kinds = (
        LayerKind(window=4),
        LayerKind(rope=None),
        LayerKind(rope=Rope(rope_theta=5.0, frequency_factors=factors)),
    )
    config = dataclasses.replace(SMALL, rope=Rope(frequency_factors=factors), layer_kinds=kinds)
    keys = SAVED | {"jllama": json.loads(json.dumps(dataclasses.asdict(config)))}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert saved_config(tmp_path) == config


@pytest.mark.parametrize(
    "damage",
    [
        {"rope": 5},
        {"num_key_value_heads": 0},
        {"hidden_size": "x"},
        {"more": 1},
        {"head_dim": 3},
        {"layer_kinds": [{}]},
    ],
)
def test_a_directory_of_ours_that_is_damaged_is_told(tmp_path, damage):
    (tmp_path / "config.json").write_text(json.dumps(SAVED | {"jllama": SAVED["jllama"] | damage}))
    with pytest.raises(JllamaError, match=r"config.json is damaged .*: quantise the model again"):
        saved_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({key: SAVED[key] for key in ("quantization_config",)}))
    with pytest.raises(JllamaError, match=r"config.json is damaged"):
        saved_config(tmp_path)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("damaged", [None, "scales", "offsets", "scale_units", "offset_units"])
@pytest.mark.parametrize("last", [np.int8, np.uint8])
def test_no_scale_offset_or_unit_of_ours_is_odd(damaged, odd, last):
    kinds = ("values", "scales", "offsets", "scale_units", "offset_units")
    arrays = {kind: np.ones((2, 3), np.float16) for kind in kinds} | {"values": np.ones((2, 32), last)}
    if damaged:
        arrays[damaged][1, 2] = odd
    wanted = Leaf(shape=(2, 32), parts=(Part(name="t", shape=(2, 32)),))

    def made(kinds):
        return _quantized(lambda name: arrays[name.removeprefix("t.")], "t", wanted, kinds)

    if damaged:
        with pytest.raises(
            JllamaError, match=r"^t: a scale or offset is NaN or infinite: quantise the model"
        ):
            made(kinds)
        return
    whole, bare = made(kinds), made(kinds[:2])
    assert all(getattr(whole, kind) is array for kind, array in arrays.items())
    assert (whole.bits, whole.shape, bare.offsets) == (8 if last is np.int8 else 4, (2, 32), None)


@pytest.mark.parametrize("refusal", [None, "no kernel"])
@pytest.mark.parametrize("devices", [1, 2])
def test_what_is_kept_quantised_is_decided_by_what_lies_on_each_device(monkeypatch, devices, refusal):
    asked, mesh = [], SimpleNamespace(size=devices) if devices > 1 else None
    target = Target("gpu", mesh=mesh)

    def kept_outline(files, config, dtype, **given):
        asked.append(given)
        return "outline"

    def decode_refusal(config, params, dtype, where, *, waits):
        asked.append((config, params, dtype, where, waits))
        return refusal

    monkeypatch.setattr(automatic, "kept_outline", kept_outline)
    monkeypatch.setattr(automatic.kernels, "decode_refusal", decode_refusal)
    monkeypatch.setattr(automatic.sharding, "widened", lambda config, count: (config, count))
    files = ModelFiles(description="x", gguf=Path("x.gguf"))
    mode = automatic.automatic_mode(files, "config", "bfloat16", target, waits=False)
    assert mode == ("auto" if refusal is None else "none")
    config = ("config", 2) if devices > 1 else "config"
    assert asked == [
        dict(layout="records", devices=devices),
        (config, "outline", "bfloat16", target, False),
    ]
    other = ModelFiles(description="x", directory=Path("x"))
    assert automatic.automatic_mode(other, "config", "bfloat16", target) == "none"
    assert len(asked) == 2
    automatic.automatic_mode(files, "config", "bfloat16", dataclasses.replace(target, kernels=False))
    assert asked[2] == dict(layout="rows", devices=devices)  # no kernel is compiled to be asked


@pytest.mark.parametrize("devices", [1, 2])
def test_the_outline_of_what_several_devices_hold_is_theirs(monkeypatch, tiny_config, devices):
    """Of a single key-value head each has one of its own."""
    config = dataclasses.replace(tiny_config, num_key_value_heads=1)
    monkeypatch.setattr(automatic, "open_checkpoint", lambda files: files)
    monkeypatch.setattr(automatic, "verified", lambda checkpoint, config: checkpoint)
    monkeypatch.setattr(automatic, "form_of", lambda leaf, checkpoint: None)
    asked = dict(devices=devices) if devices > 1 else {}  # one, unless it is said
    made = automatic.kept_outline("files", config, "bfloat16", **asked)
    shapes = [one.shape for one in jax.tree.leaves(made)]
    assert shapes == [leaf.shape for leaf in jax.tree.leaves(shards.split_layout(config, devices))]
    assert (shapes == [leaf.shape for leaf in jax.tree.leaves(layout(config))]) == (devices == 1)
    assert {str(one.dtype) for one in jax.tree.leaves(made)} == {"bfloat16"}
