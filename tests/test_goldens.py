"""Against Hugging Face transformers in fp32 (`goldens/make_goldens.py` says how the files were made)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.checkpoint import load_params, read_config
from jllama.config import ModelConfig
from jllama.hub.references import resolve
from tests.support import reference
from tests.support.checkpoint_generator import random_tensors, random_tokens
from tests.support.helpers import full_logits, params_from
from tests.support.small_models import LENGTH, SMALL_MODELS

GOLDENS = Path(__file__).parent / "goldens"
BOUND = 2e-4  # max |Δlogit| as a part of the logit range
SMALL_BOUND = 1e-5  # the same for the small models; measured: at most 1.6e-6, our reference 1.9e-6


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / (theirs.max() - theirs.min()))


@pytest.fixture(scope="module")
def small_goldens():
    with np.load(GOLDENS / "small.npz") as file:
        yield {name: file[name] for name in file.files}


def test_every_small_model_has_a_golden(small_goldens):
    assert set(small_goldens) == set(SMALL_MODELS)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_small_model(name, small_goldens):
    keys = SMALL_MODELS[name]
    config = ModelConfig.from_hf(keys)
    tokens = random_tokens(keys["vocab_size"], LENGTH)
    tensors = random_tensors(keys)
    theirs = small_goldens[name]
    ours = full_logits(config, params_from(config, tensors), tokens[None])[0]
    assert relative_error(ours[5::6], theirs) <= SMALL_BOUND
    assert relative_error(reference.model(keys, tensors, tokens)[5::6], theirs) <= SMALL_BOUND


def test_every_choice_of_a_small_model_matters(small_goldens):
    """Goldens that equal one another would prove nothing."""
    same_weights = [name for name, keys in SMALL_MODELS.items() if keys["hidden_size"] == 64]
    for i, name in enumerate(same_weights):
        for other in same_weights[:i]:
            assert relative_error(small_goldens[name], small_goldens[other]) > 10 * BOUND, (name, other)


def check_real_model(config: ModelConfig, params, file: str) -> None:
    """All prompts in one batch, padded on the right: that changes nothing, and compiles once."""
    with np.load(GOLDENS / file) as goldens:
        texts = [goldens[f"tokens{index}"] for index in range(3)]
        longest = max(len(tokens) for tokens in texts)
        batch = np.stack([np.pad(t, (0, longest - len(t))) for t in texts])
        together = full_logits(config, params, batch, as_for_users=True)
        for index, tokens in enumerate(texts):
            check_text(goldens, index, tokens, together[index, : len(tokens)])


def check_text(goldens, index: int, tokens: np.ndarray, logits: np.ndarray) -> None:
    places, theirs = goldens[f"positions{index}"], goldens[f"logits{index}"]
    error = relative_error(logits[places][:, :: int(goldens["stride"])], theirs)
    print(f"prompt {index}: {error:.1e} of the logit range")
    assert error <= BOUND
    mass = np.asarray(jax.nn.logsumexp(jnp.asarray(logits[places]), axis=-1))
    assert np.abs(mass - goldens[f"logsumexp{index}"]).max() <= BOUND * (theirs.max() - theirs.min())
    prompt_length = int(goldens[f"prompt_length{index}"])
    assert len(tokens) == prompt_length + 200
    # By induction the same as 200 steps of greedy decoding, in one pass.
    np.testing.assert_array_equal(logits[prompt_length - 1 : -1].argmax(-1), tokens[prompt_length:])


def test_story_model(story_dir):
    files = resolve(str(story_dir), progress=False)
    config = read_config(files)
    check_real_model(config, load_params(files, config, "float32", progress=False), "story.npz")


def test_smollm2(smollm2_gguf):
    files = resolve(str(smollm2_gguf), progress=False)
    config = read_config(files)
    check_real_model(config, load_params(files, config, "float32", progress=False), "smollm2.npz")
