"""Refusals that come before the allocation."""

import dataclasses
import json
import math

import pytest
from gguf import GGMLQuantizationType as GgmlType

from jllama.checkpoint import memory, read_config
from jllama.checkpoint.formats.saved import _config_keys
from jllama.checkpoint.layout import parts
from jllama.checkpoint.sizes import parameter_count
from jllama.errors import JllamaError
from jllama.files.model_files import ModelFiles
from tests.support.checkpoint_files import KEYS, write_gguf
from tests.support.checkpoint_generator import random_tensors


def test_weights_that_do_not_fit_are_refused(tiny_config, monkeypatch, tmp_path):
    huge = dataclasses.replace(tiny_config, vocab_size=2**30, hidden_size=2**12)
    files = ModelFiles(description="huge", directory=tmp_path)
    with pytest.raises(JllamaError, match=r"weights need 32768\.\d\d GiB in float32 .*--dtype=bfloat16"):
        memory.check_weights(files, huge, "float32", "none")
    monkeypatch.setattr(memory, "available_bytes", lambda: 3 * 2**30)
    with pytest.raises(JllamaError, match=r"in float32 and the device has 3\.00 GiB left: use"):
        memory.check_weights(files, huge, "float32", "none")
    monkeypatch.setattr(memory, "available_bytes", lambda: 10 * 2**40)
    memory.check_weights(files, huge, "bfloat16", "int4")
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.check_weights(files, huge, "float32", "none")


def test_a_gguf_file_needs_what_it_weighs(monkeypatch, tmp_path):
    """Blocks as they are stored, everything else in the run dtype."""
    path = write_gguf(tmp_path / "small.gguf", KEYS, random_tensors(KEYS), GgmlType.Q8_0)
    files = ModelFiles(description="small", gguf=path)
    config = read_config(files)
    numbers = [math.prod(part.shape) for part in parts(config).values() if len(part.shape) > 1]
    vectors = parameter_count(config) - sum(numbers)
    needed = sum(numbers) * 34 // 32 + vectors * 4
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    memory.check_weights(files, config, "float32", "auto")
    with pytest.raises(JllamaError, match="weights need"):
        memory.check_weights(files, config, "float32", "none")
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 1)
    with pytest.raises(JllamaError, match="weights need"):
        memory.check_weights(files, config, "float32", "auto")


def test_a_quantised_directory_needs_what_it_weighs(tiny_config, monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "config.json").write_text(json.dumps(_config_keys(tiny_config, "llama", "int8")))
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    memory.check_weights(ModelFiles(description="small", directory=tmp_path), tiny_config, "float32", "auto")
    monkeypatch.setattr(memory, "available_bytes", lambda: 999)
    with pytest.raises(JllamaError, match="weights need"):
        memory.check_weights(ModelFiles(description="x", directory=tmp_path), tiny_config, "float32", "auto")


def test_what_a_device_has_left(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    def left(stats):
        monkeypatch.setattr("jax.local_devices", lambda: [Device(stats)])
        return memory.available_bytes()

    assert left({"bytes_limit": 1000, "bytes_in_use": 400}) == 600
    assert left({"bytes_limit": 1000}) == 1000
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: "MemFree: 1 kB\nMemAvailable:   3 kB\n")
    assert left(None) == left({}) == 3 * 1024


def test_caches_that_do_not_fit_are_refused(tiny_config):
    memory.check_cache(tiny_config, "float32", batch=1, max_len=1024)
    with pytest.raises(JllamaError, match=r"1048576 positions for 8192 rows needs .*max_seq_len"):
        memory.check_cache(tiny_config, "float32", batch=8192, max_len=2**20)
