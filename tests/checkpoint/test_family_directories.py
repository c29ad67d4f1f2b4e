"""Directories that jllama writes of every family: quantised ones, and ones of random weights."""

import json
import math

import jax
import numpy as np
import pytest

from jllama.checkpoint import load_params, open_checkpoint, read_config
from jllama.checkpoint.formats.saved import save
from jllama.checkpoint.random_weights import write_random_checkpoint
from jllama.hub.references import resolve
from jllama.layers.qtensor import QTensor
from tests.support.family_files import MODELS, write_gguf, write_hf


def config_type(name: str) -> str:
    return MODELS[name]["config"]["model_type"]


def loaded(path, quantize="none"):
    files = resolve(str(path))
    config = read_config(files)
    return files, config, load_params(files, config, "float32", quantize=quantize, pack=False, progress=False)


def assert_saved(path, output) -> dict:
    """Writes a model in 8 bits, reads it again, and gives the `config.json` that was written."""
    files, config, params = loaded(path, "int8")
    save(files, config, params, output, "int8")
    _, config_again, params_again = loaded(output)
    assert config_again == config
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    assert any(isinstance(leaf, QTensor) for leaf in jax.tree.leaves(params_again, is_leaf=_is_quantised))
    return json.loads((output / "config.json").read_text())


def _is_quantised(leaf) -> bool:
    return isinstance(leaf, QTensor)


@pytest.mark.parametrize("name", MODELS)
def test_a_quantised_directory_is_of_its_family(name, tmp_path):
    (tmp_path / "hf").mkdir()
    keys = assert_saved(write_hf(name, tmp_path / "hf"), tmp_path / "small")
    assert keys["model_type"] == config_type(name)


@pytest.mark.parametrize("name", ["gemma3", "qwen2", "olmo2"])
def test_that_of_a_gguf_too(name, tmp_path):
    keys = assert_saved(write_gguf(name, tmp_path / "x.gguf"), tmp_path / "small")
    assert keys["model_type"] == config_type(name)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", MODELS)
def test_random_weights_have_the_names_and_shapes_that_transformers_writes(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MODELS[name]["config"]))
    write_random_checkpoint(tmp_path / "config.json", tmp_path / "out", dtype="float32", scale=0.0)
    files, config, params = loaded(tmp_path / "out")
    checkpoint = open_checkpoint(files)
    made = {checkpoint.spell(name): list(stored.shape) for name, stored in checkpoint.tensors.items()}
    theirs = MODELS[name]["shapes"]
    if config_type(name) == "phi3":  # its projections are written apart, which the reader takes as well
        assert sum(map(math.prod, made.values())) == sum(map(math.prod, theirs.values()))
    else:
        assert made == theirs
    norms = {float(number) for number in params.norm}
    assert norms == {1.0 - config.norm_offset}  # with a deviation of 0: what changes nothing
