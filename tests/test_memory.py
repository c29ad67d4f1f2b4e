"""Refusals that come before the allocation."""

import dataclasses
import json

import pytest

from jllama import memory
from jllama.checkpoint.saved import _config_keys
from jllama.errors import JllamaError
from jllama.hub import ModelFiles


def test_weights_that_do_not_fit_are_refused(tiny_config, monkeypatch, tmp_path):
    huge = dataclasses.replace(tiny_config, vocab_size=2**30, hidden_size=2**12)
    files = ModelFiles(description="huge", directory=tmp_path)
    with pytest.raises(JllamaError, match=r"weights need 32768\.\d\d GiB in float32 .*--dtype=bfloat16"):
        memory.check_weights(files, huge, "float32", "none")
    monkeypatch.setattr(memory, "available_bytes", lambda: 10 * 2**40)
    memory.check_weights(files, huge, "bfloat16", "int4")
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.check_weights(files, huge, "float32", "none")


def test_a_gguf_file_needs_what_it_weighs(tiny_config, monkeypatch, tmp_path):
    path = tmp_path / "small.gguf"
    path.write_bytes(bytes(1000))
    monkeypatch.setattr(memory, "available_bytes", lambda: 2000)
    files = ModelFiles(description="small", gguf=path)
    memory.check_weights(files, tiny_config, "float32", "auto")
    with pytest.raises(JllamaError, match="weights need"):
        memory.check_weights(files, tiny_config, "float32", "none")


def test_a_quantised_directory_needs_what_it_weighs(tiny_config, monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "config.json").write_text(json.dumps(_config_keys(tiny_config, "int8")))
    monkeypatch.setattr(memory, "available_bytes", lambda: 2000)
    memory.check_weights(ModelFiles(description="small", directory=tmp_path), tiny_config, "float32", "auto")
    monkeypatch.setattr(memory, "available_bytes", lambda: 999)
    with pytest.raises(JllamaError, match="weights need"):
        memory.check_weights(ModelFiles(description="x", directory=tmp_path), tiny_config, "float32", "auto")


def test_caches_that_do_not_fit_are_refused(tiny_config):
    memory.check_cache(tiny_config, "float32", batch=1, max_len=1024)
    with pytest.raises(JllamaError, match=r"1048576 positions for 8192 rows needs .*max_seq_len"):
        memory.check_cache(tiny_config, "float32", batch=8192, max_len=2**20)
