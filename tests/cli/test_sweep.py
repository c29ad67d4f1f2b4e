"""`bench.py --sweep`: the grid, the file that it goes on with, shares of the limit, and the picture."""

import errno
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.checkpoint.random_params import random_params
from jllama.cli import measure, sweep, sweep_picture
from jllama.cli.bench_tests import Test as BenchTest
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from tests.support.scripts_helpers import assert_explained
from tests.support.tiny_checkpoint import KEYS

RUN = dict(model="m", dtype="float32", device="cpu", tensor_parallel=1, jllama="1", jax="2")


def point(test="tg8", batch=1, choice="greedy", storage="none", **more):
    return dict(storage=storage, test=test, batch=batch, choice=choice, depth=0, count=8) | more


def test_the_grid_holds_every_point_once_storage_by_storage():
    points = sweep.grid(["int8", "none", "int8"], ["tg8", "pp4", "tg8"], [1, 2], {"top_k": 3})
    names = [(each.test.name, each.test.batch, each.test.choice) for each in points]
    tg = [("tg8", batch, choice) for batch in (1, 2) for choice in ("greedy", "top_k 3")]
    assert names == [*tg, ("pp4", 1, "")] * 2
    assert [each.storage for each in points] == ["int8"] * 5 + ["none"] * 5


def test_what_is_done_is_not_measured_again():
    points = sweep.grid(["int8", "none"], ["tg8"], [1, 2], {})
    done = {points[0].key, points[2].key, points[3].key}
    assert [*sweep.by_storage(points, done)] == [("int8", [points[1]])]


@pytest.mark.parametrize(
    ("storage", "name", "said"),
    [
        ("int3", "tg8", "'int3' is none of auto, none"),
        ("none", "en8", "en8 has no limit"),
        ("none", "js8", "js8 has no limit"),
        ("none", "x", "no test"),
    ],
)
def test_a_grid_that_cannot_be(storage, name, said):
    with pytest.raises(JllamaError, match=said):
        sweep.grid([storage], [name], [1], {})


def test_a_record_keeps_each_point_and_refuses_another_run(tmp_path):
    record = sweep.Record(tmp_path / "s.json")
    record.begin(RUN | {"date": "1"})
    record.add(point())
    again = sweep.Record(record.path)
    again.begin(RUN | {"date": "2", "tensor_parallel": "1"})  # as files of before have it
    again.add(point(batch=2))
    held = json.loads(record.path.read_text())
    assert held == {"run": RUN | {"date": "1"}, "points": [point(), point(batch=2)]}
    assert sweep.Record(record.path).keys == {("none", "tg8", 1, "greedy"), ("none", "tg8", 2, "greedy")}
    for name in sweep.SAME:
        with pytest.raises(JllamaError, match=f"holds points of {name} .*, this run has other: give another"):
            sweep.Record(record.path).begin(RUN | {name: "other"})
    assert [*tmp_path.iterdir()] == [record.path]


def test_a_record_is_of_the_run_that_gave_its_first_point(tmp_path):
    sweep.Record(tmp_path / "s.json").begin(RUN | {"model": "other"})  # and is interrupted
    record = sweep.Record(tmp_path / "s.json")
    record.begin(RUN)
    record.add(point())
    assert json.loads(record.path.read_text()) == {"run": RUN, "points": [point()]}


def test_a_record_that_can_not_be_written_stays_as_it_was(tmp_path, monkeypatch):
    record, write = sweep.Record(tmp_path / "s.json"), Path.write_text
    record.begin(RUN)
    before = record.path.read_text()

    def full(path, text, encoding):
        write(path, text[:20], encoding)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(JllamaError, match="cannot write"):
        record.add(point())
    assert record.path.read_text() == before


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "[" * 100_000, '{"run": {}}', '{"run": 1, "points": []}', '{"run": {}, "points": [1]}'),
        '{"run": {}, "points": [{"storage": "none", "test": "tg8", "batch": 1}]}',
        '{"run": {}, "points": [{"storage": ["none"], "test": "tg8", "batch": 1, "choice": "greedy"}]}',
        '{"run": {}, "points": 3}',
    ],
)
def test_a_file_that_is_no_sweep_is_left_alone(tmp_path, text):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(JllamaError, match="holds other things than a sweep: give another --sweep"):
        sweep.Record(path)
    assert path.read_text() == text


