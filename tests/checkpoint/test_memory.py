"""Refusals that come before the allocation."""

import dataclasses
import json
import math
import os
from types import SimpleNamespace

import pytest
from gguf import GGMLQuantizationType as GgmlType

from jllama.checkpoint import memory, read_config
from jllama.checkpoint.formats.saved import _config_keys
from jllama.checkpoint.layout import parts
from jllama.checkpoint.sizes import cache_bytes, parameter_bytes, parameter_count
from jllama.errors import JllamaError
from jllama.files.model_files import ModelFiles
from tests.support.checkpoint_files import KEYS, write_gguf
from tests.support.checkpoint_generator import random_tensors


@pytest.mark.parametrize("error", [PermissionError(13, "no"), FileNotFoundError(2, "no")])
def test_where_nobody_tells_what_is_left_nothing_is_refused(monkeypatch, error):
    def read_text(self, *_, **__):
        raise error

    monkeypatch.setattr("pathlib.Path.read_text", read_text)
    assert memory.available_bytes() is None


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
    for mode in ("auto", "none", "int8", "int4"):  # it is what it is
        files = ModelFiles(description="small", directory=tmp_path)
        memory.check_weights(files, tiny_config, "float32", mode)
        assert memory.weight_bytes(files, tiny_config, "float32", mode) == 1000
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


def test_how_large_a_model_and_a_cache_are(tiny_config):
    """Two layers of 4 query and 2 key heads of 8, D = 32, F = 48, V = 61."""
    layer = (4 + 2 * 2) * 8 * 32 + 32 * 4 * 8 + 3 * 48 * 32 + 2 * 32
    assert parameter_count(tiny_config) == 2 * 61 * 32 + 2 * layer + 32
    tied = dataclasses.replace(tiny_config, tie_word_embeddings=True)
    assert parameter_count(tied) == 61 * 32 + 2 * layer + 32
    for dtype, width in (("float32", 4), ("bfloat16", 2), ("float16", 2)):
        assert parameter_bytes(tied, dtype) == parameter_count(tied) * width
        positions = 2 * 2 * (2 * 8) * 10 * width  # keys and values of two layers
        assert cache_bytes(tied, batch=3, max_len=10, dtype=dtype) == 3 * (positions + 4)


@pytest.fixture
def room(monkeypatch):
    """Sets the platform and what a device of it has left."""

    def set_room(platform, there):
        monkeypatch.setattr("jax.devices", lambda: [SimpleNamespace(platform=platform)])
        monkeypatch.setattr(memory, "available_bytes", lambda: there)

    return set_room


def test_what_a_cache_needs_is_said(tiny_config, room):
    """On a CPU all devices have one memory; elsewhere each has its own."""
    need = cache_bytes(tiny_config, batch=1, max_len=2**20, dtype="float32")
    words = (
        r"^a cache of 1048576 positions for 1 row needs 0\.\d\d GiB and the device has 0\.\d\d GiB left: hm$"
    )
    for platform, there, devices in (("cpu", need, 4), ("gpu", need, 1), ("gpu", need // 4, 4)):
        asked = dict(batch=1, max_len=2**20, devices=devices, advice="hm")
        room(platform, there)
        memory.check_cache(tiny_config, "float32", **asked)
        room(platform, there - 1)
        with pytest.raises(JllamaError, match=words):
            memory.check_cache(tiny_config, "float32", **asked)
    with pytest.raises(JllamaError, match=r"positions for 2 rows needs .* or --dtype=bfloat16$"):
        memory.check_cache(tiny_config, "float32", batch=2, max_len=2**20)


@pytest.mark.parametrize(
    ("quantize", "share"), [("none", 4), ("auto", 4), ("int8", 2 * 0.51), ("int4", 2 * 0.33)]
)
def test_what_the_weights_need_of_each_device(tiny_config, room, tmp_path, quantize, share):
    files = ModelFiles(description="x", directory=tmp_path)
    whole = memory.weight_bytes(files, tiny_config, "float32", quantize)
    assert whole == int(parameter_count(tiny_config) * share)
    part = memory.weight_bytes(files, tiny_config, "float32", quantize, 2)
    assert whole / 2 < part < whole
    for platform, memories in (("cpu", 2), ("gpu", 1)):
        room(platform, part * memories)
        memory.check_weights(files, tiny_config, "float32", quantize, devices=2)
        room(platform, part * memories - 1)
        with pytest.raises(JllamaError, match=r"^the weights need .* left: use --dtype=bfloat16, --quan"):
            memory.check_weights(files, tiny_config, "float32", quantize, devices=2)


@pytest.mark.parametrize(
    ("platform", "there", "processes", "room", "devices"),
    [
        ("gpu", 4, 1, 1000, 1),
        ("gpu", 4, 1, 999, 4),
        ("gpu", 4, 1, None, 1),
        ("gpu", 3, 1, 999, 2),
        ("gpu", 1, 1, 0, 1),
        ("cpu", 4, 1, 0, 1),
        ("gpu", 8, 2, 1000, 4),
        ("gpu", 3, 3, 1000, 1),
        ("cpu", 4, 4, 1000, 4),
    ],
)
def test_how_many_devices_auto_takes(tiny_config, monkeypatch, platform, there, processes, room, devices):
    """A tenth of a device is left for what is not weights; 4 query heads are cut into 1, 2 or 4."""
    monkeypatch.setattr("jax.devices", lambda: [SimpleNamespace(platform=platform)] * there)
    monkeypatch.setattr("jax.process_count", lambda: processes)
    monkeypatch.setattr(memory, "available_bytes", lambda: room)
    monkeypatch.setattr(memory, "weight_bytes", lambda files, config, dtype, quantize: 899.99)
    assert memory.devices_for(None, tiny_config, "float32", "none") == devices


def test_nobody_tells_what_a_device_has_left(monkeypatch):
    monkeypatch.setattr("jax.local_devices", lambda: [SimpleNamespace(memory_stats=lambda: None)])
    for text in ("MemFree: 1 kB\n", "odd\n", ""):
        monkeypatch.setattr("pathlib.Path.read_text", lambda *_, text=text, **__: text)
        assert memory.available_bytes() is None
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, **_: os.stat("/nowhere/at/all"))
    assert memory.available_bytes() is None


@pytest.mark.parametrize("there", [0, 4095, None])
def test_a_device_that_is_full_has_room_for_nothing(monkeypatch, there):
    monkeypatch.setattr(memory, "available_bytes", lambda: there)
    if there is None:
        memory._check(1, "a cache needs {}", "take a shorter one")
        return
    with pytest.raises(
        JllamaError, match=r"a cache needs 0\.00 GiB and the device has 0\.00 GiB left: take a shorter"
    ):
        memory._check(there + 1, "a cache needs {}", "take a shorter one")
    memory._check(there, "a cache needs {}", "take a shorter one")
