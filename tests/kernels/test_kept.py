"""Which compiled kernels stay, how their weights lie, and what a kernel refuses."""

import dataclasses
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.config import LayerKind, ModelConfig
from jllama.kernels.cpu import build, pack
from jllama.kernels.refusals import LLAMA_FIELDS, refused_field, refused_leaf
from jllama.layers.qtensor import QTensor, dequantize
from jllama.machine.native import compiling, kept

DAY = 86400


@pytest.mark.parametrize(
    ("name", "days", "stays"),
    [
        ("cpu-a.so", 29.9, True),
        ("cpu-a.so", 30.1, False),
        ("gpu-a.ptx", 29.9, True),
        ("gpu-a.ptx", 30.1, False),
        ("compile-abc", 0.04, True),
        ("compile-abc", 0.05, False),
        ("tmpabc", 0.04, True),
        ("tmpabc", 0.05, False),
        ("other", 400, True),
    ],
)
def test_what_nobody_will_miss_goes(tmp_path, name, days, stays):
    (tmp_path / name).touch()
    at = time.time() - days * DAY
    os.utime(tmp_path / name, (at, at))
    kept.sweep(tmp_path)
    assert (tmp_path / name).exists() == stays


def test_what_is_useless_goes_at_once_and_a_directory_whole(tmp_path):
    (tmp_path / "compile-x" / "deep").mkdir(parents=True)
    (tmp_path / "a.so").touch()
    (tmp_path / "b.so").touch()
    (tmp_path / "target").mkdir()
    os.symlink(tmp_path / "target", tmp_path / "compile-link")
    os.symlink(tmp_path / "nowhere", tmp_path / "compile-gone")
    for name in ("compile-x", "compile-link", "compile-gone"):
        os.utime(tmp_path / name, (0, 0), follow_symlinks=False)
    kept.sweep(tmp_path, useless=iter([tmp_path / "a.so"]))
    assert sorted(os.listdir(tmp_path)) == ["b.so", "target"]


def test_what_is_used_is_young_again(tmp_path):
    (tmp_path / "a.so").touch()
    os.utime(tmp_path / "a.so", (0, 0))
    kept.touch(tmp_path / "a.so")
    assert time.time() - (tmp_path / "a.so").stat().st_mtime < 1000
    kept.touch(tmp_path / "absent")


@pytest.mark.parametrize(
    ("said", "count"),
    [("1", 1), ("3", 3), ("256", 256), ("", None)],
)
def test_how_many_threads(monkeypatch, said, count):
    monkeypatch.setenv("JLLAMA_THREADS", said)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 4})
    assert build.threads() == (5 if count is None else count)


def test_a_library_is_told_of_its_threads_and_each_function_is_known(monkeypatch):
    seen = []
    library = SimpleNamespace(jllama_threads=seen.append, **{name: f"at {name}" for name in build.TARGETS})
    monkeypatch.setattr(build, "threads", lambda: 7)
    monkeypatch.setattr(build.jax.ffi, "pycapsule", lambda pointer: f"capsule {pointer}")
    monkeypatch.setattr(build.jax.ffi, "register_ffi_target", lambda *got, **more: seen.append((got, more)))
    build.register(library, "_x")
    cpu = dict(platform="cpu")
    assert seen == [7, *(((f"{name}_x", f"capsule at {name}"), cpu) for name in build.TARGETS)]


@pytest.mark.parametrize(
    ("machine", "flags"),
    [("x86_64", "-march=native"), ("aarch64", "-mcpu=native"), ("arm64", "-mcpu=native")],
)
def test_the_flags_of_a_machine(monkeypatch, machine, flags):
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert compiling.native_flags() == (flags,)


# Weights as the kernels read them.


