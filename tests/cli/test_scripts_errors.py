"""Files and requests that are wrong: exit code 2, one or two lines on stderr, nothing on stdout."""

import json
import struct

import numpy as np
import pytest

from tests.support.checkpoint_files import header_of, write_directory, write_safetensors
from tests.support.checkpoint_generator import random_tensors
from tests.support.scripts_helpers import ROOT, assert_explained
from tests.support.tiny_checkpoint import CONTEXT, KEYS, TEMPLATE, write_tiny_model

GENERATE, INSPECT = "generate.py", "inspect_model.py"


@pytest.fixture(scope="module")
def model(base_dir):
    return base_dir


def test_no_network_is_not_waited_for(server):
    outcome = server.run(
        GENERATE, "--prompt=x", "--model=no/such", HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert_explained(outcome, "no local path 'no/such'|Connection refused|hf download")


def change_config(**changes):
    def change(model):
        (model / "config.json").write_text(json.dumps(KEYS | changes))

    return change


def change_tensors(change):
    def rewrite(model):
        tensors = random_tensors(KEYS)
        write_directory(model, KEYS, change(tensors) or tensors)

    return rewrite


def without_two(tensors):
    return {name: tensor for name, tensor in tensors.items() if name not in (NORM, UP)}


def write(name, data):
    return lambda model: (model / name).write_bytes(data)


def truncate(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def lie(model):
    tensors = random_tensors(KEYS)
    header = header_of(tensors)
    header["model.norm.weight"]["shape"] = [10**12]
    write_safetensors(model / "model.safetensors", tensors, header)


def strange_type(model):
    tensors = random_tensors(KEYS)
    header = header_of(tensors)
    header["model.norm.weight"]["dtype"] = "F3"
    write_safetensors(model / "model.safetensors", tensors, header)


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
FILES = {
    "config is no JSON": (write("config.json", b"{'a': 1}"), "config.json is not JSON"),
    "config is a list": (write("config.json", b"[]"), "config.json holds no JSON object"),
    "config is empty": (write("config.json", b""), "config.json is not JSON"),
    "config is not UTF-8": (write("config.json", b"\xff\xfe{}"), "config.json is not JSON"),
    "model type": (change_config(model_type="gpt2"), "model_type 'gpt2' is not supported"),
    "RoPE type": (change_config(rope_scaling={"rope_type": "spiral"}), "RoPE type 'spiral' is not supported"),
    "absurd size": (change_config(num_hidden_layers=-1), "num_hidden_layers=-1 must be"),
    "other size": (change_config(hidden_size=64), "does not fit its configuration: wrong shape"),
    "truncated": (truncate, "model.safetensors is truncated"),
    "empty": (write("model.safetensors", b""), "truncated, or no safetensors file"),
    "foreign": (write("model.safetensors", b"PK\x03\x04" + bytes(99)), "safetensors"),
    "header of 2**60 bytes": (write("model.safetensors", struct.pack("<Q", 2**60) + b"{}"), "truncated"),
    "lying header": (lie, "the header's entry for model.norm.weight makes no sense"),
    "missing tensors": (
        change_tensors(without_two),
        f"missing: |{NORM}|{UP}",
    ),
    "extra tensor": (change_tensors(lambda t: t | {"vision.weight": t[NORM]}), "extra: vision.weight"),
    "misshapen": (
        change_tensors(lambda t: t | {NORM: np.ones(31, np.float32)}),
        "wrong shape: |[31], not [32]",
    ),
    "unknown dtype": (strange_type, "cannot read: model.norm.weight (F3)"),
    "NaN": (change_tensors(lambda t: t[UP].fill(np.nan)), f"{UP} in |NaN or infinite"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "tokenizer"),
    "broken tokenizer": (write("tokenizer.json", b"{}"), "tokenizer.json"),
    "foreign tokenizer": (change_config(vocab_size=200), "the tokenizer has 256 tokens and the model 200"),
}


@pytest.mark.parametrize(("damage", "words"), FILES.values(), ids=FILES)
def test_damaged_files(damage, words, server, tmp_path):
    model = write_tiny_model(tmp_path / "tiny")
    damage(model)
    assert_explained(server.run(GENERATE, f"--model={model}", "--prompt=x"), words)


GGUFS = {
    "empty": (b"", "too short for a GGUF file"),
    "foreign": (b"PK\x03\x04" + bytes(99), "no GGUF file"),
    "truncated": (b"GGUF\x03\0\0\0" + struct.pack("<QQ", 3, 5), "truncated or damaged"),
    "2**60 fields": (b"GGUF\x03\0\0\0" + struct.pack("<QQ", 1, 2**60) + bytes(99), "x.gguf"),
}


@pytest.mark.parametrize(("data", "words"), GGUFS.values(), ids=GGUFS)
def test_damaged_ggufs(data, words, server, tmp_path):
    (tmp_path / "x.gguf").write_bytes(data)
    assert_explained(server.run(GENERATE, f"--model={tmp_path / 'x.gguf'}", "--prompt=x"), words)


REQUESTS = {
    "long prompt": (["--prompt=" + "long " * CONTEXT], f"tokens and max_seq_len is {CONTEXT}|shorten it"),
    "max_seq_len": (
        [f"--max_seq_len={CONTEXT + 1}", "--prompt=x"],
        f"from 2 to the model's context of {CONTEXT}",
    ),
    "fills it": (["--max_seq_len=4", "--prompt=1234"], "the prompt has 4 tokens and max_seq_len is 4"),
    "no template": (["--chat_template", "--prompt=x"], "no chat template: use --nochat_template"),
    "system": (["--system=Be brief.", "--prompt=x"], "a system message needs a chat template"),
    "bias": (
        ["--logit_bias=258=1", "--prompt=x"],
        "logit_bias holds token 258; the vocabulary goes from 0 to 257",
    ),
    "no GPU": (["--device=gpu", "--prompt=x"], "--device=gpu: JAX sees no NVIDIA GPU|cuda12"),
}


@pytest.mark.parametrize(("arguments", "words"), REQUESTS.values(), ids=REQUESTS)
def test_requests_that_do_not_fit_the_model(arguments, words, server, model):
    env = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": ""} if "--device=gpu" in arguments else {}
    assert_explained(server.run(GENERATE, f"--model={model}", *arguments, **env), words)


def test_a_cache_directory_that_cannot_be_made(server, model, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        outcome = server.run(GENERATE, f"--model={model}", "--prompt=x", JLLAMA_CACHE=str(place))
        assert_explained(outcome, "cannot use the cache directory|set JLLAMA_CACHE")


@pytest.mark.parametrize("arguments", [["--help"], [f"--model={ROOT}/configs/models/tinyllama-1.1b.json"]])
def test_a_full_disk_under_the_output(arguments, server):
    outcome = server.run(INSPECT, *arguments, stdout="/dev/full")
    assert_explained(outcome, "cannot write the output: No space left on device")


def test_a_template_that_is_broken(server, tmp_path):
    model = write_tiny_model(tmp_path / "tiny", template=TEMPLATE + "{% endfor %}")
    assert_explained(server.run(GENERATE, f"--model={model}", "--prompt=x"), "template")
