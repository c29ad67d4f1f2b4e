"""`bench.py` and `compare_cpu.py` as a user runs them: what was asked for is measured, or refused at once."""

import json

import pytest

from jllama.checkpoint.sizes import parameter_count
from jllama.config import ModelConfig
from tests.support.scripts_helpers import assert_explained
from tests.support.tiny_checkpoint import KEYS

BENCH = "bench.py"
SIZES = KEYS | dict(num_hidden_layers=1, hidden_size=64, intermediate_size=128, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def bench(server, tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "small.json"
    file.write_text(json.dumps(SIZES))
    flags = [f"--random_config={file}", "--tests=tg64", "--repetitions=1"]
    return lambda *more: server.run(BENCH, *flags, *more)


def test_random_weights_are_quantised(bench):
    config = ModelConfig.from_hf(SIZES)
    report = bench("--json", "--quantize=int4").report
    assert (report["quantize"], report["weight_bits"]) == ("int4", [4, 8])
    (test,) = report["tests"]
    assert test["weight_bytes_per_step"] < parameter_count(config)  # in bfloat16: twice as many


def test_the_table_names_the_quantisation(bench):
    outcome = bench("--markdown", "--quantize=int8")
    assert outcome.code == 0
    assert outcome.out.startswith("random small · bfloat16 · weights of 8 bit (int8) · cpu · ")


def test_sampled_tokens_are_measured_beside_greedy_ones(bench):
    report = bench("--json", "--tests=tg64,pp8", "--temperature=0.8", "--top_p=0.9").report
    greedy, sampled, prompt = report["tests"]
    assert [test["choice"] for test in report["tests"]] == ["greedy", "temperature 0.8, top_p 0.9", ""]
    assert sampled["sampling"] == {"temperature": 0.8, "top_p": 0.9}
    assert sampled["of_greedy"] == sampled["tokens_per_second"] / greedy["tokens_per_second"]
    assert "of_greedy" not in greedy
    assert "of_greedy" not in prompt


def test_a_setting_out_of_range_is_refused(bench):
    assert_explained(bench("--top_p=2"), "top_p=2.0 must be a number from 1e-09 to 1")


def test_what_does_not_fit_is_refused_before_the_first_test(bench):
    outcome = bench("--tests=tg64,tg64@d9999999", "--batch_sizes=1,99999")
    assert_explained(outcome, "for 99999 rows needs|GiB left: leave out|--batch_sizes=99999")


COMPARISONS = {
    "--tests=foo": "--tests: 'foo' is no test; write decode1 to decode256 or prefill1 to prefill512",
    "--tests=decode0": "'decode0' is no test",
    "--tests=": "nothing to compare: give --formats=F32",
    "--formats=Q9_0": "--formats: 'Q9_0' is none of F32, F16",
    "--threads=4,x": "--threads: 'x' is no number from 1 to 256",
    "--threads=0": "--threads: '0' is no number from 1 to 256",
    "--tree=/no/such": "--tree=/no/such is no checkout of jllama",
    "--peer_python=/no/such": "--peer_python=/no/such: No such file",
    "--peer_python=~nobody-here/python": "~nobody-here/python: there is no such home directory",
    "--directory=~nobody-here/x": "~nobody-here/x: there is no such home directory",
    "--llama_bench=/no/such": "--llama_bench=/no/such is no program",
    "--llama_bench=/bin/true": "--llama_bench decodes one row: leave out decode8 of --tests",
    "--peer_python=/bin/false": "--peer_python=/bin/false can't import llama_cpp, numpy",
}


@pytest.mark.parametrize("flag", COMPARISONS)
def test_a_comparison_that_cannot_be_is_refused_before_files_are_written(server, tmp_path, flag):
    outcome = server.run("compare_cpu.py", f"--directory={tmp_path / 'files'}", flag)
    assert_explained(outcome, COMPARISONS[flag])
    assert not (tmp_path / "files").exists()


def test_a_side_that_cannot_be_imported_is_refused(server, tmp_path):
    flags = ["--peer_python=/bin/true", "--transformers_python=/bin/false", f"--directory={tmp_path}"]
    outcome = server.run("compare_cpu.py", *flags)
    assert_explained(outcome, "--transformers_python=/bin/false can't import torch")
