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
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(answer, lines, words):
    assert_explained(answer(lines), words)
    assert not answer.output.exists()


def test_a_line_that_can_not_be_answered_says_so_and_the_others_go_on(answer):
    pytest.importorskip("llguidance")
    long = {"token_ids": [5] * 100_000}
    bad = [long, {"token_ids": [99999]}, {"prompt": ""}, {"prompt": "x", "regex": "("}]
    for _ in range(2):  # what failed is asked again
        outcome = answer([LINES[0], *bad, LINES[3]])
        assert outcome.code == 1
        assert "4 requests could not be answered" in outcome.err
        reports = {report["id"]: report for report in written(answer.output)}
        assert len(written(answer.output)) == 6
        assert reports["first"]["token_ids"] == reports[6]["token_ids"]
        errors = [reports[n]["error"] for n in (2, 3, 4, 5)]
        assert "line 2: the prompt has 100000 tokens" in errors[0]
        assert "shorten it; the model's context is no longer" in errors[0]
        assert "line 3: the prompt holds token 99999" in errors[1]
        assert "line 4: the prompt is empty" in errors[2]
        assert "line 5: regex can't be used" in errors[3]
    mended = [{"token_ids": [5]}, {"token_ids": [9]}, {"prompt": "y"}, {"prompt": "x"}]
    assert answer([LINES[0], *mended, LINES[3]]).code == 0
    assert sorted(map(str, (report["id"] for report in written(answer.output)))) == [*"23456", "first"]
    assert not any("error" in report for report in written(answer.output))


def test_answers_to_other_requests_are_not_taken_for_these(answer):
    answer(LINES[:1])
    held = answer.output.read_bytes()
    for lines, flags in (([{"prompt": "Two", "id": "first"}], ()), (LINES[:1], ["--temperature=1"])):
        assert_explained(answer(lines, *flags), "the answer to another request under the id 'first'|--output")
    assert answer.output.read_bytes() == held
    (report,) = written(answer.output)
    del report["request"]
    answer.output.write_text(json.dumps(report) + "\n")
    outcome = answer([{"prompt": "Two", "id": "first"}])
    assert (outcome.code, "1 answers that do not tell what was asked" in outcome.err) == (0, True)


def test_a_line_may_ask_how_likely_tokens_are(answer):
    answer([{"token_ids": [5, 6, 7], "logprobs": 2, "prompt_logprobs": 0}])
    (report,) = written(answer.output)
    assert [score["token"] for score in report["logprobs"]] == report["token_ids"]
    assert all(len(score["likeliest"]) == 2 for score in report["logprobs"])
    assert [score and score["token"] for score in report["prompt_logprobs"]] == [None, 6, 7]


def test_where_the_answers_go(answer, tmp_path, server, model):
    assert_explained(answer(output=""), "--prompts_file needs --output=FILE")
    assert_explained(answer(LINES, "--prompt=x"), "--prompts_file brings the prompts")
    alone = server.run(GENERATE, f"--model={model}", "--prompt=x", f"--output={tmp_path / 'out.jsonl'}")
    assert_explained(alone, "--output takes the answers to --prompts_file")
    assert not answer.output.exists()
    for text in ("mine\n", "mine", '{"other": 1}\n', "5\n", '{"id": 1}\nmine'):
        (tmp_path / "notes.txt").write_text(text)
        assert_explained(answer(output="notes.txt"), "notes.txt holds other things than answers")
        assert (tmp_path / "notes.txt").read_text() == text
    assert_explained(answer(output="no/such/file"), "cannot write|no/such/file: No such file")