def test_the_limit_is_the_slower_of_reading_and_multiplying():
    config = ModelConfig.from_hf(KEYS | dict(num_hidden_layers=1))
    params = random_params(config, "float32")

    def limit(read, matrix, **test):
        rates = measure.Ceilings(read_bytes_per_second=read, matrix_flops_per_second=matrix)
        return measure.limit_seconds(config, params, BenchTest(**test), rates)

    tg, pp = dict(kind="tg", count=8, depth=4, batch=2), dict(kind="pp", count=8, depth=4, batch=1)
    weights, kv = measure.weight_bytes(params), measure.kv_bytes(config, params, BenchTest(**tg))
    assert limit(2.0, 1e30, **tg) == 8 * (weights + kv) / 2
    assert limit(2.0, 1e30, **pp) == weights / 2
    one = BenchTest(kind="tg", count=1, depth=8, batch=2)
    assert limit(1e30, 2.0, **tg) == 8 * measure.prompt_flops(config, one) / 2
    assert limit(1e30, 2.0, **pp) == measure.prompt_flops(config, BenchTest(**pp)) / 2


def test_a_point_without_room_is_left_out(monkeypatch):
    config = ModelConfig.from_hf(KEYS | dict(num_hidden_layers=1))
    (much,) = sweep.grid(["none"], ["tg64@d9999999"], [99999], {})
    rates = measure.Ceilings(read_bytes_per_second=1.0, matrix_flops_per_second=1.0)
    made = sweep.measured(much, config, random_params(config, "float32"), rates, 1, 0)
    assert "leave out tg64 @ d9999999" in made["left_out"]
    assert sweep.key_of(made) == much.key
    assert "limit_share" not in made


def test_the_share_of_the_limit_is_that_of_the_middle_repetition(monkeypatch):
    asked = []
    for name, gives in (
        *(("check_memory", None), ("run_test", {"seconds": [9.0, 1.0, 4.0]}), ("limit_seconds", 2.0)),
    ):
        monkeypatch.setattr(measure, name, lambda *given, gives=gives: asked.append(given) or gives)
    limits = SimpleNamespace(read_bytes_per_second=3e9, matrix_flops_per_second=5e12)
    params = SimpleNamespace(norm=np.zeros(1, np.float32))
    (one,) = sweep.grid(["none"], ["tg8"], [1], {})
    row = sweep.measured(one, "config", params, limits, 3, 7)
    assert asked == [
        *(("config", "float32", [one.test]), ("config", params, one.test, 3, 7)),
        ("config", params, one.test, limits),
    ]
    assert (row["limit_share"], row["seconds"]) == (0.5, [9.0, 1.0, 4.0])
    assert (row["read_gb_per_second"], row["matrix_tflops"]) == (3.0, 5.0)


def test_where_a_point_stands_in_the_picture():
    greedy, drawn, prompt = point(batch=4), point(choice="top_k 3", batch=4), point(test="pp8", choice="")
    assert [*map(sweep_picture.panel_of, (greedy, drawn, prompt))] == [*sweep_picture.PANELS]
    assert [*map(sweep_picture.across, (greedy, drawn, prompt))] == [4, 4, 8]
    shares = (0.914, 0.916, 0.0, 1.0, float("nan"))
    assert [sweep_picture._percent(share) for share in shares] == ["91", "92", "0", "100", ""]


class Panel:
    """Notes what is drawn."""

    def __init__(self):
        self.drawn = {}

    def __getattr__(self, name):
        return lambda *given, **how: self.drawn.setdefault(name, []).append(given)


