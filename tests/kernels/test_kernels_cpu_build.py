"""How the C++ kernels are compiled and found, and what the sanitizers say about them."""

import contextlib
import ctypes
import errno
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jllama import kernels
from jllama.errors import JllamaError
from jllama.files.paths import cache_dir
from jllama.kernels import cpu
from jllama.kernels.cpu import build
from jllama.kernels.target import Target
from jllama.machine.native import compiling, packaged, units
from jllama.machine.native.cores import cores
from tests.support.kernels_cpu import skip_without_kernels
from tests.support.scripts_helpers import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """As if nothing had been compiled or loaded in this process."""
    monkeypatch.setattr(units, "_UNITS", {})
    for name, empty in (("_THERE", set()), ("_WANTED", set()), ("_BROKEN", {})):
        monkeypatch.setattr(build, name, empty)


def test_without_a_compiler_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    message = build._loaded.__wrapped__()
    assert "no C++ compiler; install g++" in message
    assert "\n" not in message


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    assert "false failed" in build._loaded.__wrapped__()
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("words", ["{} -fno-lto", "'{}' -O0", "env {}"])
def test_the_compiler_may_be_several_words(monkeypatch, tmp_path, words):
    """Without compiling: what would be run is what counts."""
    compiler = next(filter(None, map(shutil.which, compiling.COMPILERS)), None) or pytest.skip("no compiler")
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", words.format(compiler))
    ran = []
    monkeypatch.setattr(compiling, "_run_all", lambda commands: ran.extend(commands) or written(commands))
    assert compiling.compiled().exists()
    assert all(
        command[: len(words.split())] == words.format(compiler).replace("'", "").split() for command in ran
    )


def written(commands):
    """Stands in for the compiler: every output is there."""
    for command in commands:
        Path(command[-1]).write_bytes(b"library")


def test_a_compiler_that_is_no_command_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "g++ '")
    assert "CXX=g++ ' is no command" in build._loaded.__wrapped__()


