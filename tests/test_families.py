"""Every family against Hugging Face transformers in fp32; `goldens/make_families.py` makes the goldens."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jllama.checkpoint import load_params, read_config
from jllama.config import ModelConfig
from jllama.hub.references import resolve
from tests.support.checkpoint_generator import named_tensors, random_tokens
from tests.support.family_models import BASE, FAMILY_MODELS, LENGTH
from tests.support.helpers import full_logits

GOLDENS = Path(__file__).parent / "goldens"
BOUND = 1e-5  # max |Δlogit| as a part of the logit range; measured: at most 2.0e-6
MODELS = json.loads((GOLDENS / "families.json").read_text())


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDENS / "families.npz") as file:
        yield {name: file[name] for name in file.files}


def directory_of(name: str, path: Path, config: str = "config") -> Path:
    """The checkpoint as transformers saves it."""
    save_file(named_tensors(MODELS[name]["shapes"]), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(MODELS[name][config]))
    return path


def load(path: Path):
    files = resolve(str(path))
    config = read_config(files)
    return config, load_params(files, config, "float32", progress=False)


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.ptp(theirs))


def test_every_family_has_a_golden():
    assert set(MODELS) == set(FAMILY_MODELS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_logits_and_greedy_tokens(name, goldens, tmp_path):
    config, params = load(directory_of(name, tmp_path))
    tokens = np.concatenate([random_tokens(BASE["vocab_size"], LENGTH), goldens[f"{name}.greedy"]])
    logits = full_logits(config, params, tokens[None])[0]
    np.testing.assert_array_equal(logits[LENGTH - 1 : -1].argmax(-1), goldens[f"{name}.greedy"])
    assert relative_error(logits[:LENGTH][5::6], goldens[f"{name}.logits"]) <= BOUND
    short = full_logits(config, params, tokens[None, :20])[0, -1]
    assert relative_error(short, goldens[f"{name}.short"]) <= BOUND


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [name for name in MODELS if "older" in MODELS[name]])
def test_what_transformers_4_writes_means_the_same(name):
    old, new = (ModelConfig.from_hf(MODELS[name][key]) for key in ("older", "config"))
    assert old == new
