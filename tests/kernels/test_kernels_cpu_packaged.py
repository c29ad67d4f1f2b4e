"""The C++ kernels that a wheel brings: which of them is taken, and that they run where no compiler is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import pytest

from jllama.errors import JllamaError
from jllama.kernels.cpu import build
from jllama.machine.native import compiling, packaged

ROOT = Path(__file__).resolve().parents[2]
AVX2 = "sse2 avx2 fma f16c bmi2 movbe abm"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl avx512dq avx512cd avx512_vnni"
AMD, INTEL = "vendor_id\t: AuthenticAMD\nflags\t: ", "vendor_id\t: GenuineIntel\nflags\t: "


@pytest.fixture
def built(monkeypatch, tmp_path):
    """A wheel's libraries for x86: every one that there may be, each with its name inside."""
    monkeypatch.setattr(packaged.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(packaged, "BUILT", tmp_path)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("JLLAMA_CXXFLAGS", raising=False)
    for variant in packaged.variants():
        (tmp_path / variant.file).write_text(variant.name)
    return tmp_path


CHOICES = {
    INTEL + f"{AVX512} avx512_bf16 amx_tile amx_bf16": "amx",
    INTEL + f"{AVX512} avx512_bf16 amx_tile": "avx512_bf16",
    AMD + f"{AVX512} avx512_bf16": "avx512_bf16_amd",
    AMD + AVX512: "avx512",
    INTEL + AVX512: "avx512",
    INTEL + AVX512.replace("avx512_vnni", "avx_vnni"): "avx_vnni",
    INTEL + AVX2: "avx2",
    AMD + AVX2: "avx2_amd",
    AMD + AVX2.replace("f16c", ""): None,
}


@pytest.mark.parametrize(("processor", "wanted"), CHOICES.items(), ids=str)
def test_the_best_that_the_processor_has_is_taken(built, monkeypatch, processor, wanted):
    monkeypatch.setattr(packaged, "processor", lambda: processor)
    found = packaged.library()
    assert (found and found.read_text()) == wanted


def test_an_instruction_set_can_be_chosen(built, monkeypatch):
    monkeypatch.setattr(packaged, "processor", lambda: AMD + f"{AVX512} avx512_bf16")
    for name, file in {"avx2": "avx2_amd", "avx512": "avx512", "avx512_bf16": "avx512_bf16_amd"}.items():
        monkeypatch.setenv("JLLAMA_ISA", name)
        assert packaged.library().read_text() == file
        assert compiling.native_flags() == packaged.suited()[0].flags
        assert build.describe().startswith(f"{name}, ")


@pytest.mark.parametrize("name", ["avx9", "AVX2", "neon", "amx", "avx2_amd"])
def test_an_instruction_set_that_is_not_there_is_refused(built, monkeypatch, name):
    monkeypatch.setattr(packaged, "processor", lambda: AMD + AVX512)
    monkeypatch.setenv("JLLAMA_ISA", name)
    with pytest.raises(JllamaError, match=r"no instruction set of this processor; use avx512, avx2$"):
        build._loaded.__wrapped__()


def test_a_library_of_another_source_or_interface_is_none(built, monkeypatch):
    monkeypatch.setattr(packaged, "processor", lambda: INTEL + AVX2)
    assert packaged.library()
    with monkeypatch.context() as changed:
        changed.setattr(packaged, "source", lambda: b"another")
        assert packaged.library() is None
    with monkeypatch.context() as changed:
        changed.setattr(packaged, "interface", lambda: b"another")
        assert packaged.library() is None
    assert b"MAJOR" in packaged.interface()
    assert b"MINOR" in packaged.interface()
    assert packaged.headers() == jax.ffi.include_dir()


@pytest.mark.parametrize("name", ["CXX", "JLLAMA_CXXFLAGS"])
def test_whoever_chooses_a_compiler_gets_it(built, monkeypatch, name):
    monkeypatch.setattr(packaged, "processor", lambda: INTEL + AVX2)
    monkeypatch.setenv(name, "g++ -O1")
    assert packaged.library() is None


def test_a_name_that_is_none_is_said(tmp_path):
    with pytest.raises(JllamaError, match="no instruction set 'avx3'; there are"):
        compiling.packages(tmp_path, ["avx3"])
    with pytest.raises(JllamaError, match="no instruction set 'avx3'; there are"):
        compiling.packages(tmp_path, [packaged.variants()[0].name, "avx3"])
    assert [*tmp_path.iterdir()] == [], "nothing is compiled before all names are known"


PROGRAM = """
import jax.numpy as jnp, numpy as np, pathlib
from jllama.kernels import cpu
assert cpu.refusal() is None, cpu.refusal()
x, w = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(12, dtype=np.float32).reshape(4, 3)
np.testing.assert_array_equal(cpu.quantized_linear(jnp.asarray(w), jnp.asarray(x)), x @ w.T)
print(*{line.split()[-1] for line in open("/proc/self/maps") if "/built/" in line}, cpu.__file__)
"""


def test_a_wheel_runs_with_its_kernels_where_no_compiler_is(tmp_path):
    """Unpacked as pip does it; one instruction set, compiled in a hurry."""
    pytest.importorskip("hatchling", reason="needs hatchling: pip install it")
    words = set(packaged.processor().split())
    here = [variant for variant in packaged.variants() if words.issuperset(variant.needs.split())]
    if not here or not any(map(shutil.which, compiling.COMPILERS)) or not Path("/proc/self/maps").exists():
        pytest.skip("no compiler, or no Linux on a processor that wheels have kernels for")
    env = {name: value for name, value in os.environ.items() if name != "CXX"}
    making = env | {"JLLAMA_WHEEL_KERNELS": here[-1].name, "JLLAMA_CXXFLAGS": "-O0"}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=making, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("jllama-*-py3-none-linux_*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    places = {"PYTHONPATH": str(tmp_path / "site"), "JLLAMA_CACHE": str(tmp_path / "cache")}
    running = env | places | {"PATH": "/nowhere"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=running, capture_output=True, text=True, check=True)
    place = tmp_path / "site" / "jllama" / "kernels" / "cpu"
    assert done.stdout.split() == [str(place / "built" / here[-1].file), str(place / "__init__.py")]