@pytest.mark.parametrize("spoil", [lambda data: data[:-3], lambda data: b"", lambda data: data[:-1] + b"?"])
def test_a_damaged_library_is_compiled_again(monkeypatch, tmp_path, spoil):
    """To load it would end the process."""
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "true")
    compilations = []
    monkeypatch.setattr(compiling, "_run_all", lambda commands: compilations.append(1) or written(commands))
    library = compiling.compiled()
    assert compiling.compiled() == library
    assert len(compilations) == 2  # objects, library
    library.write_bytes(spoil(library.read_bytes()))
    assert compiling.compiled().read_bytes() == b"library"
    assert len(compilations) == 4


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler that writes at once, and a cache of its own: how often it was asked."""
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "true")
    compilations = []
    monkeypatch.setattr(compiling, "_run_all", lambda commands: compilations.append(1) or written(commands))
    return compilations


def test_the_librarys_name_tells_machines_compilers_and_flags_apart(compiler, monkeypatch):
    """The cache may lie on a disk that several machines share."""
    names = [compiling.compiled().name]
    with monkeypatch.context() as other:
        other.setattr(packaged, "processor", lambda: "another processor")
        names.append(compiling.compiled().name)
    names.append(compiling.compiled(("-march=x86-64",)).name)
    monkeypatch.setenv("JLLAMA_CXXFLAGS", "-O1")
    names.append(compiling.compiled().name)
    monkeypatch.setenv("CXX", "env true")
    names.append(compiling.compiled().name)
    assert len(set(names)) == len(names)


def test_what_killed_compilations_and_earlier_versions_left_is_swept(compiler, tmp_path):
    directory = cache_dir("kernels")
    hour, month = 3600 + 60, 30 * 86400 + 60
    ages = {
        "compile-x": hour,
        "compile-y": 0,
        "tmpold": hour,
        "tmpnew": 0,
        "cpu-old.so": month,
        "cpu-other.so": 0,
        "old.ptx": month,
    }
    ages |= {"new.ptx": 0, "notes.txt": month}
    for name, age in ages.items():
        path = directory / name
        path.touch() if path.suffix else path.mkdir()
        if path.is_dir():
            (path / "step.o").touch()
        os.utime(path, (time.time() - age,) * 2)
    library = compiling.compiled()
    left = {path.name for path in directory.iterdir()} - {library.name}
    assert left == {"compile-y", "tmpnew", "cpu-other.so", "new.ptx", "notes.txt"}


@pytest.mark.parametrize("alone", [True, False])
def test_only_who_is_alone_removes_damaged_ones(monkeypatch, tmp_path, alone):
    """Where a file system has no locks, another may just have compiled it."""
    swept = []
    monkeypatch.setattr(compiling, "locked", lambda name: contextlib.nullcontext(alone))
    monkeypatch.setattr(compiling, "cache_dir", lambda *_, **__: tmp_path)
    monkeypatch.setattr(compiling.kept, "sweep", lambda _, useless: swept.extend(useless))
    monkeypatch.setattr(compiling, "_compile", lambda *given: given)
    (tmp_path / "cpu-core-damaged.so").touch()
    words = (("c++",), ("-O2",), ("core",), "cpu-core")
    assert compiling._compiled_alone(*words) == (*words, tmp_path)
    assert swept == [tmp_path / "cpu-core-damaged.so"] * alone


def test_a_library_in_use_stays(compiler, tmp_path):
    library = compiling.compiled()
    os.utime(library, (1, 1))
    assert compiling.compiled() == library
    assert time.time() - library.stat().st_mtime < 1000


def test_two_starts_at_once_compile_once(compiler):
    threads = [threading.Thread(target=compiling.compiled) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(500)
    assert len(compiler) == 2  # objects, library


def test_a_library_in_a_cache_that_cannot_be_written_is_used(compiler, monkeypatch):
    library = compiling.compiled()
    monkeypatch.setattr(os, "access", lambda *args: False)

    def read_only(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", read_only)
    assert compiling.compiled() == library
    library.unlink()
    assert "cannot use the cache directory" in build._loaded.__wrapped__()


def test_a_full_disk_is_named(compiler, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = build._loaded.__wrapped__()
    assert f"cannot write to {tmp_path / 'cache' / 'kernels'}: No space left on device" in message
    assert not list((tmp_path / "cache" / "kernels").iterdir())


def test_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("JLLAMA_THREADS", "3")
    assert build.threads() == 3
    assert build.describe().endswith("3 threads")
    monkeypatch.setenv("JLLAMA_THREADS", "")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3, 5})
    assert build.threads() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on a Mac
    assert build.threads() == 8


@pytest.mark.parametrize("said", ["none", "0", "-1", "257", "100000", "1.5", "²", "1" * 5000])
def test_threads_that_are_no_number_or_too_many_are_refused(monkeypatch, said):
    monkeypatch.setenv("JLLAMA_THREADS", said)
    with pytest.raises(JllamaError, match="give a number from 1 to 256"):
        build._loaded.__wrapped__()


def test_where_one_compilation_fails_the_others_are_not_waited_for(monkeypatch):
    class Process(contextlib.nullcontext):
        """One that fails if its command is to."""

        def __init__(self, command, **_):
            super().__init__()
            self.returncode, self.killed = int(command[0]), False
            started.append(self)

        def communicate(self, timeout):
            return "", "in a.cc:\na.cc:1: error: no\nmore"

        def kill(self):
            self.killed = True

    started = []
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(compiling, "_kill", Process.kill)
    monkeypatch.setattr(compiling, "cores", lambda: 3)
    with pytest.raises(subprocess.SubprocessError, match=r"^a\.cc:1: error: no$"):
        compiling._run_all([["0"], ["1"], ["0"], ["0"]])
    assert [process.killed for process in started] == [True] * 3, "the fourth has not begun"


ENDS = """
import sys, time
from pathlib import Path
from jllama.cli import interrupts
from jllama.machine.native import units
units.begun("core"), units.begun("four_bits")
while not (Path(sys.argv[1]).exists() and Path(sys.argv[1]).read_text().count("\\n") == 2):
    time.sleep(0.01)
