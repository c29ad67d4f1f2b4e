"""Reading files: one exception whatever happens, and what a file costs is known before it is paid."""

import ast
import json
import zlib
from pathlib import Path

import pytest
import safetensors

from jllama.errors import JllamaError
from jllama.files import json_files
from jllama.files.errors import file_errors

SOURCES = sorted(Path(json_files.__file__).parents[1].rglob("*.py"))
TEXT_MODES = {"", "r", "w", "a", "x", "r+", "w+"}
PanicException = type("PanicException", (BaseException,), {})  # as pyo3 makes it: no Exception


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (safetensors.SafetensorError("header too large"), "damaged .SafetensorError: header too large"),
        (zlib.error("incorrect header check"), "damaged .error: incorrect"),
        (PanicException("range end 9 out of range"), "damaged .PanicException: range"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "damaged .UnicodeDecodeError"),
        (OverflowError("too large\nto convert"), "damaged .OverflowError: too large[)]"),
        (RecursionError(), "nests too deeply"),
        (MemoryError(), "more memory than there is"),
        (PermissionError(13, "Permission denied"), "cannot read x.bin: Permission denied$"),
        (JllamaError("x.bin is foreign"), "x.bin is foreign$"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_file_makes_anyone_raise_is_one_error(raised, says):
    with pytest.raises(JllamaError, match=says), file_errors("x.bin"):
        raise raised


@pytest.mark.parametrize("request_to_stop", [KeyboardInterrupt, SystemExit])
def test_a_request_to_stop_passes(request_to_stop):
    with pytest.raises(request_to_stop), file_errors("x.bin"):
        raise request_to_stop


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": ' + b"[" * 10**5, "nests too deeply|not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not JSON"),
    ],
    ids=["deep", "no UTF-8", "a number of 5001 digits"],
)
def test_json_that_is_none(tmp_path, text, says):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(JllamaError, match=f"config.json is .*({says})"):
        json_files.read_object(tmp_path / "config.json")


def test_json_of_too_many_values_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_VALUES", 1000)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": list(range(900))}))
    assert len(json_files.read_object(path)["a"]) == 900
    monkeypatch.setattr(json, "loads", None)
    path.write_text(json.dumps({"a": [[]] * 600}))
    with pytest.raises(JllamaError, match="larger than any such file"):
        json_files.read_object(path)
    monkeypatch.setattr(json_files, "MAX_BYTES", 100)
    path.write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(JllamaError, match="larger than any such file"):
        json_files.read_object(path)


def test_json_that_nests_too_deeply_is_told_whoever_reads_it():
    with pytest.raises(JllamaError, match=r"^x.json is not JSON of a model \(it nests too deeply\)"):
        json_files.parse_object("x.json", b'{"a": ' + b"[" * 100_000)


def names_its_encoding(call):
    """Whether a call that opens a text says how it is written; of other calls, True."""
    named, given = {word.arg: word.value for word in call.keywords}, list(call.args)
    called = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if called in ("read_text", "write_text") and isinstance(call.func, ast.Attribute):
        return "encoding" in named or len(given) > (called == "write_text")
    if called != "open" or getattr(getattr(call.func, "value", None), "id", "path") not in (
        "io",
        "path",
        "file",
    ):
        return True
    mode = named.get("mode", next(iter(given[isinstance(call.func, ast.Name) :]), ast.Constant("")))
    return "encoding" in named or getattr(mode, "value", "b") not in TEXT_MODES


def test_files_of_text_are_utf_8_whatever_the_locale():
    for path in SOURCES:
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        assert [call.lineno for call in calls if not names_its_encoding(call)] == [], path


@pytest.mark.parametrize(
    "text", ["p.read_text()", "p.write_text(t)", "open(p)", "path.open()", "path.open('w')"]
)
def test_what_names_no_encoding(text):
    assert not names_its_encoding(ast.parse(text, mode="eval").body)
