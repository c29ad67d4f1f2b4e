"""Sound checkpoints of every format and type become the right `Params`, within the promised memory."""

import contextlib
import gc
import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

from jllama.checkpoint import load_params, read_config, read_gguf_fields, reading
from jllama.checkpoint.formats.gguf import open_gguf
from jllama.checkpoint.leaves.choose import placed
from jllama.checkpoint.leaves.dense import aligned_empty
from jllama.errors import JllamaError
from jllama.files.model_files import ModelFiles
from jllama.hub.references import resolve
from jllama.model import Params
from tests.support.checkpoint_files import (
    KEYS,
    finish,
    gguf_writer,
    write_directory,
    write_gguf,
    write_safetensors,
    write_shards,
)
from tests.support.checkpoint_generator import random_tensors
from tests.support.helpers import params_from

ROOT = Path(__file__).resolve().parents[2]
DTYPES = ("float32", "bfloat16", "float16")
BIASED = KEYS | dict(attention_bias=True, mlp_bias=True)
WIDE = KEYS | dict(hidden_size=256, intermediate_size=256, head_dim=64, num_hidden_layers=1)


def decodable() -> list[GgmlType]:
    kinds = []
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        kinds.append(kind)
    return kinds


def load(path: Path, dtype="float32"):
    files = resolve(str(path))
    config = read_config(files)
    return config, load_params(files, config, dtype)


def assert_same(found, wanted) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (at, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype, at
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=str(at))


