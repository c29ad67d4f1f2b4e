"""Whatever a user may get wrong: exit code 2, one or two lines on stderr, nothing on stdout, no traceback."""

import json
import struct
import sys

import numpy as np
import pytest
from checkpoint_files import header_of, write_directory, write_safetensors
from checkpoint_generator import random_tensors
from scripts_helpers import ROOT, ScriptServer, environment, start
from tiny_checkpoint import CONTEXT, KEYS, TEMPLATE, write_tiny_model

GENERATE, INSPECT, MAKE = "generate.py", "inspect_model.py", "make_random_checkpoint.py"


def assert_explained(outcome, words):
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") <= 2, outcome.err
    for word in words.split("|"):
        assert word in outcome.err


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = ScriptServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def without_jax(tmp_path_factory):
    """An environment in which importing jax fails: what is refused there is refused at once."""
    place = tmp_path_factory.mktemp("without_jax")
    (place / "jax").mkdir()
    (place / "jax" / "__init__.py").write_text("raise RuntimeError('jax was imported')")
    env = environment(place / "cache")
    return env | {"PYTHONPATH": f"{place}:{env['PYTHONPATH']}"}


FLAGS = {
    "unknown flag": (GENERATE, "--promt=x", "Unknown command line flag 'promt'. Did you mean"),
    "argument": (GENERATE, "--prompt=x Hello", "unexpected argument 'Hello'"),
    "no prompt": (GENERATE, "", "--prompt or --prompt_file"),
    "two prompts": (GENERATE, "--prompt=x --prompt_file=y", "--prompt or --prompt_file"),
    "empty prompt": (GENERATE, "--prompt=", "the prompt is empty"),
    "blank prompt": (GENERATE, "--prompt_file=-", "the prompt is empty"),
    "no model": (GENERATE, "--prompt=x", "no model: give --model"),
    "empty model": (GENERATE, "--prompt=x --model=", "no model: give --model"),
    "prompt file": (GENERATE, "--prompt_file=/no/such", "cannot read /no/such: No such file"),
    "prompt directory": (GENERATE, "--prompt_file=/", "cannot read /: Is a directory"),
    "no such flagfile": (GENERATE, "--flagfile=/no/such.cfg", "Unable to open flagfile|/no/such.cfg"),
    "flagfile of bytes": (GENERATE, f"--flagfile={sys.executable}", "a flagfile is not UTF-8"),
    "no such path": (GENERATE, "--prompt=x --model=/no/such", "no such model: '/no/such'|OWNER/NAME"),
    "no such name": (GENERATE, "--prompt=x --model=nosuch", "no such model: 'nosuch'; give a directory"),
    "foreign file": (GENERATE, "--prompt=x --model=README.md", "README.md is no .gguf file"),
    "no config": (GENERATE, "--prompt=x --model=docs", "docs holds neither config.json nor a .gguf"),
    "malformed wheel": (GENERATE, "--prompt=x --model=pypi:x", "malformed; write pypi:NAME==VERSION"),
    "hub id, offline": (GENERATE, "--prompt=x --model=no/such", "no local path 'no/such'|hf download"),
    "temperature": (GENERATE, "--temperature=-1", "temperature=-1.0 must be a number from 0 to 100"),
    "temperature nan": (GENERATE, "--temperature=nan", "temperature=nan must be a number from 0"),
    "temperature inf": (GENERATE, "--temperature=inf", "temperature=inf must be a number from 0"),
    "temperature text": (GENERATE, "--temperature=hot", "--temperature=hot"),
    "top_k": (GENERATE, "--top_k=-1", "top_k=-1 must be a whole number from 0"),
    "top_p": (GENERATE, "--top_p=0", "top_p=0.0 must be a number from"),
    "top_p above": (GENERATE, "--top_p=1.5", "top_p=1.5 must be a number from"),
    "min_p": (GENERATE, "--min_p=2", "min_p=2.0 must be a number from 0 to 1"),
    "repetition": (GENERATE, "--repetition_penalty=0", "repetition_penalty=0.0 must be"),
    "presence": (GENERATE, "--presence_penalty=1e9", "presence_penalty=1000000000.0 must be"),
    "frequency": (GENERATE, "--frequency_penalty=nan", "frequency_penalty=nan must be"),
    "bias": (GENERATE, "--logit_bias=many", "--logit_bias=many: give TOKEN_ID=VALUE"),
    "bias nan": (GENERATE, "--logit_bias=1=nan", "logit_bias must hold finite numbers"),
    "no tokens": (GENERATE, "--max_new_tokens=0", "max_new_tokens=0 must be a whole number from 1"),
    "absurd": (GENERATE, f"--max_new_tokens={10**30}", "max_new_tokens=1000"),
    "a fraction": (GENERATE, "--max_new_tokens=1.5", "--max_new_tokens=1.5"),
    "max_seq_len": (GENERATE, "--max_seq_len=-5", "--max_seq_len=-5"),
    "max_seq_len 0": (GENERATE, "--max_seq_len=0", "--max_seq_len=0"),
    "seed": (GENERATE, "--seed=-1", "seed=-1 must be a whole number from 0"),
    "seed beyond": (GENERATE, f"--seed={2**63}", "must be a whole number from 0 to 2^63 - 1"),
    "stop": (GENERATE, "--stop=", "a stop string is empty"),
    "dtype": (GENERATE, "--dtype=int8", "--dtype=int8|float32|bfloat16|float16"),
    "device": (GENERATE, "--device=tpu", "--device=tpu|auto|cpu|gpu"),
    "inspect: no model": (INSPECT, "", "no model: give --model"),
    "inspect: no such": (INSPECT, "--model=nosuch", "no such model: 'nosuch'"),
    "inspect: batch": (INSPECT, "--model=x --batch=0", "--batch=0"),
    "inspect: positions": (INSPECT, "--model=x --max_seq_len=0", "--max_seq_len=0"),
    "make: nothing given": (MAKE, "", "give both --config=config.json and --output=DIR"),
    "make: shard size": (MAKE, "--config=x --output=y --shard_size=many", "--shard_size=many: give a size"),
    "make: scale": (MAKE, "--config=x --output=y --scale=-1", "--scale=-1"),
}


