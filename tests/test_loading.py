"""How a reference becomes a model: what is checked first, and what is handed on."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import jllama
from jllama import checkpoint, loading
from jllama.checkpoint.sizes import parameter_count
from jllama.errors import JllamaError
from jllama.files.model_files import TOKENIZER_GGUF, ModelFiles
from jllama.kernels.target import Target


@pytest.fixture(scope="module")
def directory(base_dir):
    return base_dir


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("float32", "float32"),
        (np.float32, "float32"),
        (jnp.bfloat16, "bfloat16"),
        (np.dtype("float16"), "float16"),
        ("bfloat16", "bfloat16"),
    ],
)
def test_a_dtype_by_any_name(given, name):
    assert loading._dtype_name(given) == name


@pytest.mark.parametrize("given", [None, "float64", np.int32, "fp16", 5, float])
def test_another_dtype_is_refused(given):
    with pytest.raises(JllamaError, match=r"^dtype .* is unknown; use float32, bfloat16, float16$"):
        loading._dtype_name(given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(quantize="int2"), "quantize 'int2' is unknown; use auto, none, int8, int4"),
        (dict(dtype="float64"), "dtype 'float64' is unknown"),
        (dict(device="gpu"), "no GPU here"),
    ],
)
def test_settings_are_checked_before_anything_is_fetched(monkeypatch, options, words):
    def configure(device):
        raise JllamaError("no GPU here")

    monkeypatch.setattr(loading, "resolve", None)
    monkeypatch.setattr(loading.devices, "configure", configure)
    with pytest.raises(JllamaError, match=words):
        loading.load("a/b", **options)


def test_what_is_asked_for_is_handed_on(monkeypatch, directory):
    asked, really = [], loading.resolve
    monkeypatch.setattr(loading, "resolve", lambda name, **how: asked.append((name, how)) or really(name))
    model = loading.load(Path(directory), dtype="float32", sha256="ab", progress=False)
    assert asked == [(str(directory), {"sha256": "ab", "progress": False})]
    assert (model.name, model.dtype, model.params.norm.dtype) == (str(directory), "float32", jnp.float32)
    assert model.generation_config == {}
    assert model.tokenizer is model.need_tokenizer() is loading.tokenizer_of(model)
    without = loading.load(str(directory), tokenizer=False)
    assert (without.tokenizer, without.dtype) == (None, "bfloat16")
    with pytest.raises(JllamaError, match=r"was loaded with tokenizer=False, and this needs one"):
        without.need_tokenizer()
    assert repr(model) == f"Model({str(directory)!r}, float32, {jllama_count(model):,} parameters)"


def jllama_count(model):
    return parameter_count(model.config)


def test_what_is_no_model_is_told():
    for model, kind in (("a/b", "str"), (None, "NoneType"), (Path("a"), "PosixPath")):
        with pytest.raises(JllamaError, match=rf"model is of type {kind}: give what jllama.load"):
            loading.tokenizer_of(model)
    for reference in (5, None, b"a/b"):
        with pytest.raises(
            JllamaError, match=r"the model's reference is of type .*: give a path or a name as text"
        ):
            jllama.load(reference)


@pytest.mark.parametrize(("words", "fits"), [(10, True), (11, False)])
def test_a_tokenizer_has_no_more_tokens_than_its_model(monkeypatch, words, fits):
    tokenizer = SimpleNamespace(base_vocab_size=words)
    monkeypatch.setattr(loading, "load_tokenizer", lambda files: tokenizer)
    if fits:
        assert loading._matching_tokenizer(None, SimpleNamespace(vocab_size=10)) is tokenizer
    else:
        with pytest.raises(
            JllamaError, match="the tokenizer has 11 tokens and the model 10: they do not belong"
        ):
            loading._matching_tokenizer(None, SimpleNamespace(vocab_size=10))


def test_where_the_tokenizer_and_the_sampling_come_from(monkeypatch, tmp_path):
    read = []
    monkeypatch.setattr("jllama.checkpoint.read_gguf_fields", lambda path: read.append(path) or {})
    monkeypatch.setattr("jllama.text.tokenizer.Tokenizer.from_gguf", lambda fields: "of a GGUF")
    monkeypatch.setattr("jllama.text.tokenizer.Tokenizer.from_dir", lambda path: f"of {path}")
    plain = ModelFiles(description="x", directory=tmp_path)
    assert loading.load_tokenizer(plain) == f"of {tmp_path}"
    assert loading.load_tokenizer(ModelFiles(description="x", gguf=tmp_path / "a.gguf")) == "of a GGUF"
    assert loading._generation_config(plain) == {}
    assert loading._generation_config(ModelFiles(description="x", gguf=tmp_path / "a.gguf")) == {}
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_k": 5}))
    assert loading._generation_config(plain) == {"top_k": 5}
    (tmp_path / TOKENIZER_GGUF).touch()
    assert loading.load_tokenizer(plain) == "of a GGUF"
    assert read == [tmp_path / "a.gguf", tmp_path / TOKENIZER_GGUF]


@pytest.mark.parametrize(("quantize", "used"), [("auto", "int8"), ("none", "none"), ("int4", "int4")])
def test_auto_takes_what_a_kernel_runs(monkeypatch, directory, quantize, used):
    seen, asked = [], []

    def check_weights(files, config, dtype, mode, *, devices):
        seen.append((dtype, mode, devices))

    def load_params(files, config, dtype, *, quantize, progress, mesh, **rest):
        seen.append((dtype, quantize, progress, mesh))
        return jnp.zeros(1)

    monkeypatch.setattr(
        "jllama.checkpoint.automatic_mode",
        lambda *given, waits: asked.append((*given[2:], waits)) or "int8",
    )
    monkeypatch.setattr("jllama.checkpoint.memory.check_weights", check_weights)
    monkeypatch.setattr("jllama.checkpoint.load_params", load_params)
    loading.load(str(directory), quantize=quantize, dtype="float16", progress=True)
    assert seen == [("float16", used, 1), ("float16", used, True, None)]
    assert asked == ([("float16", Target("cpu"), False)] if quantize == "auto" else [])


@pytest.mark.parametrize(("quantize", "anew"), [("auto", "none"), ("int8", "int8")])
def test_weights_laid_out_for_kernels_that_fail_meanwhile_are_read_again(
    monkeypatch, directory, quantize, anew
):
    read, modes = checkpoint.load_params, []
    monkeypatch.setattr(
        "jllama.checkpoint.load_params",
        lambda *given, quantize, **rest: modes.append(quantize) or read(*given, quantize=quantize, **rest),
    )
    monkeypatch.setattr("jllama.checkpoint.automatic_mode", lambda *_, **__: "auto")
    monkeypatch.setattr("jllama.kernels.cpu.in_tiles", lambda params: True)
    for fails in (False, True):
        monkeypatch.setattr("jllama.kernels.failed", lambda target, fails=fails: fails)
        loading.load(str(directory), quantize=quantize)
    assert modes == [quantize, quantize, anew]


@pytest.mark.parametrize(
    ("device", "variables", "driven", "begun"),
    [
        ("auto", {}, False, ["float16"]),
        ("auto", {}, True, []),
        ("cpu", {}, True, ["float16"]),
        ("cpu", {"JAX_PLATFORMS": "cuda"}, True, ["float16"]),
        ("auto", {"JAX_PLATFORMS": "cpu"}, True, ["float16"]),
        ("auto", {"JAX_PLATFORMS": "cuda"}, False, []),
        ("auto", {"JLLAMA_KERNELS": "0"}, False, []),
    ],
)
def test_compilers_begin_before_jax_is_imported_where_the_cpu_will_run_it(
    monkeypatch, directory, device, variables, driven, begun
):
    for name in ("JAX_PLATFORMS", "JLLAMA_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    expected = []
    monkeypatch.setattr(loading.units, "begun", expected.append)
    monkeypatch.setattr(loading.units.packaged, "library", lambda: None)
    monkeypatch.setattr(loading.devices, "Path", lambda path: SimpleNamespace(exists=lambda: driven))
    monkeypatch.setattr(loading.devices, "configure", lambda device: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loading.load(str(directory), dtype="float16", device=device)
    assert expected == [unit for dtype in begun for unit in ("core", f"attention_{dtype}")]
    expected.clear()
    with pytest.raises(JllamaError):
        loading.load(str(directory / "nowhere"))
    assert expected == [], "a wrong reference compiles nothing"


def test_what_is_quantised_already_stays_so(monkeypatch, directory):
    monkeypatch.setattr("jllama.checkpoint.formats.saved.is_saved", lambda files: True)
    for mode in ("int8", "int4", "none"):
        with pytest.raises(JllamaError, match=f"is quantised already: '{mode}' can't change that"):
            loading.load(str(directory), quantize=mode)


@pytest.mark.parametrize(("given", "used"), [(None, "known"), ("mine", "mine")])
def test_a_ready_made_model_s_hash_is_used_unless_another_is_given(monkeypatch, given, used):
    asked = []
    monkeypatch.setattr(loading.ready_made, "reference", lambda name: ("pypi:x==1", "known"))
    monkeypatch.setattr(loading, "resolve", lambda name, **how: asked.append((name, how)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loading.load("ready", sha256=given)
    assert asked == [("pypi:x==1", {"sha256": used, "progress": False})]


@pytest.mark.parametrize(("given", "positions"), [(None, 2048), (2, 2), (np.int32(9), 9), (3000, 3000)])
def test_how_many_positions_a_text_has(given, positions):
    model = SimpleNamespace(config=SimpleNamespace(context_length=3000))
    assert loading.checked_max_seq_len(model, given) == positions
    small = SimpleNamespace(config=SimpleNamespace(context_length=100))
    assert loading.checked_max_seq_len(small, None) == 100
    for wrong in (1, 0, 101, 3001, 2.0, "3"):
        with pytest.raises(JllamaError, match=r"must be from 2 to the model's context of 100"):
            loading.checked_max_seq_len(small, wrong)


def test_a_tokenizer_of_another_model_is_told_before_the_weights_are_read(monkeypatch, directory):
    monkeypatch.setattr(loading, "load_tokenizer", lambda files: SimpleNamespace(base_vocab_size=10**6))
    monkeypatch.setattr(loading, "_load_weights", None)
    with pytest.raises(JllamaError, match="the tokenizer has 1000000 tokens"):
        loading.load(str(directory))


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "2", None, "x" * 100])
def test_on_how_many_devices_is_a_whole_number_or_auto(monkeypatch, count):
    monkeypatch.setattr(loading, "resolve", None)
    with pytest.raises(
        JllamaError, match=r"^tensor_parallel=.{1,40} must be a whole number from 1, or auto$"
    ):
        loading.load("a/b", tensor_parallel=count)


@pytest.mark.parametrize(
    ("given", "fitting", "used"), [(1, None, 1), (2, None, 2), ("auto", 1, 1), ("auto", 4, 4)]
)
def test_a_model_is_cut_for_as_many_devices_as_are_asked_for(monkeypatch, directory, given, fitting, used):
    told = []
    how = dict(dtype="float32", quantize="int8", tensor_parallel=given, tokenizer=False)

    def devices_for(files, config, dtype, quantize):
        told.append(("for", files.directory, config.vocab_size, dtype, quantize))
        return fitting

    def load_params(files, config, dtype, *, progress, quantize, mesh):
        told.append(("read", files.directory, dtype, progress, quantize, mesh))
        return "weights"

    monkeypatch.setattr("jllama.checkpoint.memory.devices_for", devices_for)
    monkeypatch.setattr("jllama.checkpoint.load_params", load_params)
    monkeypatch.setattr("jllama.kernels.joined", lambda params: f"joined {params}")
    monkeypatch.setattr("jllama.sharding.check", lambda config, *asked: told.append(("check", *asked)))
    monkeypatch.setattr("jllama.checkpoint.leaves.choose.cut_blocks", lambda mode, config: f"{mode}'s blocks")
    monkeypatch.setattr("jllama.sharding.mesh_of", lambda count: SimpleNamespace(size=count))
    monkeypatch.setattr("jllama.sharding.widened", lambda config, count: (config.vocab_size, count))
    monkeypatch.setattr(
        "jllama.checkpoint.memory.check_weights",
        lambda files, config, dtype, quantize, *, devices: told.append(("room", dtype, quantize, devices)),
    )
    model = loading.load(str(directory), progress=True, **how)
    place, mesh = Path(directory), None if used == 1 else SimpleNamespace(size=used)
    words = json.loads((place / "config.json").read_text())["vocab_size"]
    assert told == [
        *([] if fitting is None else [("for", place, words, "float32", "int8")]),
        *([] if used == 1 else [("check", used, "int8's blocks")]),
        ("room", "float32", "int8", used),
        ("read", place, "float32", True, "int8", mesh),
    ]
    assert model.params == "joined weights"
    assert model.parameters == parameter_count(model.checkpoint_config)
    assert model.checkpoint_config.vocab_size == words
    assert (model.config.vocab_size if used == 1 else model.config) == (words if used == 1 else (words, used))


def test_a_device_is_chosen_before_the_first_use_and_a_gpu_before_anything_is_fetched(monkeypatch, directory):
    told = []
    monkeypatch.setattr(loading.devices, "configure", lambda device: told.append(device))
    monkeypatch.setattr(loading, "resolve", lambda name, **how: told.append(name) or 1 / 0)
    for device, wanted in (("gpu", ["gpu", "a/b"]), ("cpu", ["a/b"]), ("auto", ["a/b"])):
        told.clear()
        with pytest.raises(ZeroDivisionError):
            loading.load("a/b", device=device)
        assert told == wanted
    told.clear()
    monkeypatch.setattr(loading, "resolve", lambda name, **how: ModelFiles(description=name))
    monkeypatch.setattr("jllama.checkpoint.read_config", lambda files: told.append("read") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loading.load("a/b", device="cpu")
    assert told == ["cpu", "read"]


def test_what_auto_means_is_asked_for_the_place_of_the_weights(monkeypatch, directory):
    asked = []
    monkeypatch.setattr(
        "jllama.checkpoint.automatic_mode", lambda *given, waits: asked.append((*given, waits)) or "none"
    )
    model = loading.load(str(directory), dtype="float16")
    ((files, config, dtype, target, waits),) = asked
    assert (files.directory, config, dtype) == (Path(directory), model.config, "float16")
    assert (target.platform, target.mesh, waits) == ("cpu", None, False)
    asked.clear()
    loading.load(str(directory), quantize="none")
    assert asked == []


def test_a_model_has_what_its_files_say_of_sampling(monkeypatch, directory):
    monkeypatch.setattr(loading, "_generation_config", lambda files: {"top_k": len(files.description)})
    model = loading.load(str(directory), tokenizer=False)
    assert model.generation_config == {"top_k": len(str(directory))}
