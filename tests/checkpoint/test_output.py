"""Directories that appear when they are complete."""

from pathlib import Path

from jllama.checkpoint.output import appearing


def test_the_configuration_comes_last_into_a_directory_that_is_there(tmp_path, monkeypatch):
    """Whoever looks meanwhile finds no model yet."""
    moved, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda file, to: moved.append(file.name) or replace(file, to))
    output = tmp_path / "there"
    output.mkdir()
    names = ["added_tokens.json", "config.json", "model.safetensors", "tokenizer.json"]
    with appearing(output) as directory:
        for name in names:
            (directory / name).touch()
        assert not (output / "config.json").exists()
    assert moved[-1] == "config.json"
    assert sorted(moved) == sorted(file.name for file in output.iterdir()) == names
