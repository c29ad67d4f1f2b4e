"""What `configure` sets, each in a process of its own: JAX reads these settings only once."""

import json
import shutil
import stat
import subprocess
import sys

import pytest

from tests.support.scripts_helpers import environment

PROGRAM = """
import json, os
from jllama.machine import devices
devices.configure({arguments})
import jax
jax.numpy.ones(3).block_until_ready()
print(json.dumps(dict(
    platform=jax.devices()[0].platform, described=devices.describe_device(jax.numpy.ones(3)),
    directory=jax.config.jax_compilation_cache_dir,
    seconds=jax.config.jax_persistent_cache_min_compile_time_secs,
    preallocate=os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"])))
"""


READ_ONLY = """
import errno, os, pathlib
os.access = lambda *args: False
def mkdir(path, *args, really=pathlib.Path.mkdir, **options):
    if path.name == "xla" and not path.exists():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    really(path, *args, **options)
pathlib.Path.mkdir = mkdir
"""


def configured(cache, arguments="", program=PROGRAM, **env):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program.replace("{arguments}", arguments)],
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


@pytest.mark.parametrize("lacking", [False, True])
def test_a_cache_that_cannot_be_written_is_read_in_silence(tmp_path, lacking):
    """As on a read-only disk, which a test can't mount: warnings are errors here."""
    cache = tmp_path / "cache"
    configured(cache)
    before = sorted((cache / "xla").iterdir())
    if lacking:
        shutil.rmtree(cache / "xla")
    elsewhere = PROGRAM.replace("import json, os\n", READ_ONLY + "import json\n").replace(
        "ones(3)", "ones(5)"
    )
    found = configured(cache, program=elsewhere)
    assert found["directory"] == (None if lacking else str(cache / "xla"))
    assert lacking or found["seconds"] > 10**9
    assert sorted(cache.rglob("*cache")) == ([] if lacking else before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("'gpu'", "--device=gpu: JAX sees no NVIDIA GPU. Install its GPU build"),
        ("'tpu'", "device 'tpu' is unknown; use auto, cpu, gpu"),
    ],
)
def test_devices_that_are_refused(tmp_path, arguments, words):
    assert words in configured(tmp_path, arguments, JAX_PLATFORMS="", CUDA_VISIBLE_DEVICES="")
