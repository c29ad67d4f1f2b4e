"""Checkpoints that are read onto several devices, beside those that are read whole and cut."""

import jax
import numpy as np
import pytest

from jllama import sharding
from jllama.checkpoint import load_params, read_config
from jllama.checkpoint.formats.saved import save
from jllama.checkpoint.formats.stored import Reader
from jllama.errors import JllamaError
from jllama.hub.references import resolve
from tests.support.block_files import write_mixed_gguf
from tests.support.checkpoint_files import write_directory, write_gguf
from tests.support.checkpoint_generator import random_tensors
from tests.support.family_files import write_hf
from tests.support.small_models import BASE

KEYS = BASE | dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=8,
)
BIASED = KEYS | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
BLOCKS = KEYS | dict(hidden_size=512, intermediate_size=1024, head_dim=64)
MIXED = {"v_proj": "Q6_K", "embed": "Q8_0", "lm_head": "Q6_K", "down": "Q5_0", "": "Q4_K"}


def files_of(kind, directory):
    path = directory / "m.gguf"
    if kind == "safetensors":
        write_directory(directory, BIASED, random_tensors(BIASED))
    elif kind == "norms over all heads":
        write_hf("olmo2", directory)
    elif kind == "gguf":
        write_gguf(path, KEYS, random_tensors(KEYS))
    else:
        write_mixed_gguf(path, BLOCKS, random_tensors(BLOCKS), MIXED, 1)
    return resolve(str(path if path.exists() else directory))


def assert_read_as_cut(files, devices, quantize):
    config = read_config(files)
    mesh = sharding.mesh_of(devices)
    whole = load_params(files, config, "float32", quantize=quantize, pack=False, progress=False)
    cut = sharding.split_params(config, whole, mesh)
    read = load_params(files, config, "float32", quantize=quantize, progress=False, mesh=mesh)
    assert jax.tree.structure(read) == jax.tree.structure(cut)
    for mine, theirs in zip(jax.tree.leaves(read), jax.tree.leaves(cut), strict=True):
        assert mine.sharding.is_equivalent_to(theirs.sharding, mine.ndim)
        assert np.array_equal(mine, theirs)


CASES = {
    "safetensors, keys repeated": ("safetensors", 4, "none"),
    "safetensors, 8 bit": ("safetensors", 2, "int8"),
    "safetensors, 4 bit": ("safetensors", 2, "int4"),
    "norms over all heads": ("norms over all heads", 4, "none"),
    "gguf, rows of pairs": ("gguf", 4, "none"),
    "gguf, blocks": ("blocks", 2, "auto"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_is_what_would_be_cut(case, tmp_path):
    kind, devices, quantize = CASES[case]
    assert_read_as_cut(files_of(kind, tmp_path), devices, quantize)


@pytest.mark.parametrize("quantize", ["int8", "auto"])
def test_quantised_directories(quantize, tmp_path):
    (tmp_path / "from").mkdir()
    files = files_of("safetensors" if quantize == "int8" else "blocks", tmp_path / "from")
    config = read_config(files)
    params = load_params(files, config, "float32", quantize=quantize, pack=False, progress=False)
    save(files, config, params, tmp_path / "saved", quantize)
    assert_read_as_cut(resolve(str(tmp_path / "saved")), 2, "none")


def test_blocks_that_straddle_are_refused_before_anything_is_read(tmp_path, monkeypatch):
    files = files_of("blocks", tmp_path)
    monkeypatch.setattr(Reader, "read", None)
    config, mesh = read_config(files), sharding.mesh_of(4)
    with pytest.raises(JllamaError, match=r"o_proj: rows of 512 weights in blocks of 256 .* one of 1, 2, or"):
        load_params(files, config, "float32", quantize="auto", progress=False, mesh=mesh)


def test_a_process_reads_what_its_devices_take(tmp_path, monkeypatch):
    """Of half of the devices: half of every matrix, and what lies whole on each."""
    files, mesh, asked = files_of("safetensors", tmp_path), sharding.mesh_of(2), []
    config, own = read_config(files), sharding.own_devices(mesh)
    read = Reader.read

    def asked_for(self, stored, start, out):
        asked.append(out.nbytes)
        read(self, stored, start, out)

    monkeypatch.setattr(Reader, "read", asked_for)
    monkeypatch.setattr(sharding, "own_devices", lambda mesh: {0: own[0]})
    monkeypatch.setattr(sharding, "joined", lambda path, whole, parts, mesh: parts[0])
    part = load_params(files, config, "float32", progress=False, mesh=mesh)
    assert sum(asked) == sum(leaf.nbytes for leaf in jax.tree.leaves(part))