def test_a_panel_has_a_square_for_each_point():
    points = [
        point(batch=4, limit_share=0.5),
        point(batch=1, limit_share=0.914),
        point(batch=4, depth=64, limit_share=0.004),
        point(batch=2, depth=64, left_out="no room"),
    ]
    panel = Panel()
    sweep_picture._panel(panel, "none: decoding, greedy", points)
    ((shares,),) = panel.drawn["imshow"]
    assert np.array_equal(shares, [[0.914, np.nan, 0.5], [np.nan, np.nan, 0.004]], equal_nan=True)
    assert panel.drawn["text"] == [
        *((0, 0, "91"), (1, 0, ""), (2, 0, "50")),
        *((0, 1, ""), (1, 1, ""), (2, 1, "0")),
    ]
    assert panel.drawn["set_title"] == [("none: decoding, greedy",)]
    assert panel.drawn["set_xticks"] == [(range(3), [1, 2, 4])]
    assert panel.drawn["set_yticks"] == [(range(2), [0, 64])]
    assert (panel.drawn["set_xlabel"], panel.drawn["set_ylabel"]) == ([("batch",)], [("depth",)])
    prompts = Panel()
    sweep_picture._panel(prompts, "none: prompts", [point(test="pp8", choice="", count=8)])
    assert (prompts.drawn["set_xlabel"], prompts.drawn["set_xticks"]) == ([("tokens",)], [(range(1), [8])])


def test_a_picture_grows_with_what_it_shows():
    few = [point(batch=1), point(test="pp8", choice="", count=8)]
    assert sweep_picture._inches(few, ["none"], ["decoding, greedy", "prompts"]) == (5.0, 2.5)
    many = [point(batch=b, depth=d) for b in range(10) for d in range(6)]
    wide, high = (10 + 1.5) * 0.62, (6 + 1.5) * 0.62
    assert sweep_picture._inches(many, ["none"], ["decoding, greedy"]) == pytest.approx((wide, high + 0.5))
    assert sweep_picture._inches(many, ["none", "int8"], ["decoding, greedy"])[1] == pytest.approx(
        2 * high + 0.5
    )


def test_a_picture_has_a_row_a_storage_and_a_column_a_panel(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(
        sweep_picture,
        "_panel",
        lambda place, title, points: drawn.append((title, [p["batch"] for p in points])),
    )
    points = [point(batch=1), point(batch=2, storage="int8"), point(test="pp8", choice="", batch=3)]
    points += [point(batch=4, choice="top_k 3", storage="int8")]
    sweep_picture.draw(tmp_path / "p.png", dict(model="m", dtype="d", device="c"), points)
    assert drawn == [
        *(("none: decoding, greedy", [1]), ("none: decoding, sampled", []), ("none: prompts", [3])),
        *(("int8: decoding, greedy", [2]), ("int8: decoding, sampled", [4]), ("int8: prompts", [])),
    ]
    assert (tmp_path / "p.png").exists()


def test_a_sweep_is_measured_drawn_and_gone_on_with(server, tmp_path):
    config = tmp_path / "small.json"
    config.write_text(json.dumps(KEYS | dict(num_hidden_layers=1)))
    flags = [
        f"--random_config={config}",
        "--repetitions=1",
        f"--sweep={tmp_path / 's.json'}",
        "--tests=pp8,pp4",
    ]
    first = server.run("bench.py", *flags[:-1], "--tests=pp8")
    assert first.code == 0
    more = server.run("bench.py", *flags, "--storages=auto,int8")
    assert more.err.splitlines()[:2] == ["auto 1/1: pp4, batch 1", "int8 1/2: pp8, batch 1"]
    points = json.loads((tmp_path / "s.json").read_text())["points"]
    assert [(each["storage"], each["test"]) for each in points] == [
        *(("auto", "pp8"), ("auto", "pp4"), ("int8", "pp8"), ("int8", "pp4"))
    ]
    assert all(each["limit_share"] > 0 for each in points)
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert_explained(server.run("bench.py", *flags, "--json"), "--json goes with a table, not with --sweep")


def test_without_matplotlib_nothing_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(JllamaError, match=r"pip install 'jllama\[plot\]'"):
        sweep_picture.check()