getattr(interrupts, sys.argv[2])(2)
"""


@pytest.mark.parametrize("how", ["end", "leave"])
def test_compilers_end_with_their_process(how, tmp_path):
    """And what they had others do: `sleep` stands for what g++ runs, which has nobody else to end it."""
    compiler, pids = tmp_path / "compiler", tmp_path / "pids"
    lines = "#!/bin/sh", '[ "$1" = --version ] && exit', f"sleep 600 & echo $! >>{pids}", "wait"
    compiler.write_text("\n".join(lines))
    compiler.chmod(0o700)
    variables = dict(os.environ, CXX=str(compiler), JLLAMA_CACHE=str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-c", ENDS, pids, how],
        env=variables,
        cwd=ROOT,
        timeout=PATIENCE,
        capture_output=True,
    )
    assert done.returncode == 2, done.stderr
    assert not done.stderr
    deadline = time.monotonic() + PATIENCE
    while any(_runs(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline, "they go on"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def test_units_are_compiled_at_the_same_time_and_once(monkeypatch):
    met, asked = threading.Barrier(2), []

    def compiled(units):
        asked.extend(units)
        met.wait(60)
        return Path(*units)

    monkeypatch.setattr(units, "compiled", compiled)
    monkeypatch.setattr(units, "_SLOTS", threading.Semaphore(2))
    found = [units.begun(unit) for unit in ("core", "four_bits", "core")]
    assert [str(future.result(60)) for future in found] == ["core", "four_bits", "core"]
    assert sorted(asked) == ["core", "four_bits"]


def test_what_every_model_needs_is_begun_unless_a_wheel_has_it(monkeypatch):
    monkeypatch.delenv("JLLAMA_KERNELS", raising=False)
    asked = []
    monkeypatch.setattr(units, "compiled", lambda units: asked.extend(units) or Path(*units))
    monkeypatch.setattr(packaged, "library", lambda: Path("a wheel's"))
    units.expect("float16", "cpu")
    assert units._UNITS == {}
    monkeypatch.setattr(packaged, "library", lambda: None)
    units.expect("float16", "cpu")
    assert [str(units.begun(unit).result(60)) for unit in (compiling.CORE, "attention_float16")] == asked
    monkeypatch.setattr(packaged, "library", refused)
    units.expect("bfloat16", "cpu")
    assert len(asked) == 2


def refused():
    raise JllamaError("JLLAMA_ISA='avx3'")


def test_a_core_that_is_compiled_is_taken_for_granted_only_where_nobody_waits(monkeypatch):
    may_end = threading.Event()

    def compiled(units):
        may_end.wait(60)
        raise JllamaError("c++ failed")

    monkeypatch.setattr(units, "compiled", compiled)
    monkeypatch.setattr(packaged, "library", lambda: None)
    monkeypatch.setattr(build, "_loaded", build._loaded.__wrapped__)
    assert build.reason(["four_bits"], waits=False) is None
    assert cpu.refusal(waits=False) is None
    assert {compiling.CORE, "four_bits"} == {*units._UNITS}
    may_end.set()
    assert "c++ failed" in build.reason(["four_bits"])
    assert "c++ failed" in build.reason(waits=False)
    assert kernels.failed(Target("cpu"))
    assert not kernels.failed(Target("cpu", False))
    assert not kernels.failed(Target("gpu"))


def test_the_compiler_reads_no_header_that_takes_long():
    """<algorithm>, <memory>, <thread> and immintrin.h took half of a part's time."""
    read = {*"cstdint cstdlib cstring pthread.h unistd.h arm_neon.h sys/mman.h sys/syscall.h atomic".split()}
    files = {path.name: path.read_text("utf-8") for path in packaged.HERE.glob("*.[ch]*")}
    lines = {line for text in files.values() for line in text.splitlines() if line.startswith("#include <")}
    assert {line.split("<")[1].rstrip(">") for line in lines} == read | {"vector"}
    assert [name for name, text in files.items() if "#include <vector>" in text] == ["kernels.cc"]


def test_a_part_is_waited_for_when_it_is_called(monkeypatch):
    """A model is loaded and its programs are compiled meanwhile."""
    skip_without_kernels()
    may_end, made = threading.Event(), compiling.compiled(units=("six_halves",))

    def compiled(units):
        may_end.wait(60)
        return made

    monkeypatch.setattr(units, "compiled", compiled)
    monkeypatch.setattr(build, "_THERE", set())
    monkeypatch.setattr(build, "_WANTED", set())
    assert not isinstance(build.load(["six_halves"]), str)
    assert not units._UNITS["six_halves"].done()
    threading.Timer(0.1, may_end.set).start()
    build.settle()
    assert {"six_halves"} == build._THERE
    assert not isinstance(build.load(["six_halves"]), str)
    assert set() == build._WANTED


