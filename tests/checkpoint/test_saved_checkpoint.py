"""Quantised directories: every tensor's kind and shape is checked before the first is read."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jllama.checkpoint import load_params, read_config
from jllama.checkpoint.formats.saved import save
from jllama.config import LayerKind
from jllama.errors import JllamaError
from jllama.hub.references import resolve
from jllama.layers.cache import KVCache
from jllama.layers.qtensor import QTensor
from jllama.layers.rope import Rope
from jllama.model import forward
from tests.support.checkpoint_files import KEYS, write_directory
from tests.support.checkpoint_generator import random_tensors

BIASED = KEYS | dict(attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A quantised directory of each mode."""
    place = tmp_path_factory.mktemp("sound")
    files = resolve(str(write_directory(place / "full", BIASED, random_tensors(BIASED))))
    config = read_config(files)
    for mode in ("int8", "int4"):
        params = load_params(files, config, "float32", quantize=mode, pack=False)
        save(files, config, params, place / mode, mode)
    return place


def load(directory):
    files = resolve(str(directory))
    return load_params(files, read_config(files), "float32")


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_biases_stay_as_they_are_and_the_model_runs(sound, mode):
    files = resolve(str(sound / mode))
    config, params = read_config(files), load_params(files, read_config(files), "float32", pack=False)
    block = params.layers[0]
    biases = (block.attention.qkv_bias, block.attention.o_bias, block.mlp.gate_up_bias, block.mlp.down_bias)
    assert [bias.dtype for bias in biases] == [jnp.float32] * 4
    assert isinstance(block.mlp.gate_up_proj, QTensor)
    full = load(sound / "full")
    tokens = jnp.array([[1, 2, 3]], jnp.int32)
    cache = KVCache.empty(config, batch=1, max_len=4, dtype="float32")
    ours, theirs = (np.asarray(forward(config, tree, tokens, cache)[0]) for tree in (params, full))
    assert np.abs(ours - theirs).max() < 0.3 * np.abs(theirs).max()


@pytest.mark.parametrize("keys", [{}, {"bos_token_id": 3}, {"bos_token_id": 3, "eos_token_id": [4, 5]}])
def test_what_config_json_says_of_tokens_is_kept(sound, tmp_path, keys):
    files = resolve(str(write_directory(tmp_path / "full", BIASED | keys, random_tensors(BIASED))))
    config = read_config(files)
    save(files, config, load_params(files, config, "float32"), tmp_path / "saved", "int8")
    kept = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {name: kept[name] for name in ("bos_token_id", "eos_token_id") if name in kept} == keys
    assert kept["quantization_config"] == {"quant_method": "jllama", "mode": "int8", "version": 1}
    readable = [(tmp_path / "saved" / name).stat().st_mode for name in ("config.json", "model.safetensors")]
    assert readable[0] == readable[1]


