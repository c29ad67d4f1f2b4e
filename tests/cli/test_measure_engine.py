"""What `bench.py` says of an engine, against sums by hand."""

import pytest

import jllama
from jllama.cli import bench_report, measure
from jllama.cli.bench_tests import parse_tests
from jllama.cli.measure_engine import decode_rate, run_engine_test
from jllama.cli.plain_tokenizer import plain_tokenizer
from jllama.errors import JllamaError
from tests.support.tiny_checkpoint import write_tiny_model


def test_rows_that_hear_of_a_burst_one_after_the_other():
    """Two rows, a burst of 16 tokens each second, the second row a hundredth later."""
    row = [(0.0, 1), *((float(n), 1 + 16 * n) for n in range(1, 9))]
    other = [(at + 0.01, count) for at, count in row]
    assert decode_rate([row, other]) == pytest.approx(32.0)


def test_only_the_time_when_all_rows_run_counts():
    """The second row begins three seconds later, until when the first one was twice as fast."""
    row = [(0.0, 1), (1.0, 33), (2.0, 65), (3.0, 97), *((float(n), 97 + 16 * (n - 3)) for n in range(4, 12))]
    other = [(3.0, 1), *((float(n), 1 + 16 * (n - 3)) for n in range(4, 14))]
    assert decode_rate([row, other]) == pytest.approx(32.0)


def test_a_row_counts_from_its_second_burst_on():
    """Of a single row the first 16 tokens are told apart: the rate begins behind them."""
    row = [(0.0, 1), (1.0, 16), (5.0, 17), (6.0, 33), (7.0, 49)]
    assert decode_rate([row]) == pytest.approx(16.0)


def test_rows_that_never_ran_together():
    assert decode_rate([[(0.0, 1), (1.0, 17)], [(2.0, 1), (3.0, 17)]]) == pytest.approx(32.0)


def test_a_tokenizer_for_random_weights_writes_words():
    tokenizer = plain_tokenizer(1000)
    assert tokenizer.vocab_size == 1000
    assert tokenizer.decode([300, 0x41, 998, 999]) == "w2cA w2e6"


def test_rows_that_must_match_are_timed_beside_those_that_may_not(tmp_path):
    pytest.importorskip("llguidance")
    model = jllama.load(str(write_tiny_model(tmp_path / "model")), dtype="float32")
    free, held = parse_tests(["tg48", "js48"], [2], {})
    rows = [measure.run_test(model.config, model.params, test, 2, 0) for test in (free, held)]
    limits = measure.Ceilings(read_bytes_per_second=1e9, matrix_flops_per_second=1e9)
    shown = bench_report.with_shares(rows[1], limits, rows)
    assert shown["of_steps"] == rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"]
    assert shown["of_steps"] > 0


def test_an_engine_answers_what_the_test_says(tmp_path):
    model = jllama.load(str(write_tiny_model(tmp_path / "model")), dtype="float32")
    (test,) = parse_tests(["en40@d20"], [2], {})
    assert (test.kind, test.count, test.depth, test.batch, test.name) == ("en", 40, 20, 2, "en40 @ d20")
    row = run_engine_test(model.config, model.params, test, 2, 0)
    assert (row["test"], row["batch"], len(row["seconds"])) == ("en40 @ d20", 2, 2)
    assert 0 < row["first_token_seconds"] < min(row["seconds"])
    # The decode phase is shorter than the whole.
    assert row["tokens_per_second"] > 80 / max(row["seconds"])


def test_shares_of_the_parts():
    engine = dict(test="en128 @ d512", batch=4, sampling={}, choice="greedy", spread=0.0)
    engine |= dict(tokens_per_second=90.0, seconds=[2.0, 3.0, 9.0], first_token_seconds=0.5)
    steps = engine | dict(test="tg128 @ d512", tokens_per_second=100.0, seconds=[1.0])
    prompt = dict(test="pp512", batch=1, sampling={}, seconds=[0.5])
    assert bench_report.of_parts(engine, [engine]) == {}
    assert bench_report.of_parts(engine, [steps, engine]) == {"of_steps": 0.9}
    assert bench_report.of_parts(engine, [prompt, steps, engine]) == {"of_steps": 0.9, "of_parts": 1.0}
    other = steps | dict(sampling={"temperature": 1.0})
    assert bench_report.of_parts(engine, [prompt, other, engine]) == {}
    row = bench_report.with_shares(engine, None, [prompt, steps, engine])
    assert bench_report.cells(row)["of parts"] == "1.00"


def test_a_name_that_is_no_test():
    with pytest.raises(JllamaError, match=r"'ex128' is no test; write pp512, .* or js128"):
        parse_tests(["ex128"], [1], {})
