"""Headers, sizes and places of a checkpoint, byte by byte and from both sides of each limit."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from jllama.checkpoint import memory
from jllama.checkpoint.formats import safetensors
from jllama.checkpoint.formats.safetensors import open_safetensors, read_header
from jllama.checkpoint.formats.saved_check import check_saved, leaf_name
from jllama.checkpoint.formats.stored import PLAIN, Checkpoint, Encoding, Reader, Stored
from jllama.checkpoint.layout import Leaf, Part, layout, parts
from jllama.checkpoint.sizes import cache_bytes, parameter_bytes, parameter_count
from jllama.checkpoint.verify import verified
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.files import gguf_header
from jllama.files.gguf_header import parse_header
from jllama.files.model_files import ModelFiles

SMALL = ModelConfig(
    vocab_size=10,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
)

# GGUF.


def text(value):
    return struct.pack("<Q", len(value)) + value


def gguf(*fields, tensors=(), version=3, counts=None):
    counts = (len(tensors), len(fields)) if counts is None else counts
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*fields, *tensors))


def field(key, kind, data):
    return text(key) + struct.pack("<I", kind) + data


def array(kind, count, data):
    return struct.pack("<IQ", kind, count) + data


def tensor(name, *axes, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)


VALUES = [
    (0, struct.pack("<B", 200), 200),
    (1, struct.pack("<b", -5), -5),
    (2, struct.pack("<H", 60000), 60000),
    (3, struct.pack("<h", -300), -300),
    (4, struct.pack("<I", 1 << 31), 1 << 31),
    (5, struct.pack("<i", -7), -7),
    (6, struct.pack("<f", 1.5), 1.5),
    (7, b"\x01", True),
    (8, text("é".encode()), "é"),
    (10, struct.pack("<Q", 1 << 63), 1 << 63),
    (11, struct.pack("<q", -1), -1),
    (12, struct.pack("<d", 0.1), 0.1),
    (9, array(4, 3, struct.pack("<3I", 1, 2, 3)), [1, 2, 3]),
    (9, array(8, 2, text(b"a") + text(b"")), ["a", ""]),
    (9, array(9, 2, array(0, 1, b"\x05") + array(7, 0, b"")), [[5], []]),
    (9, array(5, 0, b""), []),
]


@pytest.mark.parametrize(("kind", "data", "value"), VALUES)
def test_a_value_of_each_type(kind, data, value):
    made = parse_header(Path("x"), gguf(field(b"a", kind, data), field(b"b", 4, struct.pack("<I", 9))))
    assert made.fields == {"a": value, "b": 9}
    assert type(made.fields["a"]) is type(value)


def test_the_last_text_of_a_file_without_tensors_may_be_empty():
    assert parse_header(Path("x"), gguf(field(b"a", 8, text(b"")))).fields == {"a": ""}


def test_where_a_header_s_parts_lie():
    fields = [field(b"a", 4, bytes(4))]
    data = gguf(*fields, tensors=[tensor(b"t", 3, 5, 7, kind=8, offset=64), tensor(b"u")])
    made = parse_header(Path("x"), data + bytes(100))
    assert (made.fields_end, made.end) == (len(gguf(*fields)), len(data))
    assert [tuple(each) for each in made.tensors] == [("t", (7, 5, 3), 8, 64), ("u", (), 0, 0)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GGML" + bytes(30), "is no GGUF file: it starts with b'GGML'"),
        (b"", "is no GGUF file"),
        (gguf(version=1), "has GGUF version 1"),
        (gguf(version=4), "has GGUF version 4"),
        (gguf(field(b"a", 0, b"\0"), field(b"a", 0, b"\0")), "its metadata hold a twice"),
        (gguf(tensors=[tensor(b"t", 1)] * 2), "it holds t twice"),
        (gguf(tensors=[tensor(b"t", *[1] * 5)]), "t has 5 axes"),
        (gguf(field(b"a", 13, b"")), "a value of type 13 in a place"),
        (gguf(field(b"a", 9, array(13, 1, b""))), "a value of type 13"),
        (gguf(field(b"a", 4, bytes(4)))[:-1], "breaks off"),
        (gguf(field(b"a", 8, struct.pack("<Q", 5) + b"abcd")), "breaks off"),
        (gguf(field(b"a", 8, b"abc")), "breaks off"),
        (gguf(field(b"a", 9, array(8, 2, text(b"a")))), "breaks off"),
        (gguf(counts=(0, 1)), "breaks off"),
        (gguf(field(b"a", 9, array(4, 1 << 40, b""))), "asks for more than any model's"),
    ],
)
def test_a_header_that_is_damaged_says_how(data, words):
    with pytest.raises(JllamaError) as error:
        parse_header(Path("x"), data)
    assert words in str(error.value)


def test_versions_2_and_3_are_read():
    for version in (2, 3):
        assert parse_header(Path("x"), gguf(version=version)).fields == {}
    assert parse_header(Path("x"), gguf(tensors=[tensor(b"t", 1, 2, 3, 4)])).tensors[0].shape == (4, 3, 2, 1)


@pytest.mark.parametrize(("depth", "fits"), [(8, True), (9, False)])
def test_arrays_nest_so_deep(depth, fits):
    data = array(0, 1, b"\x05")
    for _ in range(depth):
        data = array(9, 1, data)
    if fits:
        parse_header(Path("x"), gguf(field(b"a", 9, data)))
    else:
        with pytest.raises(JllamaError, match=r"a value of type 9 in a place"):
            parse_header(Path("x"), gguf(field(b"a", 9, data)))


def test_what_python_builds_is_counted(monkeypatch):
    """A key, an array and a tensor cost 16 values beside what they hold."""
    data = gguf(field(b"a", 9, array(4, 10, bytes(40))), tensors=[tensor(b"t", 1, 2)])
    cost = 2 + (1 + 1) + 16 + (1 + 1) + 10 + 16 + (1 + 1) + 2 + 1 + 1
    monkeypatch.setattr(gguf_header, "MAX_VALUES", cost)
    parse_header(Path("x"), data)
    monkeypatch.setattr(gguf_header, "MAX_VALUES", cost - 1)
    with pytest.raises(JllamaError, match=r"asks for more than any model's"):
        parse_header(Path("x"), data)


def test_a_header_has_a_size_at_most(monkeypatch):
    data = gguf(field(b"a", 8, text(b"x" * 100)))
    monkeypatch.setattr(gguf_header, "MAX_HEADER", len(data))
    assert parse_header(Path("x"), data + bytes(50)).fields == {"a": "x" * 100}
    monkeypatch.setattr(gguf_header, "MAX_HEADER", len(data) - 1)
    with pytest.raises(JllamaError, match=r"asks for more than any model's"):
        parse_header(Path("x"), data + bytes(50))


# safetensors.


def write(path, header, size=0, length=None):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data) if length is None else length) + data + bytes(size))
    return path


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_the_tensors_of_a_file(tmp_path):
    header = {
        "__metadata__": {"a": "b"},
        "y": entry("F16", (2, 2), 8, 16),
        "x": entry(),
        "z": entry("I64", (), 16, 24),
    }
    found = {stored.name: stored for stored in read_header(write(tmp_path / "m", header, 24))}
    start = 8 + len(json.dumps(header))
    assert list(found) == ["y", "x", "z"]
    assert [(s.offset - start, s.nbytes, s.shape, s.encoding.name) for s in found.values()] == [
        (8, 8, (2, 2), "F16"),
        (0, 8, (2,), "F32"),
        (16, 8, (), "I64"),
    ]
    assert [s.encoding.readable for s in found.values()] == [True, True, False]


BAD = [
    ({"x": entry()}, 7, "is truncated: x lies beyond its end"),
    ({"x": entry()}, 9, "is damaged: 1 bytes belong to no tensor"),
    ({"x": entry(), "y": entry(begin=9, end=17)}, 17, "y lies behind a gap"),
    ({"x": entry(), "y": entry(begin=7, end=15)}, 15, "y overlaps the tensor before it"),
    ({"x": entry(begin=1, end=9)}, 9, "x lies behind a gap"),
    ({"x": entry(end=7)}, 8, "the header's entry for x makes no sense"),
    ({"x": entry(shape=(3,))}, 8, "the header's entry for x makes no sense"),
    ({"x": entry(shape=(-2,))}, 8, "makes no sense"),
    ({"x": entry(shape=(2.0,))}, 8, "makes no sense"),
    ({"x": entry(shape=(True, 2))}, 8, "makes no sense"),
    ({"x": entry(dtype=5)}, 8, "makes no sense"),
    ({"x": entry(begin=8, end=0)}, 8, "makes no sense"),
    ({"x": entry(dtype="F6", begin=8, end=0)}, 8, "makes no sense"),  # of a type whose size nobody knows
    ({"x": entry(shape=[1] * 8 + [2])}, 8, "makes no sense"),
    ({"x": [1]}, 8, "makes no sense"),
    ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, 8, "makes no sense"),
    ({"x": entry() | {"shape": 2}}, 8, "makes no sense"),
    (b'{"x": 1, "x": 2}', 0, "no safetensors header that makes sense"),
    (b"[]", 0, "no safetensors header that makes sense"),
    (b"\xff\xff", 0, "no safetensors header that makes sense"),
]


@pytest.mark.parametrize(("header", "size", "words"), BAD)
def test_an_entry_that_lies_is_named(tmp_path, header, size, words):
    with pytest.raises(JllamaError) as error:
        read_header(write(tmp_path / "m", header, size))
    assert words in str(error.value)


def test_what_is_sound_though_odd(tmp_path):
    assert read_header(write(tmp_path / "m", {})) == []
    (one,) = read_header(write(tmp_path / "m", {"x": entry(shape=[1] * 7 + [2])}, 8))
    assert len(one.shape) == 8
    (new,) = read_header(write(tmp_path / "m", {"x": entry(dtype="F6", shape=(5,))}, 8))
    assert (new.encoding.name, new.encoding.readable) == ("F6", False)
    empty = {"x": entry(shape=(0,), end=0), "y": entry(), "z": entry(shape=(0,), begin=0, end=0)}
    assert len(read_header(write(tmp_path / "m", empty, 8))) == 3


@pytest.mark.parametrize(("length", "fits"), [(None, True), (3, False), (1 << 60, False)])
def test_the_length_of_a_header(tmp_path, monkeypatch, length, fits):
    path = write(tmp_path / "m", b"{}", length=length)
    if fits:
        read_header(path)
        monkeypatch.setattr(safetensors, "MAX_HEADER", 2)
        read_header(path)
        monkeypatch.setattr(safetensors, "MAX_HEADER", 1)
    with pytest.raises(JllamaError, match=r"is truncated, or no safetensors file; download it again"):
        read_header(path)
    path.write_bytes(bytes(7))
    with pytest.raises(JllamaError, match=r"is truncated"):
        read_header(path)


def test_which_files_make_a_checkpoint(tmp_path):
    with pytest.raises(JllamaError, match=r"holds no safetensors weights; download model.safetensors"):
        open_safetensors(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(JllamaError, match=r"its .bin files are not read: convert them"):
        open_safetensors(tmp_path)
    write(tmp_path / "a.safetensors", {"model.x": entry()}, 8)
    assert list(open_safetensors(tmp_path).tensors) == ["x"]
    write(
        tmp_path / "b.safetensors",
        {"model.y": entry(), "model.layers.0.rotary_emb.inv_freq": entry(begin=8, end=16)},
        16,
    )
    with pytest.raises(JllamaError, match=r"holds 2 safetensors files but no model.safetensors.index.json"):
        open_safetensors(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}})
    )
    (tmp_path / "model.safetensors").mkdir()  # is no file
    both = open_safetensors(tmp_path)
    (tmp_path / "model.safetensors").rmdir()
    assert (list(both.tensors), both.spell("x"), both.description) == (["x", "y"], "model.x", str(tmp_path))
    write(tmp_path / "b.safetensors", {"model.x": entry()}, 8)
    with pytest.raises(
        JllamaError, match=r"a.safetensors and b.safetensors in .* both hold model.x; keep one"
    ):
        open_safetensors(tmp_path)
    twice = {"model.x": entry(), "x": entry(begin=8, end=16)}  # with the prefix and without
    write(tmp_path / "model.safetensors", twice, 16)
    with pytest.raises(JllamaError, match=r"model.safetensors and model.safetensors in .* both hold x"):
        open_safetensors(tmp_path)
    write(tmp_path / "model.safetensors", {"z": entry()}, 8)
    alone = open_safetensors(tmp_path)
    assert (list(alone.tensors), alone.spell("z")) == (["z"], "z")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": 5}, "is no index with a weight_map"),
        ({}, "is no index with a weight_map"),
        ({"weight_map": {"x": 5}}, "is no index with a weight_map"),
        ({"weight_map": {"x": "a", "y": 5}}, "is no index with a weight_map"),
        ({"weight_map": {"x": "../a.safetensors"}}, "no plain file names: ../a.safetensors"),
        ({"weight_map": {"x": "a", "y": "n" * 5000}}, "lacks the shards a, nnn"),
        ({"weight_map": {"x": "dir"}}, "lacks the shards dir;"),
    ],
)
def test_an_index_that_leads_astray(tmp_path, index, words):
    (tmp_path / "dir").mkdir()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(JllamaError) as error:
        open_safetensors(tmp_path)
    assert words in str(error.value)


# What a configuration wants.


def stored(name, shape, encoding=PLAIN["F32"]):
    return Stored(name=f"file.{name}", path=Path("f"), offset=0, nbytes=0, shape=shape, encoding=encoding)


def checkpoint(config=SMALL, **changes):
    tensors = {name: stored(name, part.shape) for name, part in parts(config).items()} | changes
    return Checkpoint(
        description="it", tensors={k: v for k, v in tensors.items() if v}, spell=lambda name: f"file.{name}"
    )


def test_every_tensor_is_there_in_its_shape():
    assert verified(checkpoint(), SMALL).tensors == checkpoint().tensors
    wrong = checkpoint(
        **{
            "norm.weight": stored("norm.weight", (9,)),
            "lm_head.weight": None,
            "odd": stored("odd", (1,)),
            "embed_tokens.weight": stored("embed_tokens.weight", (10, 8), Encoding(name="Q9", size=3)),
        }
    )
    with pytest.raises(JllamaError) as error:
        verified(wrong, SMALL)
    assert str(error.value) == (
        "it does not fit its configuration: missing: file.lm_head.weight; extra: file.odd; wrong shape: "
        "file.norm.weight [9], not [8]; type that jllama cannot read: file.embed_tokens.weight (Q9)"
    )


def test_a_tie_may_be_stored_at_either_end():
    tied = ModelConfig(
        **{f: getattr(SMALL, f) for f in SMALL.__dataclass_fields__} | {"tie_word_embeddings": True}
    )
    table = stored("lm_head.weight", (10, 8))
    by_head = verified(checkpoint(tied, **{"lm_head.weight": table, "embed_tokens.weight": None}), tied)
    assert by_head.tensors["embed_tokens.weight"] is table
    both = verified(checkpoint(tied, **{"lm_head.weight": table}), tied)
    assert both.tensors["embed_tokens.weight"].name == "file.embed_tokens.weight"
    assert "lm_head.weight" not in both.tensors


@pytest.mark.parametrize(("block", "readable"), [(1, True), (4, True), (8, True), (3, False), (16, False)])
def test_blocks_do_not_straddle_rows(block, readable):
    encoding = Encoding(name="Q", block=block, size=2, decode=lambda raw: raw)
    table = {"embed_tokens.weight": stored("embed_tokens.weight", (10, 8), encoding)}
    if readable:
        verified(checkpoint(**table), SMALL)
    else:
        with pytest.raises(JllamaError, match=r"cannot read: file.embed_tokens.weight .Q"):
            verified(checkpoint(**table), SMALL)
    with pytest.raises(JllamaError, match=r"cannot read: file.norm.weight .Q8"):
        verified(
            checkpoint(
                **{"norm.weight": stored("n", (8,), Encoding(name="Q8", block=8, size=2, decode=str))}
                | {
                    "norm.weight": stored(
                        "norm.weight", (8,), Encoding(name="Q8", block=8, size=2, decode=str)
                    )
                }
            ),
            SMALL,
        )


@pytest.mark.parametrize(("count", "folded"), [(24, False), (25, True)])
def test_long_lists_are_folded(count, folded):
    extra = {f"odd.{n}.x": stored(f"odd.{n}.x", (1,)) for n in range(count)}
    with pytest.raises(JllamaError) as error:
        verified(checkpoint(**extra), SMALL)
    assert ("file.odd.{0,1,2," in str(error.value)) == folded
    assert ("file.odd.0.x, file.odd.1.x" in str(error.value)) != folded


def test_of_a_long_list_what_is_no_layer_s_stands_alone():
    extra = {name: stored(name, (1,)) for name in ("odd", *(f"odd.{n}" for n in range(24)), "odd.3.x")}
    with pytest.raises(JllamaError, match=r"extra: file.odd, file.odd.\{0,1,.*,23\}, file.odd.3.x$"):
        verified(checkpoint(**extra), SMALL)


@pytest.mark.parametrize(("rows", "fits"), [(48, True), (47, False), (49, False), (96, False)])
def test_a_tensor_that_holds_several_has_the_rows_of_all(rows, fits):
    names = [f"layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    fused = stored("layers.0.self_attn.qkv_proj.weight", (rows, 8))
    fused = dataclasses.replace(fused, offset=100, nbytes=rows * 8 * 4)
    held = checkpoint(**dict.fromkeys(names), **{"layers.0.self_attn.qkv_proj.weight": fused})
    if fits:
        apart = [verified(held, SMALL).tensors[name] for name in names]
        assert [(s.offset, s.nbytes, s.shape) for s in apart] == [
            (100, 24 * 32, (24, 8)),
            (100 + 24 * 32, 12 * 32, (12, 8)),
            (100 + 36 * 32, 12 * 32, (12, 8)),
        ]
    else:
        with pytest.raises(JllamaError, match=r"missing: .*q_proj.weight.*; extra: .*qkv_proj.weight"):
            verified(held, SMALL)


def test_a_bias_may_be_left_out_where_the_format_says_so():
    biased = dataclasses.replace(SMALL, attention_bias=True)
    left_out = {f"layers.{layer}.self_attn.k_proj.bias": None for layer in (0, 1)}
    held = checkpoint(biased, **left_out)
    with pytest.raises(JllamaError, match=r"missing: .*file.layers.1.self_attn.k_proj.bias$"):
        verified(held, biased)
    zero = verified(dataclasses.replace(held, optional_biases=True), biased).tensors[
        "layers.1.self_attn.k_proj.bias"
    ]
    assert (zero.shape, zero.nbytes, zero.name) == ((12,), 0, "file.layers.1.self_attn.k_proj.bias")
    np.testing.assert_array_equal(zero.encoding.numbers(np.empty((12, 0), np.uint8)), np.zeros((12, 1)))
    empty = Checkpoint(description="it", tensors={}, spell=str, optional_biases=True)
    with pytest.raises(JllamaError, match=r"missing: embed_tokens.weight"):
        verified(empty, biased)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_bias_that_only_some_layers_have_is_missing_in_the_others(layer):
    biased, name = dataclasses.replace(SMALL, attention_bias=True), f"layers.{layer}.self_attn.q_proj.bias"
    held = dataclasses.replace(checkpoint(biased, **{name: None}), optional_biases=True)
    with pytest.raises(JllamaError, match=rf"missing: file.{name}$"):
        verified(held, biased)


def test_where_rows_lie_in_a_leaf():
    leaves = layout(SMALL)
    qkv = leaves.layers[1].attention.qkv_proj
    assert qkv.shape == (2, 4, 6, 8)
    assert [(p.name, p.shape, p.rotary) for p in qkv.parts] == [
        ("layers.1.self_attn.q_proj.weight", (24, 8), True),
        ("layers.1.self_attn.k_proj.weight", (12, 8), True),
        ("layers.1.self_attn.v_proj.weight", (12, 8), False),
    ]
    filled = np.zeros(qkv.shape[:2])
    for number, part in enumerate(qkv.parts, 1):
        filled[part.place] += number
    assert filled.tolist() == [[1, 1, 2, 3]] * 2
    mlp = leaves.layers[0].mlp
    assert (mlp.gate_up_proj.shape, mlp.down_proj.shape) == ((2, 12, 8), (8, 12))
    assert [(p.name[-16:], p.place) for p in mlp.gate_up_proj.parts] == [
        ("gate_proj.weight", (0,)),
        ("p.up_proj.weight", (1,)),
    ]
    assert (leaves.lm_head.shape, leaves.norm.shape, leaves.layers[0].attention.o_proj.shape) == (
        (10, 8),
        (8,),
        (8, 24),
    )
    assert leaves.layers[0].attention.qkv_bias is leaves.layers[0].mlp.down_bias is None
    assert leaves.norm.is_matrix is False
    assert leaves.lm_head.is_matrix is True
    assert Leaf(shape=(2, 3), parts=(Part(name="a.bias", shape=(2, 3)),)).is_matrix is False


def test_how_many_numbers_and_bytes():
    layer = 8 + (24 + 12 + 12) * 8 + 8 * 24 + 8 + 2 * 12 * 8 + 8 * 12
    assert parameter_count(SMALL) == 10 * 8 + 2 * layer + 8 + 10 * 8
    assert parameter_bytes(SMALL, "float16") == 2 * parameter_count(SMALL)
    assert parameter_bytes(SMALL, "float32") == 4 * parameter_count(SMALL)
    assert cache_bytes(SMALL, batch=3, max_len=5, dtype="bfloat16") == 3 * (2 * 2 * 2 * 6 * 5 * 2 + 4)


# Memory.


@pytest.mark.parametrize(("batch", "rows"), [(1, "1 row needs"), (2, "2 rows needs")])
def test_what_does_not_fit_is_refused_to_the_byte(monkeypatch, batch, rows):
    needed = cache_bytes(SMALL, batch=batch, max_len=5, dtype="float32")
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    memory.check_cache(SMALL, "float32", batch=batch, max_len=5)
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 1)
    with pytest.raises(JllamaError, match=rf"a cache of 5 positions for {rows} .* left: do this"):
        memory.check_cache(SMALL, "float32", batch=batch, max_len=5, advice="do this")
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.check_cache(SMALL, "float32", batch=batch, max_len=1 << 40)


@pytest.mark.parametrize(
    ("quantize", "share"), [("none", 2.0), ("int8", 0.51), ("int4", 0.33), ("auto", 2.0)]
)
def test_what_each_mode_needs(monkeypatch, tmp_path, quantize, share):
    files = ModelFiles(description="x", directory=tmp_path)
    needed = int(parameter_bytes(SMALL, "bfloat16") * share)
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    memory.check_weights(files, SMALL, "float32", quantize)
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 1)
    with pytest.raises(JllamaError, match=r"the weights need 0\.00 GiB in float32 and the device has"):
        memory.check_weights(files, SMALL, "float32", quantize)


# Files that are read in parts.


def test_a_part_of_a_tensor(tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(100)))
    reader, out = Reader(), np.zeros((2, 3), np.uint8)
    reader.open(tmp_path / "f")
    reader.open(tmp_path / "f")
    one = Stored(name="x", path=tmp_path / "f", offset=10, nbytes=20, shape=(20,), encoding=PLAIN["F32"])
    reader.read(one, 4, out)
    assert out.tolist() == [[14, 15, 16], [17, 18, 19]]
    with pytest.raises(JllamaError, match=r"f ends inside x; download it again"):
        reader.read(one, 88, out)
    handles = len(os.listdir("/proc/self/fd"))
    (number,) = reader._files.values()
    assert fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY  # a file that nobody may write
    reader.open(tmp_path / "f")
    assert [*reader._files.values()] == [number]  # it is open already
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == handles - 1
    with pytest.raises(JllamaError, match=r"cannot read .*absent: No such file"):
        reader.open(tmp_path / "absent")


@pytest.mark.parametrize(("block", "size"), [(1, 2), (4, 3)])
def test_rows_are_read_from_a_row_and_a_column_on(tmp_path, block, size):
    """Columns count numbers, and lie in blocks."""
    columns = 8 // block * size  # bytes of a row of 8 numbers
    there = np.arange(5 * columns, dtype=np.uint8).reshape(5, columns)
    (tmp_path / "f").write_bytes(b"head" + there.tobytes())
    encoding = Encoding(name="x", block=block, size=size)
    one = Stored(name="x", path=tmp_path / "f", offset=4, nbytes=there.size, shape=(5, 8), encoding=encoding)
    with contextlib.closing(Reader()) as reader:
        reader.open(tmp_path / "f")
        for row, column, count, width in (
            (0, 0, 5, 8),
            (2, 0, 3, 8),
            (2, 4, 2, 4),
            (0, 4, 5, 4),
            (4, 0, 1, 4),
        ):
            out = np.zeros((count, width // block * size), np.uint8)
            reader.read_rows(one, row, column, out)
            first = column // block * size
            np.testing.assert_array_equal(out, there[row : row + count, first : first + out.shape[1]])


def test_a_read_that_comes_in_pieces(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(bytes(range(100)))
    reader, out, really = Reader(), np.zeros(10, np.uint8), os.preadv
    reader.open(tmp_path / "f")
    monkeypatch.setattr(os, "preadv", lambda file, views, at: really(file, [views[0][:3]], at))
    one = Stored(name="x", path=tmp_path / "f", offset=0, nbytes=100, shape=(100,), encoding=PLAIN["F32"])
    reader.read(one, 5, out)
    assert out.tolist() == list(range(5, 15))

    def broken(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(JllamaError, match=r"cannot read .*f: broken"):
        reader.read(one, 0, out)
    reader.close()


# Quantised checkpoints.


def saved(tmp_path, **changes):
    """A file of one matrix [4, 8] in groups of four, as named parts; None leaves one out."""
    wanted = {
        "w.values": ("U8", (4, 4)),
        "w.scales": ("F16", (4, 2)),
        "w.offsets": ("F16", (4, 2)),
        "n": ("F32", (8,)),
    } | changes
    header, at = {}, 0
    for key, given in wanted.items():
        name = re.sub("^w", "0", re.sub("^n", "1", key))  # places in `TREE`
        if given:
            dtype, shape = given
            size = (
                math.prod(shape)
                * {"U8": 1, "I8": 1, "F16": 2, "F32": 4, "I32": 4, "F64": 8, "BF16": 2}[dtype]
            )
            header[name], at = entry(dtype, shape, at, at + size), at + size
    return write(tmp_path / "m", header, at)


TREE = (
    Leaf(shape=(2, 2, 8), parts=(Part(name="w.weight", shape=(4, 8)),)),
    Leaf(shape=(8,), parts=(Part(name="n", shape=(8,)),)),
)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, ("values", "scales", "offsets")),
        ({"w.offsets": None}, ("values", "scales")),
        ({"w.values": ("I8", (4, 8)), "w.offsets": None}, ("values", "scales")),
        ({"w.values": ("I8", (4, 8)), "w.offsets": None, "w.scales": ("F32", (4, 8))}, ("values", "scales")),
        ({"w.scales": ("F32", (4, 4)), "w.offsets": ("F32", (4, 4))}, ("values", "scales", "offsets")),
        *(({"n": (kind, (8,))}, ("values", "scales", "offsets")) for kind in ("F64", "F16", "BF16")),
    ],
)
def test_the_parts_of_a_quantised_leaf(tmp_path, changes, kinds):
    assert check_saved(saved(tmp_path, **changes), TREE) == {"0": kinds}


@pytest.mark.parametrize(
    "changes",
    [
        {"w.values": None},
        {"w.scales": None},
        {"w.values": ("U8", (4, 8))},
        {"w.values": ("U8", (2, 8))},
        {"w.values": ("F16", (4, 4))},
        {"w.scales": ("F16", (4, 3)), "w.offsets": ("F16", (4, 3))},
        {"w.scales": ("F16", (4, 8)), "w.offsets": ("F16", (4, 8))},
        {"w.scales": ("F16", (8,)), "w.offsets": None},
        {"w.offsets": ("F32", (4, 2))},
        {"w.offsets": ("F16", (4, 4))},
        *({"w.scales": (kind, (4, 2)), "w.offsets": None} for kind in ("I32", "F64", "BF16")),
        {"w.scales": ("I8", (4, 2)), "w.offsets": None},
        {"w.scales": ("I8", (4, 2)), "w.offsets": None, "w.scale_units": ("F16", (4, 0))},
        {"n": None},
        {"n": ("F32", (4,))},
        {"n": ("I32", (8,))},
        {"more": ("F32", (1,))},
        {"w": ("F32", (2, 2, 8))},
        {"w.scales": ("F16", (4, 0)), "w.offsets": None},
    ],
)
def test_a_quantised_leaf_that_does_not_fit(tmp_path, changes):
    with pytest.raises(JllamaError, match=r"does not fit its config.json .*: quantise the model again"):
        check_saved(saved(tmp_path, **changes), TREE)


TWO_LEVELS = {
    "w.values": ("I8", (4, 512)),
    "w.scales": ("I8", (4, 32)),
    "w.offsets": ("I8", (4, 32)),
    "w.scale_units": ("F16", (4, 2)),
    "w.offset_units": ("F16", (4, 2)),
}
LONG = (Leaf(shape=(4, 512), parts=(Part(name="w.weight", shape=(4, 512)),)), TREE[1])


def test_scales_of_two_levels(tmp_path):
    kinds = ("values", "scales", "offsets", "scale_units", "offset_units")
    assert check_saved(saved(tmp_path, **TWO_LEVELS), LONG) == {"0": kinds}
    bare = TWO_LEVELS | {"w.offsets": None, "w.offset_units": None}
    assert check_saved(saved(tmp_path, **bare), LONG) == {"0": ("values", "scales", "scale_units")}


@pytest.mark.parametrize(
    "changes",
    [
        {"w.scale_units": None},
        {"w.offset_units": None},
        {"w.scale_units": None, "w.offset_units": None},
        {"w.offsets": None},
        {"w.offsets": ("F16", (4, 32))},
        {"w.scales": ("F16", (4, 32)), "w.offsets": ("F16", (4, 32))},
        {"w.scale_units": ("F32", (4, 2))},
        {"w.scale_units": ("F16", (4, 4))},
        {"w.offset_units": ("F16", (4, 1))},
        {"w.scales": ("I8", (4, 1)), "w.offsets": ("I8", (4, 1))},
        {"w.values": ("I8", (4, 8)), "w.scales": ("I8", (4, 2)), "w.offsets": ("I8", (4, 2))},
    ],
)
def test_scales_of_two_levels_that_do_not_fit(tmp_path, changes):
    with pytest.raises(JllamaError, match=r"does not fit its config.json .*: quantise the model again"):
        check_saved(saved(tmp_path, **TWO_LEVELS | changes), LONG)


def test_a_vector_is_never_quantised(tmp_path):
    path = saved(tmp_path, **{"n": None, "n.values": ("I8", (1, 8)), "n.scales": ("F16", (1, 2))})
    with pytest.raises(JllamaError, match=r"1, which should be"):
        check_saved(path, TREE)


def test_a_leaf_s_name():
    import jax

    paths, _ = jax.tree_util.tree_flatten_with_path(layout(SMALL))
    found = [leaf_name(path) for path, _ in paths]
    assert {"embed_tokens", "layers.1.attention.qkv_proj", "layers.0.mlp.down_proj", "norm"} <= set(found)