@pytest.mark.parametrize(("script", "arguments", "words"), FLAGS.values(), ids=FLAGS)
def test_refused_before_jax_is_imported(script, arguments, words, without_jax):
    assert_explained(start(script, *arguments.split(), env=without_jax), words)


def test_a_prompt_that_is_not_utf_8(without_jax, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("Grüße".encode("latin-1"))
    outcome = start(GENERATE, f"--prompt_file={file}", env=without_jax)
    assert_explained(outcome, "prompt.txt is not UTF-8 (byte 2): convert it")
    outcome = start(GENERATE, "--prompt_file=-", env=without_jax, stdin=b"\xff")
    assert_explained(outcome, "not UTF-8 (byte 0)")


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
    "missing tensors": (change_tensors(lambda t: [t.pop(NORM), t.pop(UP)] and None), f"missing: |{NORM}|{UP}"),
    "extra tensor": (change_tensors(lambda t: t | {"vision.weight": t[NORM]}), "extra: vision.weight"),
    "misshapen": (change_tensors(lambda t: t | {NORM: np.ones(31, np.float32)}), "wrong shape: |[31], not [32]"),
    "unknown dtype": (strange_type, "cannot read: model.norm.weight (F3)"),
    "NaN": (change_tensors(lambda t: t[UP].fill(np.nan)), f"{UP} in |NaN or infinite"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "tokenizer"),
    "broken tokenizer": (write("tokenizer.json", b"{}"), "tokenizer.json"),
    "foreign tokenizer": (change_config(vocab_size=200), "the tokenizer has 257 tokens and the model 200"),
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
    "max_seq_len": ([f"--max_seq_len={CONTEXT + 1}", "--prompt=x"], f"from 2 to the model's context of {CONTEXT}"),
    "fills it": (["--max_seq_len=4", "--prompt=1234"], "the prompt has 4 tokens and max_seq_len is 4"),
    "no template": (["--chat_template", "--prompt=x"], "no chat template: use --nochat_template"),
    "system": (["--system=Be brief.", "--prompt=x"], "a system message needs a chat template"),
    "bias": (["--logit_bias=258=1", "--prompt=x"], "logit_bias holds token 258; the vocabulary goes from 0 to 257"),
    "no GPU": (["--device=gpu", "--prompt=x"], "--device=gpu: JAX sees no NVIDIA GPU|cuda12"),
}


@pytest.mark.parametrize(("arguments", "words"), REQUESTS.values(), ids=REQUESTS)
def test_requests_that_do_not_fit_the_model(arguments, words, server, model):
    env = {"JAX_PLATFORMS": ""} if "--device=gpu" in arguments else {}
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
