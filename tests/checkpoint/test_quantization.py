"""Quantising while loading, and jllama's own quantised checkpoints."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

import jllama
from jllama.checkpoint import automatic_mode, load_params, read_config
from jllama.checkpoint.formats.saved import save
from jllama.errors import JllamaError
from jllama.hub.references import resolve
from jllama.kernels.target import of_platform
from jllama.layers.qtensor import QTensor, dequantize
from jllama.layers.quantization import Scheme, quantize
from jllama.text.tokenizer import Tokenizer
from tests.support.checkpoint_files import KEYS, write_directory, write_gguf
from tests.support.checkpoint_generator import random_tensors
from tests.support.tiny_checkpoint import write_tiny_model


@pytest.mark.parametrize(
    ("scheme", "steps"),
    [(Scheme(bits=8, group=None), 127), (Scheme(bits=8, group=32), 127), (Scheme(bits=4, group=32), 7.5)],
)
def test_errors_stay_below_half_a_step_of_each_group(scheme, steps):
    w = jax.random.normal(jax.random.key(0), (3, 5, 96)) * jnp.linspace(0.1, 10, 5)[None, :, None]
    q = quantize(w, scheme)
    assert q.shape == w.shape
    error = np.abs(np.asarray(dequantize(q)) - np.asarray(w)).reshape(15, -1, q.group)
    largest = np.abs(np.asarray(w)).reshape(15, -1, q.group).max(axis=-1)
    # Half a step, and what float16 scales and offsets round away.
    assert (error.max(axis=-1) <= largest / steps * 0.5 * 1.02 + largest * 2**-10).all()


def test_constant_and_zero_rows_survive():
    w = jnp.stack([jnp.zeros(64), jnp.full((64,), 0.5), jnp.full((64,), -0.25)])
    for scheme in (Scheme(bits=8, group=None), Scheme(bits=4, group=32)):
        np.testing.assert_allclose(dequantize(quantize(w, scheme)), w, atol=2e-3)


def test_a_step_too_small_for_float16_keeps_the_order_of_its_weights():
    """Its scale is rounded down to float16's smallest number: the largest weights lie beyond 15 steps."""
    w = jnp.linspace(0.0, 15 * 1.4 * 2.0**-24, 32)[None]
    assert (np.diff(np.asarray(dequantize(quantize(w, Scheme(bits=4, group=32))))) >= 0).all()


