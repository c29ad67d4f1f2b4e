"""What can be cut and what is refused; and the tests of several devices, in a process that has eight."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jllama import sharding
from jllama.checkpoint.random_params import random_params
from jllama.checkpoint.random_weights import write_random_checkpoint
from jllama.errors import JllamaError
from jllama.layers.quantization import SCHEMES, quantize
from jllama.sharding.cuts import cut_axis
from tests.support.small_models import BASE

HERE = Path(__file__).parent


def test_on_eight_devices():
    files = sorted(map(str, HERE.glob("on_eight_devices*.py")))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_a_part_is_read_in_little_more_memory_than_it_takes(tmp_path):
    """MiB beside an idle JAX: not those of the whole model, of 240."""
    sizes = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=7, vocab_size=1024)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(BASE | sizes | dict(num_attention_heads=8, num_key_value_heads=8)))
    write_random_checkpoint(config, tmp_path / "model")
    command = [sys.executable, "-m", "tests.support.loading_memory", str(tmp_path / "model"), "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parents[1])
    found = json.loads(done.stdout)
    assert found["taken"] < found["shard"] + 2 * found["largest_tensor"] + 40 < 200


@pytest.mark.parametrize(
    ("fields", "devices", "words"),
    [
        (dict(), 3, "num_attention_heads=4 can't be cut into 3 equal parts: .* one of 1, 2, 4$"),
        (dict(intermediate_size=50), 4, "intermediate_size=50 .* one of 1, 2$"),
        (
            dict(num_attention_heads=12, num_key_value_heads=3),
            2,
            "num_key_value_heads=3 .* one of 1, 3, 6, 12$",
        ),
    ],
)
def test_sizes_that_cannot_be_cut_are_refused_with_those_that_can(tiny_config, fields, devices, words):
    with pytest.raises(JllamaError, match=words):
        sharding.check(dataclasses.replace(tiny_config, **fields), devices)


def test_more_devices_than_there_are(tiny_config):
    words = r"needs so many devices and JAX sees 1: .* set JAX_NUM_CPU_DEVICES=2"
    with pytest.raises(JllamaError, match=words):
        sharding.mesh_of(2)


def test_more_devices_than_several_processes_have(monkeypatch):
    """Each of them is to have its share."""
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(JllamaError, match=r" set JAX_NUM_CPU_DEVICES=4 in each process to try it on a CPU$"):
        sharding.mesh_of(7)


def test_key_heads_are_repeated_and_the_head_is_untied(tiny_config):
    tied = dataclasses.replace(tiny_config, vocab_size=64, tie_word_embeddings=True)
    wide = sharding.widened(tied, 4)
    assert (wide.num_key_value_heads, wide.tie_word_embeddings) == (4, False)
    assert sharding.widened(dataclasses.replace(tied, vocab_size=61), 4).tie_word_embeddings
    own = sharding.local(wide, 4)
    assert (own.num_attention_heads, own.num_key_value_heads, own.intermediate_size) == (1, 1, 12)


def test_blocks_are_not_cut(tiny_config):
    config = dataclasses.replace(tiny_config, intermediate_size=96)
    params = random_params(config, "float32")
    mlp = params.layers[0].mlp
    small = dataclasses.replace(mlp, down_proj=quantize(mlp.down_proj, SCHEMES["int4"][0]))
    layers = (dataclasses.replace(params.layers[0], mlp=small), *params.layers[1:])
    words = r"down_proj: rows of 96 weights in blocks of 32 .* one of 1, 3, or --quantize"
    with pytest.raises(JllamaError, match=words):
        sharding.specs(dataclasses.replace(params, layers=layers), 2)


def test_what_is_not_known_is_not_cut(tiny_params):
    path = (jax.tree_util.GetAttrKey("new_proj"),)
    with pytest.raises(JllamaError, match="does not know the parameter new_proj"):
        cut_axis(path, tiny_params.norm, 2)
