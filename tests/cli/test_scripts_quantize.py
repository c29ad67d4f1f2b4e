"""`quantize.py` and `perplexity.py` as a user runs them."""

import numpy as np
import pytest

from jllama.files.paths import cache_dir
from tests.support.checkpoint_files import write_directory
from tests.support.checkpoint_generator import random_tensors
from tests.support.scripts_helpers import assert_explained
from tests.support.tiny_checkpoint import KEYS, write_tiny_model

QUANTIZE, PERPLEXITY = "quantize.py", "perplexity.py"


@pytest.fixture(scope="module")
def model(base_dir):
    return base_dir


@pytest.fixture(scope="module")
def small(server, model, tmp_path_factory):
    """The model in 8 bits, as `quantize.py` wrote it."""
    output = tmp_path_factory.mktemp("quantized") / "small"
    outcome = server.run(QUANTIZE, f"--model={model}", "--quantize=int8", f"--output={output}")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", f"wrote {output}\n")
    return output


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("The same words again, and the same words again.")
    return file


def test_a_quantised_directory_runs(server, small, model):
    flags = ["--prompt=Once", "--max_new_tokens=8", "--ignore_eos", "--json", "--dtype=float32"]
    saved = server.run("generate.py", f"--model={small}", *flags).report
    while_loading = server.run("generate.py", f"--model={model}", "--quantize=int8", *flags).report
    assert saved["token_ids"] == while_loading["token_ids"]


def test_what_is_written_is_in_rows_though_kernels_read_tiles(server, small, model, tmp_path):
    """The kernels are those that other tests compile, too."""
    flags = [f"--model={model}", "--quantize=int8", f"--output={tmp_path / 'new'}"]
    outcome = server.run(QUANTIZE, *flags, JLLAMA_KERNELS="1", JLLAMA_CACHE=str(cache_dir()))
    assert outcome.code == 0, outcome
    written, wanted = ((place / "model.safetensors").read_bytes() for place in (tmp_path / "new", small))
    assert written == wanted


def test_what_is_quantised_stays_so(server, small, tmp_path):
    flags = [f"--model={small}", "--quantize=int4"]
    words = f"{small} is quantised already"
    assert_explained(server.run(QUANTIZE, *flags, f"--output={tmp_path / 'new'}"), words)
    assert_explained(server.run("generate.py", *flags, "--prompt=x"), f"{words}: 'int4' can't change that")


def test_what_quantises_nothing_is_refused(server, model, small, tmp_path):
    output = f"--output={tmp_path / 'new'}"
    words = f"{model} holds no blocks of 4 to 8 bits to keep: give --quantize=int8 or int4"
    assert_explained(server.run(QUANTIZE, f"--model={model}", output), words)
    none = server.run(QUANTIZE, f"--model={model}", "--quantize=none", output)
    assert_explained(none, "quantises nothing")
    assert not (tmp_path / "new").exists()
    occupied = server.run(QUANTIZE, "--model=nowhere", "--quantize=int8", f"--output={small}")
    assert_explained(occupied, f"{small} exists already")


def test_perplexity_of_each_mode(server, model, text):
    flags = [f"--model={model}", f"--text={text}", "--dtype=float32", "--modes=none,int8", "--rounding"]
    none, int8 = server.run(PERPLEXITY, *flags, "--json").report["rows"]
    assert (none["mode"], int8["mode"], none["top1_agreement"]) == ("none", "int8", 1.0)
    assert int8["perplexity"] == pytest.approx(none["perplexity"], rel=0.05)
    assert int8["weights_mib"] < 0.5 * none["weights_mib"]
    assert (none["logit_error"], none["same_top1"]) == (0.0, 1.0)
    assert int8["logit_error"] < 1e-3
    assert "rounding: logits" in server.run(PERPLEXITY, *flags).out


def test_perplexity_of_a_quantised_directory(server, small, text):
    flags = [f"--model={small}", f"--text={text}", "--json"]
    assert_explained(server.run(PERPLEXITY, *flags), f"{small} is quantised already: give --modes=auto")
    (only,) = server.run(PERPLEXITY, *flags, "--modes=auto").report["rows"]
    assert only["perplexity"] > 1


def test_a_full_disk_under_the_output(server, small, text):
    outcome = server.run(PERPLEXITY, f"--model={small}", f"--text={text}", "--modes=auto", stdout="/dev/full")
    assert (outcome.code, "Traceback" in outcome.err) == (2, False)
    assert outcome.err.endswith("error: cannot write the output: No space left on device\n")


def test_perplexity_beyond_all_numbers_is_null(server, text, tmp_path):
    wild, tensors = write_tiny_model(tmp_path / "wild"), random_tensors(KEYS)
    write_directory(wild, KEYS, tensors | {"model.norm.weight": np.full(32, 1e5, np.float32)})
    flags = [f"--model={wild}", f"--text={text}", "--modes=none,none"]
    row, _ = server.run(PERPLEXITY, *flags, "--json").report["rows"]
    assert (row["perplexity"], row["standard_error"]) == (None, None)
    assert row["loss"] > 709
    assert "inf" in server.run(PERPLEXITY, *flags).out


@pytest.mark.parametrize("modes", ["", "none,int3"])
def test_wrong_modes_are_refused_before_the_first_runs(server, text, modes):
    outcome = server.run(PERPLEXITY, "--model=nowhere", f"--text={text}", f"--modes={modes}")
    assert_explained(outcome, f"--modes={modes}: choose among auto, none, int8, int4")
