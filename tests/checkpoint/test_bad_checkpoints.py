"""Whatever is wrong with a checkpoint is said in a `JllamaError`, before anything big is allocated."""

import itertools
import json
import math
import struct

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

from jllama.checkpoint import load_params, read_config, read_gguf_fields
from jllama.checkpoint.formats.safetensors import read_header
from jllama.errors import JllamaError
from jllama.families.tensor_names import from_hf, to_gguf
from jllama.hub.references import resolve
from jllama.text.tokenizer import Tokenizer
from tests.support.checkpoint_files import (
    KEYS,
    finish,
    gguf_writer,
    header_of,
    write_directory,
    write_gguf,
    write_safetensors,
    write_shards,
)
from tests.support.checkpoint_generator import random_tensors


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(KEYS)


def load(path, dtype="float32"):
    files = resolve(str(path))
    return load_params(files, read_config(files), dtype)


def refused(path, words, dtype="float32"):
    with pytest.raises(JllamaError, match=words) as caught:
        load(path, dtype)
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


def test_all_that_does_not_fit_is_named_at_once(tmp_path, tensors, monkeypatch):
    monkeypatch.setattr("jllama.checkpoint.leaves.dense.aligned_empty", None)  # nothing may be allocated
    odd = dict(tensors)
    del odd["model.layers.1.mlp.up_proj.weight"], odd["model.norm.weight"]
    odd["model.layers.0.self_attn.q_proj.bias"] = odd["vision.weight"] = np.zeros(128, np.float32)
    odd["model.layers.0.self_attn.k_proj.weight"] = np.zeros((64, 63), np.float32)
    odd["lm_head.weight"] = np.zeros((63, 64), np.float32)
    message = refused(write_directory(tmp_path / "m", KEYS, odd), "does not fit its configuration")
    assert "missing: model.norm.weight, model.layers.1.mlp.up_proj.weight; " in message.replace(
        "model.layers.1.mlp.up_proj.weight, model.norm.weight",
        "model.norm.weight, model.layers.1.mlp.up_proj.weight",
    )
    assert "model.layers.0.self_attn.q_proj.bias" in message
    assert "vision.weight" in message
    assert "model.layers.0.self_attn.k_proj.weight [64, 63], not [64, 64]" in message
    assert "lm_head.weight [63, 64], not [64, 64]" in message


def test_gguf_tensors_are_named_as_the_file_names_them(tmp_path, tensors):
    odd = {name: tensor for name, tensor in tensors.items() if name != "model.layers.1.mlp.up_proj.weight"}
    refused(write_gguf(tmp_path / "m.gguf", KEYS, odd), r"missing: blk\.1\.ffn_up\.weight$")


@pytest.mark.parametrize(
    ("ending", "says"),
    [("qweight", "AWQ or GPTQ"), ("weight_packed", "by another program"), ("lora_A.weight", "an adapter")],
)
def test_weights_of_another_kind_are_named(tmp_path, tensors, ending, says):
    odd = tensors | {f"model.layers.0.mlp.up_proj.{ending}": np.zeros((4, 4), np.float32)}
    refused(
        write_directory(tmp_path / "m", KEYS, odd), f"{says}.*: extra: model.layers.0.mlp.up_proj.{ending}"
    )


def test_a_long_list_is_folded_over_the_layers(tmp_path, tensors):
    keys = KEYS | dict(num_hidden_layers=12)
    message = refused(write_directory(tmp_path / "m", keys, tensors), "missing")
    assert "model.layers.{2,3,4,5,6,7,8,9,10,11}.mlp.up_proj.weight" in message
    assert len(message) < 1500


def entry(**changes):
    """A change to one tensor's header entry."""

    def change(header):
        header["model.norm.weight"] |= changes
        return header

    return change


def stretch(header):
    """The last tensor claims more rows and bytes than the file has."""
    name = max(header, key=lambda name: header[name]["data_offsets"][1])
    begin, end = header[name]["data_offsets"]
    columns = (end - begin) // 4 // header[name]["shape"][0]
    header[name] = dict(
        dtype="F32", shape=[10**9, columns], data_offsets=[begin, begin + 4 * columns * 10**9]
    )
    return header


