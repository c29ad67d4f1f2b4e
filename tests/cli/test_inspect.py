"""`inspect_model.py` and `make_random_checkpoint.py`, run as a user runs them, and their arithmetic."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

from jllama.checkpoint import load_params, read_config
from jllama.checkpoint.formats.safetensors import read_header
from jllama.checkpoint.random_weights import write_random_checkpoint
from jllama.checkpoint.sizes import cache_bytes, parameter_bytes, parameter_count
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.hub.references import resolve
from jllama.layers.cache import KVCache
from tests.support.checkpoint_files import KEYS, write_directory, write_gguf
from tests.support.checkpoint_generator import random_tensors
from tests.support.helpers import random_params
from tests.support.scripts_helpers import Outcome, environment, start
from tests.support.small_models import SMALL_MODELS

INSPECT, MAKE = "inspect_model.py", "make_random_checkpoint.py"
TINYLLAMA = dict(
    model_type="llama",
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    max_position_embeddings=2048,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
)


def failure(outcome: Outcome) -> str:
    """The script's message, when it ends as a user's mistake should."""
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert len(outcome.err.strip().splitlines()) <= 2
    return outcome.err


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_sizes_are_those_of_the_real_arrays(name):
    config = ModelConfig.from_hf(SMALL_MODELS[name])
    leaves = jax.tree.leaves(random_params(config))
    assert parameter_count(config) == sum(leaf.size for leaf in leaves)
    assert parameter_bytes(config, "float32") == sum(leaf.nbytes for leaf in leaves)
    cache = KVCache.empty(config, batch=3, max_len=17, dtype="bfloat16")
    planned = cache_bytes(config, batch=3, max_len=17, dtype="bfloat16")
    assert planned == sum(leaf.nbytes for leaf in jax.tree.leaves(cache))


@pytest.mark.parametrize("as_file", [True, False])
def test_tinyllama_from_its_configuration_alone(server, tmp_path, as_file):
    (tmp_path / "config.json").write_text(json.dumps(TINYLLAMA))
    done = server.run(INSPECT, f"--model={tmp_path / 'config.json' if as_file else tmp_path}")
    assert (done.code, done.err) == (0, "")
    assert "1,100,048,384" in done.out
    assert "4,196.35 MiB" in done.out
    assert "model.layers.21.self_attn.k_proj.weight" in done.out
    assert "44.00 MiB" in done.out  # the cache of 2,048 positions in bfloat16


def test_inspect_a_checkpoint_as_json(server, tmp_path):
    tensors = random_tensors(KEYS)
    for path in (
        write_directory(tmp_path / "m", KEYS, tensors, "float16"),
        write_gguf(tmp_path / "m.gguf", KEYS, tensors),
    ):
        report = server.run(INSPECT, f"--model={path}", "--json", "--max_seq_len=10", "--batch=2").report
        assert report["config"]["head_dim"] == 32
        assert report["parameters"] == sum(tensor.size for tensor in tensors.values())
        assert report["kv_cache"]["bytes"]["float32"] == 2 * (2 * 2 * 2 * 32 * 10 * 4 + 4)
        width = {"F16": 2, "F32": 4}
        held = {entry["dtype"]: 0 for entry in report["tensors"]}
        for entry in report["tensors"]:
            held[entry["dtype"]] += 1
            assert entry["bytes"] == width[entry["dtype"]] * np.prod(entry["shape"])
        assert held == ({"F16": len(tensors)} if path.is_dir() else {"F32": len(tensors)})
        kept = (
            {} if path.is_dir() else {"auto": report["parameter_bytes"]["bfloat16"]}
        )  # nothing is in blocks
        assert kept.items() <= report["parameter_bytes"].items()
        assert len(report["parameter_bytes"]) == 3 + len(kept)


def test_inspect_tells_what_a_gguf_takes_as_it_is_stored(server, tmp_path):
    tensors = random_tensors(KEYS)
    path = write_gguf(tmp_path / "m.gguf", KEYS, tensors, GgmlType.Q5_0)
    report = server.run(INSPECT, f"--model={path}", "--json").report
    matrices = sum(tensor.size for tensor in tensors.values() if tensor.ndim == 2)
    vectors = report["parameters"] - matrices
    assert report["parameter_bytes"]["auto"] == matrices * 34 // 32 + vectors * 2


def test_inspect_shows_a_ready_made_shape(server):
    report = server.run(INSPECT, "tinyllama-1.1b", "--json").report
    assert (report["tensors_from"], report["config"]["vocab_size"]) == ("config.json", 32000)


def test_inspect_refuses_clearly(server, tmp_path, config_file):
    def refused(*flags: str) -> str:
        return failure(server.run(INSPECT, *flags))

    assert "no model: give --model" in refused()
    assert "no such model" in refused("--model=./absent")
    assert "did you mean 'smollm2'" in refused("--model=smollm")
    assert "must be at least 1" in refused(f"--model={config_file}", "--max_seq_len=-1")
    assert "batch" in refused(f"--model={config_file}", "--batch=0")
    (tmp_path / "bad.json").write_text("{")
    assert "is not JSON" in refused(f"--model={tmp_path / 'bad.json'}")


def test_random_checkpoints_load_and_sharding_changes_nothing(server, tmp_path, config_file):
    write_random_checkpoint(config_file, tmp_path / "one", dtype="float32", seed=3)
    flags = [f"--config={config_file}", f"--output={tmp_path / 'many'}", "--seed=3", "--shard_size=40KB"]
    done = server.run(MAKE, *flags, "--dtype=float32")
    assert (done.code, done.out) == (0, "")
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 3
    loaded = []
    for name in ("one", "many"):
        files = resolve(str(tmp_path / name))
        loaded.append(load_params(files, read_config(files), "float32"))
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, loaded), strict=True))
    weights, norm = np.asarray(loaded[0].layers[0].mlp.gate_up_proj), np.asarray(loaded[0].norm)
    assert abs(weights.std() - 0.02) < 0.001
    assert abs(norm.mean() - 1.0) < 0.02
    assert not np.array_equal(weights[0], weights[1])


@pytest.mark.parametrize(("dtype", "held"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_random_checkpoints_in_narrow_types(tmp_path, config_file, dtype, held):
    write_random_checkpoint(config_file, tmp_path / "m", dtype=dtype, scale=0.5)
    write_random_checkpoint(config_file, tmp_path / "wide", dtype="float32", scale=0.5)
    assert {tensor.encoding.name for tensor in read_header(tmp_path / "m" / "model.safetensors")} == {held}
    narrow, wide = (
        load_params(files, read_config(files), "float32")
        for files in (resolve(str(tmp_path / "m")), resolve(str(tmp_path / "wide")))
    )
    rounded = np.asarray(wide.embed_tokens).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    np.testing.assert_array_equal(np.asarray(narrow.embed_tokens), rounded.astype(np.float32))


def test_random_checkpoints_are_readable_by_the_safetensors_package(tmp_path, config_file):
    from safetensors.numpy import load_file

    write_random_checkpoint(config_file, tmp_path / "m", dtype="float32")
    theirs = load_file(tmp_path / "m" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in theirs.items()} == {
        name: tensor.shape for name, tensor in random_tensors(KEYS).items()
    }


def test_tokenizer_files_come_along(tmp_path, config_file):
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"):
        (config_file.parent / name).write_text(name)
    templates = config_file.parent / "additional_chat_templates"
    templates.mkdir()
    (templates / "rag.jinja").write_text("{{ messages }}")
    write_random_checkpoint(config_file, tmp_path / "m", tokenizer=config_file.parent)
    assert (tmp_path / "m" / "additional_chat_templates" / "rag.jinja").is_file()
    assert (tmp_path / "m" / "tokenizer.json").read_text() == "tokenizer.json"
    assert (tmp_path / "m" / "generation_config.json").exists()
    assert (tmp_path / "m" / "model.safetensors").stat().st_size > 1000


def test_random_checkpoint_refuses_clearly(server, tmp_path, config_file):
    def refused(*flags: str) -> str:
        return failure(server.run(MAKE, *flags))

    config = f"--config={config_file}"
    assert "give both" in refused(config)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    assert "exists already" in refused(config, f"--output={tmp_path / 'taken'}")
    assert "such as 2GB" in refused(config, f"--output={tmp_path / 'new'}", "--shard_size=many")
    assert "cannot read" in refused(f"--config={tmp_path}/no.json", f"--output={tmp_path / 'new'}")
    with pytest.raises(JllamaError, match="holds no tokenizer files"):
        write_random_checkpoint(config_file, tmp_path / "new", tokenizer=tmp_path / "taken")
    assert not (tmp_path / "new").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path, config_file):
    """A limit on file sizes stands in for a full disk."""
    flags = [f"--config={config_file}", f"--output={tmp_path / 'out' / 'm'}"]
    message = failure(start(MAKE, *flags, env=environment(tmp_path / "cache"), file_blocks=40))
    assert "cannot write" in message
    assert "nothing was left there" in message
    assert list((tmp_path / "out").iterdir()) == []


def test_inspect_says_over_how_many_layers_a_pattern_repeats(server, tmp_path):
    """Eight layers whose pattern is of six: it is said that it repeats, and over how many."""
    keys = TINYLLAMA | dict(model_type="gemma3_text", num_hidden_layers=8, sliding_window=512)
    (tmp_path / "config.json").write_text(json.dumps(keys))
    text = server.run(INSPECT, f"--model={tmp_path}", "--notensors").out
    kinds = next(line.split(maxsplit=1)[1] for line in text.splitlines() if "layer_kinds" in line)
    assert [run.partition(",")[0] for run in kinds.split("; ")] == [
        "5 × sees 512 positions",
        "1 × sees everything",
        "repeated over 8 layers",
    ]
    assert "sliding_window " not in text
