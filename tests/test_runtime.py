"""What `configure` sets, each in a process of its own: JAX reads these settings only once."""

import json
import stat
import subprocess
import sys

import pytest
from scripts_helpers import environment

PROGRAM = """
import json, os
from jllama import runtime
runtime.configure({arguments})
import jax
jax.numpy.ones(3).block_until_ready()
print(json.dumps(dict(
    platform=jax.devices()[0].platform, described=runtime.describe_device(),
    directory=jax.config.jax_compilation_cache_dir,
    seconds=jax.config.jax_persistent_cache_min_compile_time_secs,
    preallocate=os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"])))
"""


def configured(cache, arguments="", **env):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(arguments=arguments)],
        env=environment(cache, **env),
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        return done.stderr.splitlines()[-1]
    return json.loads(done.stdout)


def test_compiled_programs_are_kept_for_this_user_alone(tmp_path):
    found = configured(tmp_path / "cache")
    assert (found["platform"], found["described"], found["preallocate"]) == ("cpu", "cpu", "false")
    directory = tmp_path / "cache" / "xla"
    assert found["directory"] == str(directory)
    assert found["seconds"] == 0
    assert (
        stat.S_IMODE(directory.stat().st_mode) == stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    )
    assert any(directory.iterdir())


def test_the_users_own_settings_stay(tmp_path):
    other = str(tmp_path / "other")
    settings = dict(JAX_COMPILATION_CACHE_DIR=other, XLA_PYTHON_CLIENT_PREALLOCATE="true")
    found = configured(tmp_path / "cache", **settings)
    assert (found["directory"], found["preallocate"]) == (other, "true")
    assert not (tmp_path / "cache" / "xla").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("'gpu'", "--device=gpu: JAX sees no NVIDIA GPU. Install its GPU build"),
        ("'tpu'", "device 'tpu' is unknown; use auto, cpu, gpu"),
    ],
)
def test_devices_that_are_refused(tmp_path, arguments, words):
    assert words in configured(tmp_path, arguments, JAX_PLATFORMS="", CUDA_VISIBLE_DEVICES="")
