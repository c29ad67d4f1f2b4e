"""The flags that say what an answer must match."""

import json
import sys

import pytest

from jllama.cli import constraints
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings
from tests.support.scripts_helpers import assert_explained
from tests.support.tiny_checkpoint import write_tiny_model


@pytest.fixture(autouse=True)
def installed():
    pytest.importorskip("llguidance")


LARK, GBNF = 'start: "a" /[0-9]/', 'root ::= "a" [0-9]'


def test_files_and_texts_become_settings(tmp_path):
    schema, lark, gbnf = (tmp_path / name for name in ("s.json", "g.lark", "g.GBNF"))
    schema.write_text('{"type": "null"}')
    lark.write_text(LARK)
    gbnf.write_text(GBNF)
    for text in (str(schema), ' {"type": "null"}'):
        found = GenerationSettings(**constraints.read({"json_schema": text}))
        assert found.constraint == ("json_schema", '{"type": "null"}')
    assert constraints.read({"json_schema": "true"}) == {"json_schema": "true"}
    assert constraints.read({"grammar": str(lark)}) == {"grammar": LARK}
    assert constraints.read({"grammar": str(gbnf)}) == {"grammar": GBNF}
    assert constraints.read({"choice": ["a", "b"], "regex": "x"}) == {"choice": ("a", "b")}
    assert constraints.read({"choice": [], "grammar": None}) == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"json_schema": "nowhere.json"}, "cannot read nowhere.json"),
        ({"json_schema": " "}, "--json_schema is empty: give a file's name or a schema"),
        ({"json_schema": ""}, "--json_schema is empty: give a file's name or a schema"),
        ({"grammar": "nowhere.gbnf"}, "cannot read nowhere.gbnf"),
        ({"grammar": "grammar.txt"}, "give the name of a .lark or a .gbnf file"),
        ({"grammar": LARK}, "give the name of a .lark or a .gbnf file"),
    ],
)
def test_what_is_no_file_is_said(given, words):
    with pytest.raises(JllamaError, match=words):
        constraints.read(given)


@pytest.mark.parametrize(("suffix", "text"), [(".lark", GBNF), (".gbnf", LARK)])
def test_a_grammar_that_is_another_than_its_name_says(tmp_path, suffix, text):
    path = tmp_path / f"grammar{suffix}"
    path.write_text(text)
    with pytest.raises(JllamaError, match=r"rules of a .gbnf file are written"):
        constraints.read({"grammar": str(path)})


def test_without_the_library_it_is_said_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(JllamaError, match="pip install"):
        constraints.read({"json_object": True})
    assert constraints.read({"json_object": False, "choice": []}) == {}


def test_the_command_writes_what_matches(server, tmp_path):
    model, schema = write_tiny_model(tmp_path / "tiny"), tmp_path / "person.json"
    number = {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"]}
    schema.write_text(json.dumps(number | {"additionalProperties": False}))
    flags = [f"--model={model}", "--prompt=Who?", "--dtype=float32", "--temperature=1", "--seed=1"]
    ran = server.run("generate.py", *flags, f"--json_schema={schema}")
    assert json.loads(ran.out)["n"] in (1, 22)
    lines = [{"prompt": "x", "choice": ["red", "blue"]}, {"prompt": "x", "regex": "[ab]{3}"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out.jsonl"
    files = [f"--prompts_file={tmp_path}/in.jsonl", f"--output={out}"]
    server.run("generate.py", *flags[:1], "--dtype=float32", *files)
    first, second = (json.loads(line)["text"] for line in out.read_text().splitlines())
    assert first in ("red", "blue")
    assert set(second) <= set("ab")
    assert_explained(server.run("generate.py", *flags, "--regex=a("), "regex can't be used|unclosed group")