def test_rows_that_groups_do_not_divide_are_refused():
    with pytest.raises(JllamaError, match="use int8"):
        quantize(jnp.zeros((2, 40)), Scheme(bits=4, group=32))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small model whose rows are multiples of 32."""
    return write_directory(tmp_path_factory.mktemp("model"), KEYS, random_tensors(KEYS, 0))


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_matrices_are_quantised_and_vectors_are_not(checkpoint, mode):
    files = resolve(str(checkpoint))
    config = read_config(files)
    full = load_params(files, config, "float32")
    small = load_params(files, config, "float32", quantize=mode)
    block, plain = small.layers[0], full.layers[0]
    assert block.mlp.down_proj.bits == (8 if mode == "int8" else 4)
    assert small.embed_tokens.bits == small.lm_head.bits == 8
    np.testing.assert_array_equal(block.attn_norm, plain.attn_norm)
    close = np.abs(np.asarray(dequantize(block.attention.qkv_proj) - plain.attention.qkv_proj)).max()
    assert 0 < close < 0.15 * np.abs(np.asarray(plain.attention.qkv_proj)).max()


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_saved_model_is_the_one_that_was_quantised(checkpoint, tmp_path, mode):
    files = resolve(str(checkpoint))
    config = read_config(files)
    params = load_params(files, config, "float32", quantize=mode, pack=False)
    save(files, config, params, tmp_path / "small", mode)
    modes = {path.stat().st_mode for path in (tmp_path / "small").iterdir()}
    assert len(modes) == 1, "whoever may read one file may read all"
    again = resolve(str(tmp_path / "small"))
    assert read_config(again) == config
    loaded = load_params(again, config, "float32", pack=False)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    packed = load_params(again, config, "float32")
    leaves = zip(quantized_leaves(packed), quantized_leaves(params), strict=True)
    for theirs, ours in leaves:
        np.testing.assert_array_equal(dequantize(theirs), dequantize(ours))


def test_a_saved_model_keeps_all_that_its_tokenizer_reads(tmp_path):
    """Its ids that config.json alone states, and templates in a directory of their own."""
    model = write_tiny_model(tmp_path / "tiny", bos_token_id=5, eos_token_id=[7, 9])
    (model / "tokenizer").mkdir()
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    (model / "added_tokens.json").write_text("{}")
    files = resolve(str(model))
    config = read_config(files)
    save(
        files,
        config,
        load_params(files, config, "float32", quantize="int8", pack=False),
        tmp_path / "q",
        "int8",
    )
    before, after = Tokenizer.from_dir(model), Tokenizer.from_dir(tmp_path / "q")
    assert after.eos_ids == before.eos_ids == {7, 9, 256}
    assert after.bos_id == before.bos_id == 5
    assert set(after.chat_templates) == {"rag"}
    assert (tmp_path / "q" / "added_tokens.json").is_file()


def quantized_leaves(params):
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return [leaf for leaf in leaves if isinstance(leaf, QTensor)]


def test_a_damaged_saved_model_is_refused(checkpoint, tmp_path):
    files = resolve(str(checkpoint))
    config = read_config(files)
    params = load_params(files, config, "float32", quantize="int8", pack=False)
    place = tmp_path / "small"
    save(files, config, params, place, "int8")
    with pytest.raises(JllamaError, match="exists already"):
        save(files, config, params, place, "int8")
    with pytest.raises(JllamaError, match="does not fit its config"):
        load_params(
            resolve(str(place)), dataclasses.replace(config, vocab_size=config.vocab_size + 1), "float32"
        )
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(JllamaError, match="quantise the model again"):
        load_params(resolve(str(place)), config, "float32")
    keys = json.loads((place / "config.json").read_text())
    del keys["jllama"]
    (place / "config.json").write_text(json.dumps(keys))
    with pytest.raises(JllamaError, match="damaged"):
        read_config(resolve(str(place)))


def test_gguf_blocks_stay_as_they_are(smollm2_gguf):
    """SmolLM2's file holds Q4_1 blocks and a Q8_0 table: the same numbers as when they are expanded."""
    files = resolve(str(smollm2_gguf))
    config = read_config(files)
    stored = load_params(files, config, "float32", quantize="auto")
    full = load_params(files, config, "float32")
    for theirs, ours in [
        (stored.embed_tokens, full.embed_tokens),
        (stored.layers[3].attention.qkv_proj, full.layers[3].attention.qkv_proj),
        (stored.layers[29].mlp.down_proj, full.layers[29].mlp.down_proj),
    ]:
        assert isinstance(theirs, QTensor)
        np.testing.assert_allclose(dequantize(theirs), ours, rtol=1e-6, atol=1e-7)


def kept_on(platform: str, path, dtype: str = "bfloat16") -> str:
    files = resolve(str(path))
    return automatic_mode(files, read_config(files), dtype, of_platform(platform))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """The small model as GGUF with Q4_0 blocks."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return write_gguf(path, KEYS, random_tensors(KEYS), GgmlType.Q4_0)


def test_blocks_stay_where_the_cpu_has_kernels_for_them(blocks, checkpoint, monkeypatch):
    monkeypatch.setattr("jllama.kernels.cpu.build.load", lambda *_: None)
    assert kept_on("cpu", blocks) == "auto"
    assert kept_on("cpu", checkpoint) == "none"
    monkeypatch.setattr("jllama.kernels.cpu.build.load", lambda *_: "no C++ compiler")
    assert kept_on("cpu", blocks) == "none"


def test_blocks_stay_where_the_gpu_kernel_takes_them(blocks, tmp_path, monkeypatch):
    """The kernel's own refusals decide: here its 16-bit activations, and an odd vocabulary."""
    launch = "jllama.kernels.gpu.launch"
    monkeypatch.setattr(f"{launch}.refusal", lambda: None)
    monkeypatch.setattr(f"{launch}.blocks_at_once", lambda: 132)
    assert kept_on("gpu", blocks) == "auto"
    assert kept_on("gpu", blocks, "float32") == "none"
    odd = KEYS | {"vocab_size": 63}
    path = write_gguf(tmp_path / "odd.gguf", odd, random_tensors(odd), GgmlType.Q4_0)
    assert kept_on("gpu", path) == "none"
    monkeypatch.setattr(f"{launch}.refusal", lambda: "there is no NVIDIA GPU")
    assert kept_on("gpu", blocks) == "none"


def test_a_model_without_kernels_has_no_blocks(smollm2_gguf, monkeypatch):
    monkeypatch.setenv("JLLAMA_KERNELS", "0")
    assert jllama.load(str(smollm2_gguf)).params.embed_tokens.dtype == "bfloat16"
    files = resolve(str(smollm2_gguf))
    stored = load_params(files, read_config(files), "bfloat16", quantize="auto", pack=False)
    assert isinstance(stored.embed_tokens, QTensor)