def test_a_part_that_fails_is_an_error_once_and_then_a_reason(monkeypatch):
    skip_without_kernels()

    def compiled(units):
        raise JllamaError(f"{units} failed")

    monkeypatch.setattr(units, "compiled", compiled)
    for name in ("_THERE", "_WANTED"):
        monkeypatch.setattr(build, name, set())
    monkeypatch.setattr(build, "_BROKEN", {})
    assert not isinstance(build.load(["six_halves"]), str)
    assert not build.broken()
    with pytest.raises(JllamaError, match=r"'six_halves',\) failed.*; JLLAMA_KERNELS=0 does without"):
        build.settle()
    build.settle()
    assert build.broken()
    assert "failed" in build.load(["six_halves"])
    assert not isinstance(build.load(), str)


@pytest.mark.parametrize("loads", [True, False])
def test_a_call_whose_part_nobody_asked_for_loads_it_or_fails(tmp_path, loads):
    """A program that an earlier process traced is run without asking for anything."""
    skip_without_kernels()
    libraries = {
        unit: ctypes.CDLL(str(shutil.copy(compiling.compiled(units=(unit,)), tmp_path / f"{unit}.so")))
        for unit in (compiling.CORE, "dense_float32")
    }
    core, asked = libraries[compiling.CORE], []

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def load_part(number):
        asked.append(compiling.PARTS[number])
        if loads:
            build._connect(core, libraries[asked[-1]], asked[-1])

    suffix = f"_lacking_{loads}"
    build.register(core, suffix)
    core.jllama_load_part(load_part)
    w, x = jnp.ones((3, 5)), jnp.ones((2, 5))
    for _ in range(2):
        with (
            contextlib.nullcontext()
            if loads
            else pytest.raises(jax.errors.JaxRuntimeError, match="a part of the CPU")
        ):
            assert float(cpu.quantized_linear(w, x, target=f"jllama_product{suffix}")[0, 0]) == 5
    assert asked == ["dense_float32"] * (1 if loads else 2)


def test_sanitizers_find_nothing(monkeypatch):
    """Address and undefined behaviour, over steps and products, with more threads than cores."""
    skip_without_kernels()
    libraries = [sanitizer(name) for name in ("libasan.so", "libubsan.so")]
    if not all(libraries):
        pytest.skip("the compiler has no sanitizers")
    monkeypatch.setenv("JLLAMA_CXXFLAGS", "-fsanitize=address,undefined -fno-sanitize-recover=all -O0")
    # Here: a compiler under the sanitizers takes thrice as long.
    parts = ("attention_float32", "dense_float32", "dense_bfloat16", "eight_bits", "four_bits")
    with ThreadPoolExecutor(cores()) as together:
        list(together.map(lambda unit: compiling.compiled(units=(unit,)), (compiling.CORE, *parts)))
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "JLLAMA_THREADS": "3",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-2000:]


SANITIZED = """
import dataclasses, jax, jax.numpy as jnp, numpy as np
from jllama.layers.kind import LayerKind
from jllama.layers.rope import Rope
from tests.support import kernels_cpu as t
assert t.cpu.refusal() is None, t.cpu.refusal()
rng = np.random.default_rng(0)
config = dataclasses.replace(t.BASE, sliding_window=5, hidden_size=96, intermediate_size=192)
params = t.params_of(config)
models = [(config, params)]
for case in ((8, 96, False), (4, 32, True)):
    made = t.weights_like(params, rng, lambda s: t.random_weight(rng, s, *case))
    models.append((config, t.cpu.prepare(made)))
kinds = (LayerKind(window=4), LayerKind(rope=None), LayerKind(rope=Rope(partial_rotary_factor=0.5)))
caps = dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0, hidden_act="gelu_pytorch_tanh")
for where, norm in (("both", "head"), ("post", "full")):
    norms = dict(norm_placement=where, qk_norm=norm, norm_offset=1.0)
    other = dataclasses.replace(config, layer_kinds=kinds, num_hidden_layers=3, **norms, **caps)
    models.append((other, t.params_of(other)))
for config, params in models:
    for lengths, T in (((6, 5, 0), 1), ((3,), 36)):
        cache = t.filled_cache(config, rng, lengths, 39, "float32")
        tokens = jnp.asarray(rng.integers(-1, 84, (len(lengths), T)), jnp.int32)
        jax.block_until_ready(t.kernel_step(config, params, tokens, cache, ""))
w, x = jnp.ones((37, 45), jnp.bfloat16), jnp.ones((21, 45), jnp.float32)
jax.block_until_ready(t.cpu.quantized_linear(w, x))
"""


def sanitizer(name: str) -> str:
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    found = subprocess.run(
        [*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() if os.path.isabs(found.stdout.strip()) else ""
