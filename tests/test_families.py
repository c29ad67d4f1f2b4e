"""Every family against Hugging Face transformers in fp32; `goldens/make_families.py` makes the goldens."""

import dataclasses
import json
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jllama.checkpoint import load_params, read_config
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.hub.references import resolve
from jllama.layers.rope import query_scale, rope_tables
from tests.support.checkpoint_generator import named_tensors, random_tokens
from tests.support.family_files import CONVERTED, MODELS, gguf_tensors, write_gguf, write_hf
from tests.support.family_models import BASE, FAMILY_MODELS, LENGTH
from tests.support.helpers import full_logits

GOLDENS = Path(__file__).parent / "goldens"
BOUND = 1e-5  # max |Δlogit| as a part of the logit range; measured: at most 2.0e-6


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDENS / "families.npz") as file:
        yield {name: file[name] for name in file.files}


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
    config, params = load(write_hf(name, tmp_path))
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


# What a file of llama.cpp's converter cannot say of a model, and what it says instead.
UNSAID = {
    "gemma2": {"attention_multiplier": 16**-0.5},
    "gemma2_caps": {"attention_multiplier": 16**-0.5},
    "gemma3": {"attention_multiplier": 16**-0.5},
    "gemma3_linear": {"attention_multiplier": 16**-0.5, "layer_kinds": None, "sliding_window": 9},
    "mistral": {"sliding_window": None},
    "qwen2_window": {"layer_kinds": ()},
    "smollm3": {"layer_kinds": None},
    "smollm3_list": {"layer_kinds": None},
}