def quantised(rows, columns, group, bits, offsets=True, seed=0):
    rng = np.random.default_rng(seed)
    if bits == 8:
        values = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    else:
        values = rng.integers(0, 256, (rows, columns // 2)).astype(np.uint8)
    scales = rng.random((rows, columns // group)).astype(np.float16)
    more = rng.random((rows, columns // group)).astype(np.float16) if offsets else None
    return QTensor(values=values, scales=scales, offsets=more, shape=(rows, columns), bits=bits)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 48])
@pytest.mark.parametrize(("bits", "group"), [(8, 64), (8, 32), (4, 32), (4, 64)])
@pytest.mark.parametrize("offsets", [True, False])
def test_tiles_hold_the_same_numbers(rows, bits, group, offsets):
    plain = quantised(rows, 64, group, bits, offsets)
    tiled = pack.tiles(plain)
    full = -(-rows // 16)
    assert tiled.layout == "tiles"
    assert tiled.values.shape == (full, 64 // 4 if bits == 8 else 64 // 8, 16, 4)
    assert tiled.scales.shape == (full, 64 // group, 16)
    np.testing.assert_array_equal(dequantize(tiled), dequantize(plain))
    assert pack.tiles(tiled) is tiled
    assert (np.asarray(tiled.scales)[-1, :, rows - 16 * (full - 1) :] == 0).all()


def test_groups_that_the_kernels_do_not_know_stay_as_they_are():
    """Multiples of 32, and 16 for 8 bits alone."""
    for plain in (quantised(4, 48, 24, 8), quantised(4, 48, 16, 4)):
        assert pack.tiles(plain) is plain
    tree = pack.prepare({"a": quantised(4, 64, 32, 8), "b": np.zeros(3), "c": quantised(4, 48, 16, 8)})
    assert tree["c"].layout == "tiles"
    assert (tree["a"].layout, tree["b"].shape) == ("tiles", (3,))


def test_an_array_begins_at_a_cache_line():
    for size in (1, 7, 100):
        made = pack.aligned((size, 3), np.dtype(np.uint16))
        assert (made.ctypes.data % 64, made.shape, made.dtype) == (0, (size, 3), np.uint16)


# What a kernel does not know.

CONFIG = ModelConfig.from_hf({"model_type": "llama"})


def test_a_field_that_a_kernel_does_not_know_is_named():
    assert refused_field(CONFIG, LLAMA_FIELDS) is None
    kinds = dataclasses.replace(CONFIG, layer_kinds=(LayerKind(window=4),))
    assert refused_field(kinds, LLAMA_FIELDS).startswith("the kernel does not know layer_kinds=")
    biased = dataclasses.replace(CONFIG, attention_bias=True)
    assert refused_field(biased, LLAMA_FIELDS) is None
    assert (
        refused_field(biased, LLAMA_FIELDS - {"attention_bias"})
        == "the kernel does not know attention_bias=True"
    )


def test_what_equals_a_default_is_known_and_a_rotation_by_its_own_fields():
    read = dict(residual_multiplier=float("1"), logits_scaling=float("1.0"), norm_placement="".join("pre"))
    rope = dataclasses.replace(CONFIG.rope, partial_rotary_factor=float("1"))
    assert refused_field(dataclasses.replace(CONFIG, rope=rope, **read), LLAMA_FIELDS) is None
    for name, value in (("partial_rotary_factor", 0.5), ("llama_4_scaling_beta", 0.1)):
        turned = dataclasses.replace(CONFIG.rope, original_max_position_embeddings=16, **{name: value})
        config = dataclasses.replace(CONFIG, rope=turned)
        assert refused_field(config, LLAMA_FIELDS) == f"the kernel does not know {name}={value}"
        assert refused_field(config, LLAMA_FIELDS | {f"rope.{name}"}) is None


def test_a_leaf_that_a_kernel_does_not_read_is_named():
    tree = {"a": np.zeros(1), "b": [np.zeros(2), None]}
    assert refused_leaf(tree, [tree["a"], tree["b"]]) is None
    assert refused_leaf(tree, [tree["a"]]) == "the kernel does not know the parameter ['b'][0]"
