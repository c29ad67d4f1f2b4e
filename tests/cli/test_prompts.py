"""`generate --prompts_file`: a line in, a line out, gone on with after whatever ended it."""

import json

import pytest

from tests.support.scripts_helpers import assert_explained

GENERATE = "generate.py"
LINES = [
    {"prompt": "One", "id": "first"},
    {"messages": [{"role": "user", "content": "Two"}], "max_new_tokens": 3},
    {"token_ids": [5, 6, 7], "temperature": 1.0, "seed": 4},
    {"prompt": "One"},
]


@pytest.fixture(scope="module")
def model(instruct_dir):
    return instruct_dir


@pytest.fixture
def answer(model, server, tmp_path):
    def answer(lines=LINES, *flags, output="out.jsonl"):
        source = tmp_path / "in.jsonl"
        text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        source.write_text(text, encoding="utf-8")
        common = [f"--model={model}", "--dtype=float32", f"--prompts_file={source}", "--max_new_tokens=6"]
        return server.run(GENERATE, *common, *flags, *([f"--output={tmp_path / output}"] if output else []))

    answer.output = tmp_path / "out.jsonl"
    return answer


def written(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_line_in_a_line_out(answer, model, server):
    outcome = answer()
    assert (outcome.code, outcome.out) == (0, "")
    assert "4 answers written" in outcome.err
    reports = written(answer.output)
    assert [report["id"] for report in reports] == ["first", 2, 3, 4]
    alone = server.run(
        GENERATE, f"--model={model}", "--dtype=float32", "--prompt=One", "--max_new_tokens=6", "--json"
    ).report
    assert reports[0]["token_ids"] == reports[3]["token_ids"] == alone["token_ids"]
    assert reports[0]["finish_reason"] == alone["finish_reason"]
    assert len(reports[1]["token_ids"]) <= 3
    assert reports[2]["seed"] == 4


def test_what_is_there_is_not_done_again(answer):
    answer(LINES[:2])
    whole = answer.output.read_text("utf-8")
    answer.output.write_text(whole + '{"id": 3, "text": "cut', encoding="utf-8")
    outcome = answer(LINES)
    assert "2 answers written" in outcome.err
    assert "2 were there" in outcome.err
    assert answer.output.read_text("utf-8").startswith(whole)
    assert [report["id"] for report in written(answer.output)] == ["first", 2, 3, 4]
    again = answer.output.read_bytes()
    assert "0 answers written" in answer(LINES).err
    assert answer.output.read_bytes() == again


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["nonsense\n"], "in.jsonl, line 1 is no JSON"),
        ([{"prompt": "x"}, "\n", [1]], "in.jsonl, line 3 must be an object with one of prompt, messages"),
        ([{"prompt": "x", "messages": []}], "line 1 must be an object with one of"),
        ([{"prompt": "x", "temperature": -1}], "line 1: temperature=-1"),
        (
            [{"prompt": "x", "temprature": 1}],
            "line 1: unknown setting temprature (did you mean",
        ),
        ([{"prompt": "x", "id": [1]}], "line 1: its id must be a text or a whole number"),
        ([{"prompt": "x", "id": 2}, {"prompt": "y"}], "the id 2 stands there twice"),
        (["\n"], "holds no request"),
        ([{"prompt": ""}], "in.jsonl, line 1: the prompt is empty"),
        ([LINES[0], {"prompt": "x", "regex": "("}], "in.jsonl, line 2: regex can't be used"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(answer, lines, words):
    if "regex" in words:
        pytest.importorskip("llguidance")
    assert_explained(answer(lines), words)
    assert not answer.output.exists()


def test_a_line_that_the_engine_does_not_take_is_named(answer):
    assert_explained(answer([LINES[0], {"token_ids": [99999]}]), "in.jsonl, line 2: the prompt holds token")
    assert written(answer.output) == []


def test_where_the_answers_go(answer, tmp_path):
    assert_explained(answer(output=""), "--prompts_file needs --output=FILE")
    for text in ("mine\n", "mine", '{"other": 1}\n', "5\n", '{"id": 1}\nmine'):
        (tmp_path / "notes.txt").write_text(text)
        assert_explained(answer(output="notes.txt"), "notes.txt holds other things than answers")
        assert (tmp_path / "notes.txt").read_text() == text
    assert_explained(answer(output="no/such/file"), "no/such/file")