def first_of_other_length(rows):
    """The first tensor claims other rows than it has; the next stands where it stood."""

    def change(header):
        name = min(header, key=lambda name: header[name]["data_offsets"][1])
        (had, *columns), (begin, end) = header[name]["shape"], header[name]["data_offsets"]
        longer = (end - begin) // had * (had + rows)
        header[name] |= dict(shape=[had + rows, *columns], data_offsets=[begin, begin + longer])
        return header

    return change


LIES = {
    "shape and bytes disagree": (entry(shape=[65]), "makes no sense"),
    "fewer numbers than bytes": (entry(shape=[63]), "makes no sense"),
    "no numbers": (entry(shape=[0]), "makes no sense"),
    "negative shape": (entry(shape=[-1, -64]), "makes no sense"),
    "shape of floats": (entry(shape=[64.0]), "makes no sense"),
    "no list": (entry(shape=64), "makes no sense"),
    "offsets backwards": (entry(data_offsets=[256, 0]), "makes no sense"),
    "one offset": (entry(data_offsets=[0]), "makes no sense"),
    "huge offsets": (entry(data_offsets=[2**70, 2**70 + 256]), "truncated"),
    "beyond the end": (stretch, "truncated"),
    "overlap": (first_of_other_length(1), "overlaps the tensor before"),
    "a gap": (first_of_other_length(-1), "lies behind a gap"),
    "an axis too many": (entry(shape=[1] * 9), "makes no sense"),
    "axes without end": (entry(shape=[2**62] * 10**5), "makes no sense"),
    "integers": (entry(dtype="I32"), r"cannot read: model\.norm\.weight \(I32\)"),
    "unknown type": (entry(dtype="F3"), r"cannot read: model\.norm\.weight \(F3\)"),
    "type of no string": (entry(dtype=5), "makes no sense"),
    "entry of no object": (lambda header: header | {"model.norm.weight": 5}, "makes no sense"),
    "a list": (lambda header: [header], "no safetensors header"),
    "a string": (lambda header: "nothing", "no safetensors header"),
}


@pytest.mark.parametrize(("change", "words"), LIES.values(), ids=LIES)
def test_lies_of_a_safetensors_header(tmp_path, tensors, change, words):
    directory = write_directory(tmp_path / "m", KEYS, tensors)
    write_safetensors(directory / "model.safetensors", tensors, change(header_of(tensors)))
    refused(directory, words)


DAMAGE = {
    "empty": lambda data: b"",
    "seven bytes": lambda data: data[:7],
    "inside the header": lambda data: data[:100],
    "without the last byte": lambda data: data[:-1],
    "a text": lambda data: b"version https://example.org\n" * 9,
    "header length of 2**63": lambda data: b"\xff" * 7 + b"\x7f" + data[8:],
    "header length one less": lambda data: (
        struct.pack("<Q", struct.unpack_from("<Q", data)[0] - 1) + data[8:]
    ),
    "no JSON": lambda data: data[:8] + b"x" + data[9:],
    "no UTF-8": lambda data: data[:8] + b"\xff" + data[9:],
    "bytes behind the tensors": lambda data: data + bytes(7),
    "a name twice": lambda data: data.replace(
        b"model.layers.1.input_layernorm", b"model.layers.0.input_layernorm"
    ),
    "deep JSON": lambda data: struct.pack("<Q", 10**6) + b"[" * 10**6,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_safetensors(tmp_path, tensors, damage):
    directory = write_directory(tmp_path / "m", KEYS, tensors)
    file = directory / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    refused(directory, "model.safetensors .*(truncated|no safetensors|overlap|belong to no tensor)")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 9\n"
STAND_INS = {
    "pointer": (LFS, "is a Git LFS pointer, not the file itself: run `git lfs pull`$"),
    "page": (
        b"<!DOCTYPE html>\n<title>x</title>",
        r"is a web page, not the file: download it again \(the raw",
    ),
    "short page": (b"\xef\xbb\xbf\n<HTML></HTML>", "is a web page"),
}


@pytest.mark.parametrize(("content", "says"), STAND_INS.values(), ids=STAND_INS)
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "m.gguf", "sha256-0a1b", "config.json", "tokenizer.json", "tokenizer.model"],
)
def test_what_stands_in_a_files_place(tmp_path, name, content, says):
    file = tmp_path / name
    (tmp_path / "config.json").write_text(json.dumps(KEYS))
    file.write_bytes(content)
    read = Tokenizer.from_dir if name.startswith("tokenizer") else load
    with pytest.raises(JllamaError, match=f"{name} {says}"):
        read(tmp_path if file.suffix in (".safetensors", ".json", ".model") else file)


