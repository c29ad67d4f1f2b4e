"""Directories that appear when they are complete."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import safetensors

from jllama.checkpoint.output import appearing, check_free, copy_tokenizer, output_directory
from jllama.errors import JllamaError


def test_the_configuration_comes_last_into_a_directory_that_is_there(tmp_path, monkeypatch):
    """Whoever looks meanwhile finds no model yet."""
    moved, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda file, to: moved.append(file.name) or replace(file, to))
    output = tmp_path / "there"
    output.mkdir()
    inode = output.stat().st_ino
    names = ["added_tokens.json", "config.json", "model.safetensors", "tokenizer.json"]
    with appearing(output) as directory:
        for name in names:
            (directory / name).touch()
        assert not (output / "config.json").exists()
    assert moved[-1] == "config.json"
    assert output.stat().st_ino == inode, "it may be a mount point or somebody's working directory"
    assert sorted(moved) == sorted(file.name for file in output.iterdir()) == names


def listed(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("there", [False, True])
def test_a_directory_appears_whole_or_not_at_all(tmp_path, there):
    output = tmp_path / "a" / "b"
    if there:
        output.mkdir(parents=True)
    with appearing(output) as directory:
        (directory / "config.json").touch()
        assert directory.is_relative_to(output if there else output.parent)
        assert not (output / "config.json").exists()
    assert listed(tmp_path) == ["a", "a/b", "a/b/config.json"]
    with appearing(tmp_path / "a" / "d" / "e" / "f") as directory:  # none of these is there
        (directory / "config.json").touch()
    assert listed(tmp_path / "a") == ["b", "b/config.json", "d", "d/e", "d/e/f", "d/e/f/config.json"]
    shutil.rmtree(tmp_path / "a" / "d")
    other = tmp_path / "c"
    with pytest.raises(ZeroDivisionError), appearing(other) as directory:
        (directory / "config.json").write_text("x" * (1 // 0))
    assert listed(tmp_path) == ["a", "a/b", "a/b/config.json"]
    other.mkdir()
    with pytest.raises(KeyboardInterrupt), appearing(other):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), appearing(other) as directory:
        (directory / "config.json").write_text("x" * (1 // 0))
    assert listed(tmp_path) == ["a", "a/b", "a/b/config.json", "c"]


@pytest.mark.parametrize("there", [False, True])
def test_whoever_may_read_a_new_directory_may_read_what_appears(tmp_path, there):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "inner").touch()
    if there:
        (tmp_path / "x").mkdir()
    with appearing(tmp_path / "x") as directory:
        (directory / "inner").touch()
    for name in ("", "inner"):
        modes = {(tmp_path / place / name).stat().st_mode for place in ("plain", "x")}
        assert len(modes) == 1


def test_a_name_of_any_length_that_a_file_may_have_will_do(tmp_path):
    with appearing(tmp_path / ("x" * 255)) as directory:
        assert directory.parent.name.startswith("." + "x" * 40 + "-")
    assert listed(tmp_path) == ["x" * 255]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError("odd"), "odd"),
        (safetensors.SafetensorError("full"), "full"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, error, reason):
    with (
        pytest.raises(JllamaError, match=f"^cannot write .*/x: {reason}; nothing was left there$"),
        appearing(tmp_path / "x"),
    ):
        raise error
    assert listed(tmp_path) == []


def test_a_place_is_free_if_nothing_is_there(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "inner").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    (tmp_path / "alive").symlink_to(tmp_path / "empty")
    monkeypatch.setenv("HOME", str(tmp_path))
    before = listed(tmp_path)
    for name in ("new", "new/deep", "empty", "alive"):
        check_free(tmp_path / name)
        assert output_directory(f"~/{name}") == tmp_path / name
    for name, words in (
        ("full", "exists already; remove it or choose another --output"),
        ("file", "exists already"),
        ("dead", "is a link to nothing; remove it or choose another --output"),
    ):
        for check in (check_free, lambda path: output_directory(str(path))):
            with pytest.raises(JllamaError, match=f"^{tmp_path}/{name} {words}"):
                check(tmp_path / name)
    with pytest.raises(
        JllamaError, match=f"^cannot write {tmp_path}/file/x: Not a directory; nothing was left"
    ):
        output_directory(str(tmp_path / "file" / "x"))
    assert listed(tmp_path) == before


def test_the_nearest_directory_that_is_there_must_take_files(tmp_path, monkeypatch):
    tried = []

    def refuse(*_, dir, **__):
        tried.append(dir)
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for name, place in (("new/deep", tmp_path), ("there/new", tmp_path / "there"), ("there", Path("there"))):
        with pytest.raises(
            JllamaError, match=f"^cannot write {name}: Permission denied; nothing was left there$"
        ):
            output_directory(name)
        assert tried.pop() == place


def test_all_that_makes_a_tokenizer_is_copied_and_nothing_else(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    names = [
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json", "added_tokens.json"),
        *("special_tokens_map.json", "generation_config.json", "chat_template.jinja"),
        *("additional_chat_templates/rag.jinja", "additional_chat_templates/tool_use.jinja"),
    ]
    others = ["config.json", "model.safetensors", "README.md", "tokenizer_files/x.json"]
    for name in (*names, *others):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(f"what {name} holds")
    target.mkdir()
    assert copy_tokenizer(source, target)
    assert listed(target) == sorted([*names, "additional_chat_templates"])
    assert all((target / name).read_text() == f"what {name} holds" for name in names)
    (tmp_path / "none").mkdir()
    assert not copy_tokenizer(tmp_path / "none", target)
