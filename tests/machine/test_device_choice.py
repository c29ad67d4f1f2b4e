"""What is asked of JAX, and what is made of its answers: in this process, with JAX's settings replaced."""

import math
import os
import time
from types import SimpleNamespace

import jax
import pytest

from jllama.errors import JllamaError
from jllama.machine import devices


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What is set in JAX; it says that it runs on `asked.platform`."""
    made = SimpleNamespace(set={}, platform="cpu", error=None, values={"jax_compilation_cache_dir": None})

    def found():
        if made.error:
            raise made.error
        return [SimpleNamespace(platform=made.platform, device_kind="A GPU")]

    config = SimpleNamespace(update=made.set.__setitem__, values=made.values)
    monkeypatch.setattr(jax, "config", config)
    monkeypatch.setattr(jax, "devices", found)
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    return made


@pytest.mark.parametrize(
    ("device", "platform", "wanted"),
    [("auto", "cpu", None), ("auto", "gpu", None), ("cpu", "cpu", "cpu"), ("gpu", "gpu", "cuda")],
)
def test_a_device_is_asked_for(asked, device, platform, wanted):
    asked.platform = platform
    devices.configure(device)
    assert asked.set.get("jax_platforms") == wanted


@pytest.mark.parametrize("error", [None, RuntimeError("none"), AssertionError("no build")])
def test_a_gpu_that_is_not_there_is_told(asked, error):
    asked.error = error
    with pytest.raises(JllamaError, match="--device=gpu: JAX sees no NVIDIA GPU"):
        devices.configure("gpu")


@pytest.mark.parametrize(("platform", "error"), [("gpu", None), ("cpu", RuntimeError("none"))])
def test_a_cpu_asked_for_too_late_is_told(asked, platform, error):
    asked.platform, asked.error = platform, error
    with pytest.raises(JllamaError, match="--device=cpu came too late"):
        devices.configure("cpu")


@pytest.mark.parametrize(("given", "kept"), [(None, "false"), ("true", "true")])
def test_memory_of_a_gpu_is_taken_as_it_is_needed_unless_the_user_says_otherwise(
    asked, monkeypatch, given, kept
):
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.delenv(name) if given is None else monkeypatch.setenv(name, given)
    devices.configure()
    assert os.environ[name] == kept


def test_an_unknown_device_changes_nothing(asked):
    with pytest.raises(JllamaError, match="device 'tpu' is unknown; use auto, cpu, gpu"):
        devices.configure("tpu")
    assert asked.set == {}


def test_programs_are_kept_whatever_their_size(asked, tmp_path):
    devices.configure()
    assert asked.set == {
        "jax_compilation_cache_dir": str(tmp_path / "cache" / "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


def test_a_cache_that_can_not_be_written_is_read_alone(asked, monkeypatch, tmp_path):
    devices.cache_dir("xla")
    monkeypatch.setattr("os.access", lambda path, how: not how & os.W_OK)
    devices.configure()
    assert asked.set["jax_persistent_cache_min_compile_time_secs"] == math.inf
    assert asked.set["jax_persistent_cache_enable_xla_caches"] == "none"


def test_the_users_own_cache_stays(asked):
    asked.values["jax_compilation_cache_dir"] = "/elsewhere"
    devices.configure()
    assert asked.set == {}


READING = "Error reading persistent compilation cache entry for 'jit_f': bad"


@pytest.mark.parametrize(
    ("warning", "ours", "left"),
    [
        (READING, True, ["jit_fg-1-cache", "jit_g-2-cache"]),
        (READING.replace("reading", "writing"), True, ["jit_fg-1-cache", "jit_g-2-cache"]),
        (READING, False, ["jit_f-0-atime", "jit_f-0-cache", "jit_fg-1-cache", "jit_g-2-cache"]),
        ("Another warning", True, ["jit_f-0-atime", "jit_f-0-cache", "jit_fg-1-cache", "jit_g-2-cache"]),
    ],
)
def test_a_damaged_program_is_dropped_from_our_cache_alone(asked, warning, ours, left):
    place = devices.cache_dir("xla")
    for name in ("jit_f-0-cache", "jit_f-0-atime", "jit_g-2-cache", "jit_fg-1-cache"):
        (place / name).touch()
    asked.values["jax_compilation_cache_dir"] = str(place) if ours else "/elsewhere"
    devices.drop_damaged_programs(warning)
    assert sorted(path.name for path in place.iterdir()) == left


def test_a_damaged_program_that_can_not_be_removed_stays(asked, monkeypatch):
    def refuse(path):
        raise PermissionError

    place = devices.cache_dir("xla")
    (place / "jit_f-0-cache").touch()
    asked.values["jax_compilation_cache_dir"] = str(place)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    devices.drop_damaged_programs(READING)
    assert (place / "jit_f-0-cache").exists()


def test_where_jax_puts_arrays(asked):
    assert devices.platform() == "cpu"
    asked.platform = "gpu"
    assert devices.platform() == "gpu"


@pytest.mark.parametrize(
    ("platform", "count", "words"),
    [("cpu", 1, "cpu"), ("cpu", 2, "2 × cpu"), ("gpu", 1, "A GPU"), ("gpu", 8, "8 × A GPU")],
)
def test_what_holds_a_model(platform, count, words):
    held = [SimpleNamespace(platform=platform, device_kind="A GPU") for _ in range(count)]
    assert devices.describe_device([SimpleNamespace(devices=lambda: held)]) == words


KEPT = dict(began=5.0, enabled=True, place="xla", platforms=["cpu"])


@pytest.mark.parametrize(
    ("change", "keeps"),
    [
        (dict(), True),
        (dict(began=None), False),  # a process of somebody else's, who may change what JAX compiles
        (dict(enabled=False), False),
        (dict(place="elsewhere"), False),
        (dict(place=None), False),
        (dict(platforms=["gpu"]), False),
        (dict(platforms=["cpu", "cpu"]), False),
    ],
)
def test_programs_are_kept_on_one_cpu_where_jax_s_own_are(monkeypatch, tmp_path, change, keeps):
    given = KEPT | change
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    place = given["place"] and str(tmp_path / "cache" / given["place"])
    values = dict(jax_compilation_cache_dir=place, jax_enable_compilation_cache=given["enabled"])
    found = [SimpleNamespace(platform=platform) for platform in given["platforms"]]
    monkeypatch.setattr(jax, "config", SimpleNamespace(values=values))
    monkeypatch.setattr(jax, "devices", lambda: found)
    monkeypatch.setattr(devices._PROCESS, "began", given["began"])
    assert devices._keeps_programs() is keeps


@pytest.mark.parametrize(("variables", "wanted"), [({}, [(-8, 1)]), ({"MALLOC_ARENA_MAX": "4"}, [])])
def test_threads_of_a_command_share_one_heap_unless_the_user_says_otherwise(monkeypatch, variables, wanted):
    asked = []
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    library = SimpleNamespace(mallopt=lambda *given: asked.append(given))
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda path: library)
    devices._share_memory()
    assert asked == wanted
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda path: SimpleNamespace())
    devices._share_memory()


def test_a_command_says_when_its_process_began(monkeypatch):
    monkeypatch.setattr(devices._PROCESS, "began", None)
    monkeypatch.setattr(devices, "_share_memory", lambda: None)
    assert devices.process_began() == 0
    devices.own_process()
    assert 0 <= time.time() - devices.process_began() < 600