@pytest.mark.parametrize("stored", ["float64", *DTYPES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_stored_type_is_rounded_once_to_every_run_dtype(tmp_path, stored, dtype):
    tensors = random_tensors(BIASED)
    config, params = load(write_directory(tmp_path / "m", BIASED, tensors, stored), dtype)
    held = np.dtype(getattr(ml_dtypes, stored, stored))
    rounded = {name: tensor.astype(held).astype(np.float32) for name, tensor in tensors.items()}
    assert_same(params, params_from(config, rounded, dtype))


@pytest.mark.parametrize("kind", [KEYS, BIASED, KEYS | dict(num_key_value_heads=4), KEYS | dict(head_dim=26)])
def test_shards_names_without_prefix_and_gguf_hold_the_same(tmp_path, kind):
    tensors = random_tensors(kind)
    wanted = params_from(load(write_directory(tmp_path / "single", kind, tensors))[0], tensors)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    for path in (
        tmp_path / "single",
        write_directory(tmp_path / "bare", kind, bare),
        write_directory(tmp_path / "buffers", kind, tensors | buffers),
        write_shards(tmp_path / "shards", kind, tensors),
        write_gguf(tmp_path / "llama.gguf", kind, tensors),
        write_gguf(tmp_path / "mistral.gguf", kind, tensors, architecture="mistral"),
    ):
        assert_same(load(path)[1], wanted)


@pytest.mark.parametrize("kind", [GgmlType.F16, GgmlType.BF16, GgmlType.Q8_0, GgmlType.Q4_0, GgmlType.Q4_1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gguf_equals_safetensors_of_its_dequantised_numbers(tmp_path, kind, dtype):
    tensors = random_tensors(KEYS)
    rounded = {
        name: gguf.quants.dequantize(gguf.quants.quantize(tensor, kind), kind) if tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
    }
    found = load(write_gguf(tmp_path / "m.gguf", KEYS, tensors, kind), dtype)[1]
    assert_same(found, load(write_directory(tmp_path / "m", KEYS, rounded), dtype)[1])


@pytest.mark.parametrize("kind", decodable(), ids=lambda kind: kind.name)
def test_every_gguf_type_that_can_be_dequantised(tmp_path, kind):
    tensors = random_tensors(WIDE)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    # Small bytes: read as a scale, no pair of them is NaN or huge.
    raw = np.random.default_rng(0).integers(0, 0x3C, (256, 256 // block * size), np.uint8)
    writer = gguf_writer(tmp_path / "m.gguf", WIDE, "mistral")
    plain = write_gguf(tmp_path / "plain.gguf", WIDE, tensors, architecture="mistral")
    for stored in gguf.GGUFReader(plain).tensors:
        if stored.name == "blk.0.ffn_down.weight":
            writer.add_tensor(stored.name, raw, raw_dtype=kind)
        else:
            writer.add_tensor(stored.name, np.array(stored.data))
    finish(writer)
    down = load(tmp_path / "m.gguf")[1].layers[0].mlp.down_proj
    np.testing.assert_array_equal(np.asarray(down), gguf.quants.dequantize(raw, kind))


@pytest.mark.parametrize("held", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")])
def test_either_end_of_a_tie_serves(tmp_path, held):
    keys = KEYS | dict(tie_word_embeddings=True)
    tensors = random_tensors(keys)
    table = tensors.pop("model.embed_tokens.weight")
    names = {"embed_tokens": "model.embed_tokens.weight", "lm_head": "lm_head.weight"}
    _, params = load(write_directory(tmp_path / "m", keys, tensors | {names[end]: table for end in held}))
    assert params.lm_head is None
    np.testing.assert_array_equal(np.asarray(params.embed_tokens), table)


def test_a_tie_that_holds_two_tables_is_refused(tmp_path):
    tensors = random_tensors(KEYS)
    with pytest.raises(JllamaError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        load(write_directory(tmp_path / "m", KEYS | dict(tie_word_embeddings=True), tensors))


def test_a_tie_is_compared_to_its_last_number(tmp_path):
    """Tables of 400 KiB: the comparison goes in pieces of 256."""
    keys = KEYS | dict(tie_word_embeddings=True, vocab_size=1600)
    tensors = random_tensors(keys)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    load(write_directory(tmp_path / "same", keys, tensors))
    tensors["lm_head.weight"][-1, -1] += 1
    with pytest.raises(JllamaError, match="differs from"):
        load(write_directory(tmp_path / "other", keys, tensors))


@pytest.mark.parametrize("other", [False, True])
def test_an_end_of_a_tie_is_compared_in_a_file_that_holds_nothing_else(tmp_path, other):
    keys, tensors = KEYS | dict(tie_word_embeddings=True), random_tensors(KEYS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + other
    directory, names = tmp_path / "m", [name for name in tensors if name != "lm_head.weight"]
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(keys))
    write_safetensors(directory / "a.safetensors", {name: tensors[name] for name in names})
    write_safetensors(directory / "b.safetensors", {"lm_head.weight": tensors["lm_head.weight"]})
    places = dict.fromkeys(names, "a.safetensors") | {"lm_head.weight": "b.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(JllamaError, match="differs from") if other else contextlib.nullcontext():
        load(directory)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bar_ends_where_the_weights_do(tmp_path, monkeypatch, dtype):
    told = {}

    class Bar:
        def __init__(self, label, total, *, enabled):
            told.update(label=label, total=total, enabled=enabled, came=0)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            told["closed"] = True

        def advance(self, count):
            told["came"] += count

    monkeypatch.setattr(reading, "ByteBar", Bar)
    _, params = load(write_directory(tmp_path / "m", KEYS, random_tensors(KEYS)), dtype)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert told == dict(label="loading weights", total=size, enabled=True, came=size, closed=True)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts with Linux's /proc")
@pytest.mark.parametrize("fails", [False, True])
def test_every_file_is_closed_again_and_every_thread_ended(tmp_path, fails):
    tensors = random_tensors(KEYS)
    if fails:
        tensors["lm_head.weight"][0, 0] = np.nan
    directory = write_shards(tmp_path / "m", KEYS, tensors)
    load(write_directory(tmp_path / "first", KEYS, random_tensors(KEYS)))  # opens what JAX keeps open
    before, threads = sorted(Path("/proc/self/fd").iterdir()), threading.active_count()
    with pytest.raises(JllamaError) if fails else contextlib.nullcontext():
        load(directory)
    assert threading.active_count() == threads
    gc.collect()
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_rope_factors_of_a_gguf_reach_the_configuration(tmp_path):
    tensors, factors = random_tensors(KEYS), np.linspace(1, 8, 16, dtype=np.float32)
    plain = write_gguf(tmp_path / "plain.gguf", KEYS, tensors)
    writer = gguf_writer(tmp_path / "m.gguf", KEYS)
    for stored in gguf.GGUFReader(plain).tensors:
        writer.add_tensor(stored.name, np.array(stored.data))
    writer.add_tensor("rope_freqs.weight", factors)
    finish(writer)
    before = sorted(Path("/proc/self/fd").iterdir())
    config, params = load(tmp_path / "m.gguf")
    assert sorted(Path("/proc/self/fd").iterdir()) == before, "it has read them from the file"
    assert config.rope.frequency_factors == tuple(factors.tolist())
    assert_same(params, load(plain)[1])


def test_gguf_fields_are_those_of_the_gguf_package(tmp_path):
    writer = gguf_writer(tmp_path / "m.gguf", KEYS)
    writer.add_token_list(["<s>", "é", "日本", ""])
    writer.add_token_scores([0.5, -1.0, 0.0, 2.0])
    writer.add_bool("test.yes", True)
    writer.add_float64("test.double", 0.1)
    writer.add_int64("test.long", -(2**40))
    writer.add_array("test.nested", [[1, 2], [3]])
    writer.add_array("test.empty_strings", [""])
    finish(writer)
    theirs = {
        key: field.contents()
        for key, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()
        if not key.startswith("GGUF.") and key != "test.nested"
    }
    ours = read_gguf_fields(tmp_path / "m.gguf")
    assert ours.pop("test.nested") == [[1, 2], [3]]
    assert ours == theirs


def test_smollm2(smollm2_gguf):
    config, params = load(smollm2_gguf, "bfloat16")
    assert (config.num_hidden_layers, config.vocab_size, config.rope.rope_theta) == (30, 49152, 100000.0)
    assert params.lm_head is None
    assert params.embed_tokens.dtype == jnp.bfloat16
    stored = open_gguf(smollm2_gguf).tensors
    assert {tensor.encoding.name for tensor in stored.values()} == {"F32", "Q4_1", "Q8_0"}


def test_story_holds_its_unembedding_only(story_dir):
    config, params = load(story_dir)
    assert config.tie_word_embeddings
    assert params.lm_head is None
    assert params.embed_tokens.shape == (2048, 128)


def test_the_device_takes_the_host_array_as_it_is(tmp_path, monkeypatch):
    """No second copy on a CPU: the array that was filled is the one that JAX holds."""
    filled = set()

    def recording(shape, dtype):
        array = aligned_empty(shape, dtype)
        filled.add(array.ctypes.data)
        return array

    monkeypatch.setattr("jllama.checkpoint.leaves.dense.aligned_empty", recording)
    _, params = load(write_directory(tmp_path / "m", KEYS, random_tensors(KEYS)))
    assert filled == {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
    assert not params.norm.committed


def test_weights_are_bound_to_a_device_only_if_one_is_named():
    """Else programs would be compiled twice: for arrays that are bound, and for those that are not."""
    assert not placed(np.ones(3)).committed
    assert placed(np.ones(3), jax.devices()[0]).committed


def test_a_device_may_be_named(tmp_path):
    files = resolve(str(write_directory(tmp_path / "m", KEYS, random_tensors(KEYS))))
    device = jax.devices()[0]
    params = load_params(files, read_config(files), "float32", placement=device)
    assert params.norm.committed
    assert params.norm.devices() == {device}


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_each_leaf_may_have_a_place_of_its_own(tmp_path, quantize):
    files = resolve(str(write_directory(tmp_path / "m", KEYS, random_tensors(KEYS))))
    config = read_config(files)
    device, layers = jax.devices()[0], config.num_hidden_layers
    placement = Params(embed_tokens=device, layers=(*[None] * (layers - 1), device), norm=None, lm_head=None)
    params = load_params(files, config, "float32", placement=placement, quantize=quantize)
    bound = [leaf.committed for leaf in jax.tree.leaves(params.layers[-1])]
    assert all(bound)
    assert all(leaf.committed for leaf in jax.tree.leaves(params.embed_tokens))
    assert not any(leaf.committed for leaf in jax.tree.leaves((params.layers[:-1], params.norm)))


def test_a_placement_of_another_shape_is_refused(tmp_path):
    files = resolve(str(write_directory(tmp_path / "m", KEYS, random_tensors(KEYS))))
    placement = Params(embed_tokens=None, layers=(None,) * 77, norm=None)
    with pytest.raises(JllamaError, match="placement: neither one place nor Params") as caught:
        load_params(files, read_config(files), "float32", placement=placement)
    assert "\\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float64", "int8", "float8_e4m3fn", "nonsense"])
def test_other_run_dtypes_are_refused(tmp_path, dtype):
    files = resolve(str(write_directory(tmp_path / "m", KEYS, random_tensors(KEYS))))
    with pytest.raises(JllamaError, match="use float32, bfloat16, float16"):
        load_params(files, read_config(files), dtype)


MEASURE = """
import sys, jax
from jllama.checkpoint import load_params, read_config
from jllama.hub.references import resolve
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
jax.devices()
before = peak()
files = resolve(sys.argv[1])
params = jax.block_until_ready(load_params(files, read_config(files), sys.argv[2]))
sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
print(before, peak(), sum(sizes), max(sizes))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures with Linux's /proc")
def test_peak_memory(tmp_path):
    from jllama.checkpoint.random_weights import write_random_checkpoint

    keys = KEYS | dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, vocab_size=16384)
    write_directory(tmp_path / "config", keys | dict(num_hidden_layers=8), {})
    write_random_checkpoint(tmp_path / "config" / "config.json", tmp_path / "big", shard_bytes=100_000_000)
    for dtype in ("bfloat16", "float16"):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "big"), dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        before, peak, total, largest = map(int, done.stdout.split())
        assert total > 250e6
        assert peak <= total + 2 * largest + 600 * 2**20
        assert peak - before <= total + 64 * 2**20, "loading took more than the parameters and 64 MiB"
        assert "loading weights" not in done.stdout


def test_model_files_say_where_the_configuration_is(tmp_path):
    assert ModelFiles(description="x", directory=tmp_path).config_path == tmp_path / "config.json"


def test_the_file_format_is_the_one_of_the_safetensors_package(tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = random_tensors(KEYS)
    write_directory(tmp_path / "ours", KEYS, tensors)
    theirs = load_file(write_safetensors(tmp_path / "x.safetensors", tensors))
    assert all(np.array_equal(theirs[name], tensor) for name, tensor in tensors.items())
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text((tmp_path / "ours" / "config.json").read_text())
    save_file(tensors, tmp_path / "theirs" / "model.safetensors")
    assert_same(load(tmp_path / "theirs")[1], load(tmp_path / "ours")[1])


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mesh", [None, SimpleNamespace(size=2)])
def test_what_a_load_asks_and_what_it_closes(tmp_path, monkeypatch, mesh, fails):
    files = resolve(str(write_directory(tmp_path / "m", KEYS, random_tensors(KEYS))))
    config, asked, closed = read_config(files), [], []
    ends = [SimpleNamespace(close=partial(closed.append, name)) for name in "ab"]

    def converter_for(mode, checkpoint, reader, dtype, bar, place):
        asked.append((place.func, place.keywords))
        return (lambda leaf, where: 1 // (not fails)), ends

    monkeypatch.setattr(reading, "check_cuts", lambda *given: asked.append(given))
    monkeypatch.setattr(reading, "numbers", lambda *_: 0)
    monkeypatch.setattr(reading, "converter_for", converter_for)
    monkeypatch.setattr(reading, "each_leaf", lambda config, placement, mesh, make: make((), None, None))
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        load_params(files, config, "float32", quantize="int8", pack=False, mesh=mesh, progress=False)
    ((mode, *_, given_mesh), (place, options)) = asked
    assert (mode, given_mesh, place) == ("int8", mesh, placed)
    assert options == {"pack": False, "alone": mesh is None}
    assert sorted(closed) == ["a", "b"]