def numbers(value) -> object:
    """With numbers as float32, which is what metadata hold."""
    if dataclasses.is_dataclass(value):
        return {field.name: numbers(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [numbers(part) for part in value]
    return float(np.float32(value)) if isinstance(value, float) else value


@pytest.mark.parametrize("name", CONVERTED)
def test_tensors_lie_as_the_converter_of_llama_cpp_writes_them(name):
    """So that the next test reads what users have."""
    made = {key: [*tensor.shape, zlib.crc32(tensor.tobytes())] for key, tensor in gguf_tensors(name).items()}
    assert made == CONVERTED[name]["tensors"]


@pytest.mark.parametrize("name", [name for name in CONVERTED if name != "llama_longrope"])
def test_gguf(name, tmp_path):
    config, params = load(write_gguf(name, tmp_path / "x.gguf"))
    (tmp_path / "hf").mkdir()
    theirs, wanted = load(write_hf(name, tmp_path / "hf"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1.2e-7), params, wanted)
    unsaid = UNSAID.get(name, {})
    ours, theirs = numbers(config), numbers(theirs)
    for field, value in theirs.items():
        if field in unsaid:
            assert unsaid[field] is None or ours[field] == numbers(unsaid[field])
        elif "rope" not in field and field != "layer_kinds":
            assert ours[field] == value, field


@pytest.mark.parametrize(
    "name", ["olmo2", "olmo3", "ministral3", "phi3_longrope", "phi3_partial", "exaone4", "gemma3"]
)
def test_gguf_turns_as_the_directory_does(name, tmp_path):
    """Rotations are compared by what they do: files may state them in other words."""
    (tmp_path / "hf").mkdir()
    config, _ = load(write_gguf(name, tmp_path / "x.gguf"))
    theirs, _ = load(write_hf(name, tmp_path / "hf"))
    positions, length = np.arange(0, 96, 5)[None], np.asarray([96])
    for layer in range(config.num_hidden_layers):
        ours, wanted = config.kind_of(layer), theirs.kind_of(layer)
        assert (ours.window, ours.rope is None) == (wanted.window, wanted.rope is None)
        if ours.rope is not None:
            for table, other in zip(
                *(rope_tables(r.rope, config.head_dim, positions, length) for r in (ours, wanted)),
                strict=True,
            ):
                np.testing.assert_allclose(table, other, rtol=0, atol=1e-5)
            scales = [query_scale(r.rope, positions) for r in (ours, wanted)]
            assert (scales[0] is None) == (scales[1] is None)
            if scales[0] is not None:
                np.testing.assert_allclose(*scales, rtol=1e-6)


def test_longrope_of_a_gguf_without_its_factors_is_refused(tmp_path):
    with pytest.raises(JllamaError, match=r"longrope without the tensors rope_factors_long\.weight"):
        load(write_gguf("llama_longrope", tmp_path / "x.gguf"))


@pytest.mark.parametrize(
    ("name", "outer", "prefix"),
    [
        ("gemma3", "gemma3", "language_model.model."),
        ("gemma3", "gemma3", "model.language_model."),
        ("ministral3", "mistral3", "language_model.model."),
        ("mistral", "mistral3", "model.language_model."),
    ],
)
def test_the_text_part_of_a_model_that_sees(name, outer, prefix, tmp_path):
    config, params = load(write_hf(name, tmp_path))
    tensors = {
        "language_model." * ("model." not in key) + key.replace("model.", prefix, 1): tensor
        for key, tensor in named_tensors(MODELS[name]["shapes"]).items()
    }
    tensors |= {
        "vision_tower.patch_embedding.weight": np.ones((2, 2), np.float32),
        "multi_modal_projector.norm.weight": np.ones(2, np.float32),
    }
    directory = tmp_path / "wrapped"
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    keys = dict(model_type=outer, text_config=MODELS[name]["config"], vision_config={})
    (directory / "config.json").write_text(json.dumps(keys))
    wrapped, others = load(directory)
    assert wrapped == config
    jax.tree.map(np.testing.assert_array_equal, others, params)


def test_an_index_alone_is_a_checkpoint_that_lacks_its_shards(tmp_path):
    """The tensors are to say whether the embeddings are tied: not that of a model without any."""
    text = {
        key: value for key, value in MODELS["ministral3"]["config"].items() if key != "tie_word_embeddings"
    }
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="mistral3", text_config=text)))
    index = {"weight_map": {"norm.weight": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(JllamaError, match=r"lacks the shards a\.safetensors; download them too"):
        read_config(resolve(str(tmp_path)))


@pytest.mark.parametrize(
    ("outer", "inner", "has_head", "tied"),
    [
        (True, False, False, True),  # as transformers 5 saves Mistral 3 by default
        (False, True, True, False),
        (None, None, True, False),
        (None, False, False, True),
        (True, False, True, False),  # transformers ties no matrix that differs
        (True, True, False, True),
        (False, False, True, False),
    ],
)
@pytest.mark.parametrize(("name", "model_type"), [("gemma3", "gemma3"), ("ministral3", "mistral3")])
def test_the_whole_models_tie_rules_over_its_text_parts(
    name, model_type, outer, inner, has_head, tied, tmp_path
):
    """With neither key, Gemma 3's text would be tied, Mistral's would not: the tensors say it."""
    tensors = dict(named_tensors(MODELS[name]["shapes"]))
    head = tensors.pop("lm_head.weight", tensors["model.embed_tokens.weight"] + np.float32(0.5))
    tensors |= {"lm_head.weight": head} if has_head else {}
    save_file(
        {f"language_model.{key}": value for key, value in tensors.items()}, tmp_path / "model.safetensors"
    )
    text = {key: value for key, value in MODELS[name]["config"].items() if key != "tie_word_embeddings"}
    text |= {} if inner is None else {"tie_word_embeddings": inner}
    keys = dict(model_type=model_type, text_config=text)
    keys |= {} if outer is None else {"tie_word_embeddings": outer}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    config, params = load(tmp_path)
    assert config.tie_word_embeddings is tied
    if has_head:
        np.testing.assert_array_equal(params.lm_head, head)
    else:
        assert params.lm_head is None