def test_float8_is_refused_by_name(tmp_path, tensors):
    name = list(tensors)[-1]
    eighths = tensors | {name: tensors[name][..., : tensors[name].shape[-1] // 4]}
    header = header_of(eighths)
    header[name] |= dict(dtype="F8_E4M3", shape=list(tensors[name].shape))
    directory = write_directory(tmp_path / "m", KEYS, tensors)
    write_safetensors(directory / "model.safetensors", eighths, header)
    refused(directory, rf"type that jllama cannot read: {name} \(F8_E4M3\)$")


def test_shards(tmp_path, tensors):
    directory = write_shards(tmp_path / "m", KEYS, tensors)
    second, index = directory / "model-00002-of-00003.safetensors", directory / "model.safetensors.index.json"
    content, listed = second.read_bytes(), index.read_text()
    second.unlink()
    refused(directory, "lacks the shards model-00002-of-00003.safetensors")
    second.write_bytes((directory / "model-00001-of-00003.safetensors").read_bytes())
    refused(directory, r"model-00001-of-00003.safetensors and model-00002-of-00003.safetensors .*both hold")
    second.write_bytes(content)
    for text in ("", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": []}}'):
        index.write_text(text)
        refused(directory, r"index\.json .*(no index with a weight_map|not JSON|no JSON object)")
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors", "b": 5 and "y/z"}}))
    refused(directory, "no plain file names")
    index.unlink()
    refused(directory, r"3 safetensors files but no model\.safetensors\.index\.json")
    index.write_text(listed)
    load(directory)


def test_an_index_left_beside_the_single_file_is_not_read(tmp_path, tensors):
    directory = write_shards(tmp_path / "m", KEYS, tensors)
    for shard in directory.glob("*.safetensors"):
        shard.unlink()
    load(write_directory(directory, KEYS, tensors))


def test_directories_without_safetensors(tmp_path):
    directory = write_directory(tmp_path / "m", KEYS, {})
    (directory / "model.safetensors").unlink()
    refused(directory, "no safetensors weights; download")
    (directory / "pytorch_model.bin").touch()
    refused(directory, "bin files are not read: convert them")


BAD_GGUF = {
    "empty": lambda data: b"",
    "magic alone": lambda data: data[:4],
    "foreign": lambda data: b"PK\x03\x04" + data[4:],
    "version 1": lambda data: data[:4] + struct.pack("<I", 1) + data[8:],
    "big-endian": lambda data: data[:4] + struct.pack(">I", 3) + data[8:],
    "inside the metadata": lambda data: data[:200],
    "inside the tensor list": lambda data: data[:1500],
    "inside the tensors": lambda data: data[:-4000],
    "2**60 tensors": lambda data: data[:8] + struct.pack("<Q", 2**60) + data[16:],
    "2**60 fields": lambda data: data[:16] + struct.pack("<Q", 2**60) + data[24:],
    "a key of 2**62 bytes": lambda data: data[:24] + struct.pack("<Q", 2**62) + data[32:],
}


@pytest.mark.parametrize("damage", BAD_GGUF.values(), ids=BAD_GGUF)
def test_damaged_gguf(tmp_path, tensors, damage):
    path = write_gguf(tmp_path / "m.gguf", KEYS, tensors)
    path.write_bytes(damage(path.read_bytes()))
    refused(path, "m.gguf (is|has) (no GGUF|too short|truncated|GGUF version)")


def test_a_gguf_that_lacks_metadata(tmp_path, tensors):
    path = write_gguf(tmp_path / "m.gguf", KEYS, tensors)
    path.write_bytes(path.read_bytes().replace(b"llama.block_count", b"llama.block_xxxxx"))
    refused(path, r"lacks llama\.block_count")
    with pytest.raises(JllamaError, match="cannot read"):
        read_gguf_fields(tmp_path / "absent.gguf")


def test_gguf_types_that_cannot_be_dequantised(tmp_path, tensors):
    path = write_gguf(tmp_path / "m.gguf", KEYS, tensors, GgmlType.F16)
    data = path.read_bytes()
    place = data.index(b"output.weight") + len(b"output.weight") + 4 + 16
    for kind, name in ((GgmlType.I16, "I16"), (999, "type 999")):
        path.write_bytes(data[:place] + struct.pack("<I", kind) + data[place + 4 :])
        refused(path, rf"cannot read: output\.weight \({name}\)")


def test_blocks_that_straddle_rows_are_refused(tmp_path):
    """Rows of 48 numbers in blocks of 32: half a block of each second row would be its neighbour's."""
    keys = KEYS | dict(intermediate_size=48)
    writer = gguf_writer(tmp_path / "m.gguf", keys)
    for name, tensor in random_tensors(keys).items():
        kind = GgmlType.Q8_0 if name.endswith("mlp.down_proj.weight") else GgmlType.F32
        flat = gguf.quants.quantize(tensor.reshape(-1, 64) if kind == GgmlType.Q8_0 else tensor, kind)
        writer.add_tensor(to_gguf(str(from_hf(name))), flat, raw_dtype=kind)
    finish(writer)
    path = tmp_path / "m.gguf"
    data, name = bytearray(path.read_bytes()), b"blk.0.ffn_down.weight"
    struct.pack_into("<2Q", data, data.index(name) + len(name) + 4, 48, 64)
    path.write_bytes(data)
    refused(path, r"cannot read: .*ffn_down\.weight \(Q8_0\)")


def test_a_vector_of_blocks_is_refused(tmp_path, tensors):
    writer = gguf_writer(tmp_path / "m.gguf", KEYS)
    for name, tensor in tensors.items():
        kind = GgmlType.Q8_0 if name == "model.norm.weight" else GgmlType.F32
        writer.add_tensor(to_gguf(str(from_hf(name))), gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    finish(writer)
    refused(tmp_path / "m.gguf", r"cannot read: output_norm\.weight \(Q8_0\)$")


NOT_FINITE = [
    (stored, bad) for stored in ("float32", "bfloat16", "float16") for bad in ("nan", "inf", "-inf")
]


@pytest.mark.parametrize(("stored", "bad"), NOT_FINITE)
def test_numbers_that_are_not_finite(tmp_path, tensors, stored, bad):
    name = "model.layers.1.mlp.up_proj.weight"
    odd = {key: value.copy() for key, value in tensors.items()}
    odd[name][-1, -1] = float(bad)
    directory = write_directory(tmp_path / "m", KEYS, odd, stored)
    for dtype in ("float32", "bfloat16", "float16"):
        refused(directory, f"{name} in .* NaN or infinite", dtype)


def test_numbers_too_large_for_the_run_dtype(tmp_path, tensors):
    odd = {key: value.copy() for key, value in tensors.items()}
    odd["model.norm.weight"][3] = 70000.0
    directory = write_directory(tmp_path / "m", KEYS, odd)
    refused(directory, r"model\.norm\.weight in .* too large for float16; use bfloat16", "float16")
    load(directory, "bfloat16")
    odd["model.norm.weight"][3] = 3.4e38
    directory = write_directory(tmp_path / "m", KEYS, odd)
    refused(directory, "too large for bfloat16; use float32", "bfloat16")
    load(directory, "float32")


@pytest.mark.filterwarnings("ignore:GGUF. keys that jllama does not know")
@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_random_damage_is_a_clean_error_or_harmless(tmp_path, tensors, suffix):
    """Any byte of the header changed: an error of ours or numbers, never another exception."""
    directory = write_directory(tmp_path / "m", KEYS, tensors)
    path = directory / "model.safetensors"
    if suffix == "gguf":
        path = directory = write_gguf(tmp_path / "m.gguf", KEYS, tensors)
    sound, random = bytearray(path.read_bytes()), np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        damaged = sound.copy()
        for place, byte in random.integers((0, 0), (3000, 256), (random.integers(1, 4), 2)):
            damaged[place] = byte
        path.write_bytes(damaged)
        try:
            files = resolve(str(directory))
            load_params(files, read_config(files), "float32")
            outcomes.add("harmless")
        except JllamaError:
            outcomes.add("refused")
    assert outcomes == {"refused", "harmless"} or suffix == "safetensors"


def test_a_file_that_shrinks_while_it_is_read(tmp_path, tensors):
    directory = write_directory(tmp_path / "m", KEYS, tensors)
    path = directory / "model.safetensors"
    stored = max(read_header(path), key=lambda stored: stored.offset)
    from jllama.checkpoint.formats.stored import Reader

    reader = Reader()
    reader.open(path)
    with path.open("r+b") as file:
        file.truncate(stored.offset)
    with pytest.raises(JllamaError, match="ends inside"):
        reader.read(stored, 0, np.empty(stored.nbytes, np.uint8))
    reader.close()


def test_names_are_a_bijection():
    from jllama.checkpoint.layout import parts
    from jllama.config import ModelConfig
    from jllama.families import tensor_names

    config = ModelConfig.from_hf(KEYS | dict(attention_bias=True, mlp_bias=True))
    ours = list(parts(config))
    assert [tensor_names.from_gguf(tensor_names.to_gguf(name)) for name in ours] == ours
    assert [tensor_names.from_hf(tensor_names.to_hf(name)) for name in ours] == ours
    assert not any(a == b for a, b in itertools.pairwise(sorted(map(tensor_names.to_gguf, ours))))


ODD = (None, 0, -1, 1.5, float("nan"), float("inf"), "x", [], [1], {}, {"a": 1}, True, 2**70, [[]])


def test_values_of_any_type_in_a_configuration_are_refused_or_harmless():
    from jllama.config import ModelConfig

    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16}
    keys = KEYS | dict(rope_parameters=rope, hidden_act="silu", layer_types=["full_attention"] * 2)
    changed = [keys | {key: odd} for key in keys for odd in ODD]
    changed += [keys | {"rope_parameters": rope | {key: odd}} for key in rope for odd in ODD]
    for content in changed:
        try:
            config = ModelConfig.from_hf(content)
        except JllamaError:
            continue
        assert all(map(math.isfinite, (config.rope.rope_theta, config.rope.factor, config.rms_norm_eps)))


def test_values_of_any_type_in_gguf_metadata_are_refused_or_harmless(tmp_path, tensors):
    from jllama.config import ModelConfig

    fields = read_gguf_fields(write_gguf(tmp_path / "m.gguf", KEYS, tensors))
    fields |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    fields |= {
        "llama.rope.freq_base": 1e4,
        "tokenizer.ggml.tokens": ["a"],
        "llama.attention.sliding_window": 5,
    }
    for key in fields:
        for odd in ODD:
            try:
                config = ModelConfig.from_gguf(fields | {key: odd}, [])
            except JllamaError:
                continue
            assert all(map(math.isfinite, (config.rope.rope_theta, config.rope.factor, config.rms_norm_eps)))


def test_an_absurd_number_of_layers_is_refused_before_it_is_planned(tmp_path, tensors):
    refused(write_directory(tmp_path / "m", KEYS | dict(num_hidden_layers=2**30), tensors), "absurd")