def test_a_configuration_of_several_layer_kinds_is_kept(sound, tmp_path):
    files = resolve(str(sound / "int8"))
    factors = Rope(frequency_factors=(1.0,) * (read_config(files).head_dim // 2))
    kinds = (LayerKind(window=7), LayerKind(rope=None), LayerKind(rope=factors))
    config = dataclasses.replace(read_config(files), layer_kinds=kinds, rope=factors)
    params = load_params(files, config, "float32", pack=False)
    save(files, config, params, tmp_path / "again", "int8")
    assert read_config(resolve(str(tmp_path / "again"))) == config


DOWN, NORM, BIAS = "layers.0.mlp.down_proj", "norm", "layers.0.mlp.gate_up_bias"


def bad(part, change):
    """A change to one tensor of a quantised weight."""

    def damage(tensors):
        name = f"{DOWN}.{part}"
        tensors[name] = change(tensors[name])

    return damage


def put(**changes):
    def damage(tensors):
        tensors.update({name.replace("__", "."): value for name, value in changes.items()})

    return damage


def not_a_number(array):
    array = array.copy()
    array.flat[-1] = np.nan
    return array


def dense_as_parts(name):
    """A vector in the form of a quantised matrix."""

    def damage(tensors):
        vector = tensors.pop(name)
        tensors[f"{name}.values"] = np.ones((1, vector.size), np.int8)
        tensors[f"{name}.scales"] = np.ones((1, 1), np.float32)

    return damage


DAMAGES = {
    "no values": lambda tensors: tensors.pop(f"{DOWN}.values"),
    "no scales": lambda tensors: tensors.pop(f"{DOWN}.scales"),
    "no norm": lambda tensors: tensors.pop(NORM),
    "values of 32 bits": bad("values", lambda a: a.astype(np.int32)),
    "values with a row too many": bad("values", lambda a: np.concatenate([a, a[:1]])),
    "values with a column too few": bad("values", lambda a: a[:, :-1]),
    "values that are flat": bad("values", np.ravel),
    "scales that are whole": bad("scales", lambda a: a.astype(np.int32)),
    "scales that are wide": bad("scales", lambda a: a.astype(np.float64)),
    "scales that are flat": bad("scales", np.ravel),
    "no groups": bad("scales", lambda a: a[:, :0]),
    "groups that do not divide": bad("scales", lambda a: np.tile(a[:, :1], (1, 7))),
    "NaN scales": bad("scales", not_a_number),
    "a weight twice": put(**{DOWN: np.ones((64, 96), np.float32)}),
    "a stranger": put(vision=np.ones(3, np.float32)),
    "a whole norm": put(**{NORM: np.ones(64, np.int32)}),
    "a NaN norm": put(**{NORM: np.full(64, np.nan, np.float32)}),
    "a short norm": put(**{NORM: np.ones(63, np.float32)}),
    "a quantised norm": dense_as_parts(NORM),
    "a quantised bias": dense_as_parts(BIAS),
}
DAMAGES_4 = {
    "groups of one": bad("scales", lambda a: np.tile(a[:, :1], (1, 96))),
    "NaN offsets": bad("offsets", not_a_number),
    "other offsets": bad("offsets", lambda a: a[:, :1]),
    "wider offsets": bad("offsets", lambda a: a.astype(np.float32)),
}


@pytest.mark.parametrize(
    ("mode", "damage"),
    [
        *(("int8", damage) for damage in DAMAGES.values()),
        *(("int4", damage) for damage in DAMAGES_4.values()),
    ],
    ids=[*DAMAGES, *DAMAGES_4],
)
def test_tensors_that_do_not_fit_are_refused(sound, tmp_path, mode, damage):
    directory = tmp_path / "small"
    shutil.copytree(sound / mode, directory)
    tensors = load_file(directory / "model.safetensors")
    damage(tensors)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(JllamaError, match="quantise the model again"):
        load(directory)


ROPE = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_type", "longrope"),
        ("rope_type", []),
        ("rope_theta", "x"),
        ("rope_theta", 0.0),
        ("factor", None),
        ("factor", float("nan")),
        ("original_max_position_embeddings", 0),
        ("beta_fast", 5e-324),
        ("attention_factor", -1.0),
        ("truncate", 1),
        ("frequency_factors", [1.0] * 7),
        ("frequency_factors", 5),
        ("a_new_trick", 1),
    ],
)
def test_rope_settings_that_no_model_has_are_refused(sound, tmp_path, key, value):
    directory = tmp_path / "small"
    shutil.copytree(sound / "int8", directory)
    keys = json.loads((directory / "config.json").read_text())
    keys["jllama"]["rope"] |= ROPE | {key: value}
    (directory / "config.json").write_text(json.dumps(keys))
    with pytest.raises(JllamaError, match=r"config.json is damaged .*quantise the model again"):
        load(directory)


def test_the_run_dtype_holds_what_is_not_quantised(sound, tmp_path):
    directory = tmp_path / "small"
    shutil.copytree(sound / "int8", directory)
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {NORM: np.full(64, 70000.0, np.float32)}, directory / "model.safetensors")
    files = resolve(str(directory))
    with pytest.raises(JllamaError, match=r"norm holds numbers that are .*too large for float16"):
        load_params(files, read_config(files), "float16")
    assert load_params(files, read_config(files), "bfloat16").norm.dtype == jnp.bfloat16
