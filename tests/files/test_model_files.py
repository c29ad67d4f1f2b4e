"""Which files make a model, what stands in a file's place, and what is locked: boundaries and order."""

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jllama.errors import JllamaError
from jllama.files import json_files, paths
from jllama.files.errors import file_errors, refuse_stand_in
from jllama.files.foreign import foreign_layout, foreign_tensors, weight_files
from jllama.files.gguf_files import (
    first_part,
    is_gguf,
    models_in,
    part_names,
    part_paths,
    parts,
    unnamed_models_in,
)
from jllama.files.model_files import TOKENIZER_GGUF, ModelFiles


def touch(directory: Path, *names: str, content: bytes = b"") -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


def names(found) -> list[str]:
    return [path.name for path in found]


# GGUF files.


@pytest.mark.parametrize(
    ("name", "content", "yes"),
    [
        ("a.gguf", b"", True),
        ("a.GGUF", b"x", True),
        ("a", b"GGUF", True),
        ("a", b"GGUFx", True),
        ("a", b"GGU", False),
        ("a", b"gguf", False),
        ("a.gguf.bak", b"", False),
        ("gguf", b"", False),
    ],
)
def test_a_gguf_is_known_by_its_name_or_its_beginning(tmp_path, name, content, yes):
    touch(tmp_path, name, content=content)
    assert is_gguf(tmp_path / name) == yes


def test_what_can_not_be_looked_at_is_an_error(tmp_path):
    with pytest.raises(JllamaError, match=r"cannot read .*: No such file"):
        is_gguf(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "all_names"),
    [
        (
            "m-00002-of-00003.gguf",
            ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"],
        ),
        ("m-00001-OF-00001.GGUF", ["m-00001-OF-00001.GGUF"]),
        (
            "m-00003-of-00003.gguf",
            ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"],
        ),
        ("m-00000-of-00003.gguf", ["m-00000-of-00003.gguf"]),
        ("m-00004-of-00003.gguf", ["m-00004-of-00003.gguf"]),
        ("m-0001-of-0003.gguf", ["m-0001-of-0003.gguf"]),
        ("m-00001-of-00003.bin", ["m-00001-of-00003.bin"]),
        ("-00001-of-00002.gguf", ["-00001-of-00002.gguf"]),
        ("m-00010-of-00012.gguf", [f"m-{n:05}-of-00012.gguf" for n in range(1, 13)]),
        ("m.gguf", ["m.gguf"]),
    ],
)
def test_the_names_of_all_parts(name, all_names):
    assert part_names(name) == all_names


def test_parts_may_differ_in_upper_case_and_missing_ones_are_named(tmp_path):
    touch(tmp_path, "m-00001-of-00002.gguf", "M-00002-OF-00002.GGUF")
    assert names(parts(tmp_path / "m-00001-of-00002.gguf")) == [
        "m-00001-of-00002.gguf",
        "M-00002-OF-00002.GGUF",
    ]
    assert first_part(tmp_path / "M-00002-OF-00002.GGUF") == tmp_path / "m-00001-of-00002.gguf"
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(JllamaError, match=r"one of 2 parts .* lacks M-00001-OF-00002\.GGUF; download all"):
        first_part(tmp_path / "M-00002-OF-00002.GGUF")
    assert names(part_paths(tmp_path / "m-00001-of-00002.gguf")) == [
        "m-00001-of-00002.gguf",
        "M-00002-OF-00002.GGUF",
    ]


@pytest.mark.parametrize(("count", "more"), [(4, ""), (5, " and 1 more"), (9, " and 5 more")])
def test_of_many_missing_parts_three_are_named(tmp_path, count, more):
    touch(tmp_path, f"m-00001-of-0000{count}.gguf")
    lacking = ", ".join(f"m-0000{n}-of-0000{count}.gguf" for n in (2, 3, 4))
    with pytest.raises(JllamaError) as error:
        parts(tmp_path / f"m-00001-of-0000{count}.gguf")
    assert f"lacks {lacking}{more}; download all parts" in str(error.value)


def test_a_directory_that_can_not_be_listed_has_the_parts_that_it_has(tmp_path, monkeypatch):
    touch(tmp_path, "m-00001-of-00002.gguf")

    def closed(path):
        raise PermissionError(errno.EACCES, "closed")

    monkeypatch.setattr(Path, "iterdir", closed)
    assert names(part_paths(tmp_path / "m-00001-of-00002.gguf")) == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
    ]


def test_a_first_part_that_stands_for_itself_needs_no_others(tmp_path):
    touch(tmp_path, "m-00001-of-00002.gguf", "m.gguf")
    assert first_part(tmp_path / "m-00001-of-00002.gguf").name == "m-00001-of-00002.gguf"
    assert first_part(tmp_path / "m.gguf") == tmp_path / "m.gguf"


def test_one_file_of_each_model_in_a_directory(tmp_path):
    touch(
        tmp_path,
        "b.gguf",
        "a.GGUF",
        "x-00002-of-00002.gguf",
        "x-00001-of-00002.gguf",
        "y-00002-of-00003.gguf",
    )
    touch(tmp_path, "Z-00001-of-00002.gguf", "z-00002-OF-00002.gguf", "notes.txt", "y-00003-of-00003.gguf")
    touch(tmp_path, "sha256-0a", "other-0b", content=b"GGUF")
    touch(tmp_path, "sha256-0c", content=b"JSON")
    (tmp_path / "sha256-0d").mkdir()
    assert names(models_in(tmp_path)) == [
        "Z-00001-of-00002.gguf",
        "a.GGUF",
        "b.gguf",
        "sha256-0a",
        "x-00001-of-00002.gguf",
        "y-00002-of-00003.gguf",
    ]
    assert models_in(tmp_path / "sha256-0d") == []


def test_files_that_only_their_beginning_tells_of(tmp_path, monkeypatch):
    touch(tmp_path, "b", "a", content=b"GGUF")
    touch(tmp_path, "empty")
    touch(tmp_path, "c", content=b"GGU")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    assert names(unnamed_models_in(tmp_path)) == ["a", "b"]
    opened = Path.open

    def refuse(path, *args):
        if path.name == "a":
            raise PermissionError(errno.EACCES, "closed")
        return opened(path, *args)

    monkeypatch.setattr(Path, "open", refuse)
    assert names(unnamed_models_in(tmp_path)) == ["b"]


# What is no model.


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (["model.embed", "x.qweight"], "AWQ or GPTQ"),
        (["x.qzeros"], "AWQ or GPTQ"),
        (["x.g_idx"], "AWQ or GPTQ"),
        (["x.weight_packed"], "another program"),
        (["x.weight_scale"], "another program"),
        (["x.absmax"], "another program"),
        (["x.biases"], "another program"),
        (["x.lora_A.weight"], "LoRA"),
        (["x.lora_B.weight"], "LoRA"),
        (["x.lora_a"], "LoRA"),
        (["x.lora_b"], "LoRA"),
        (["x.weight", "x.bias", "qweight.x"], None),
        ([], None),
    ],
)
def test_tensors_tell_what_a_file_is(tensors, words):
    found = foreign_tensors(tensors)
    assert found is None if words is None else words in found


def test_weights_in_hugging_faces_layout(tmp_path):
    touch(
        tmp_path,
        "b.safetensors",
        "a.safetensors",
        "adapter_model.safetensors",
        "consolidated.safetensors",
        "a.bin",
    )
    assert names(weight_files(tmp_path)) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["adapter_config.json"], "is an adapter (PEFT, LoRA)"),
        (["adapter_model.safetensors"], "is an adapter (PEFT, LoRA)"),
        (["adapter_model.bin"], "is an adapter (PEFT, LoRA)"),
        (["consolidated-00001-of-00002.safetensors"], "Mistral's own layout"),
        (["consolidated.00.pth"], "Meta's own layout"),
        ([f"snapshots/{n}/x" for n in range(11)], "in its snapshots/: 0, 1, 10, 2, 3, 4, 5, 6, 7"),
        (["x.pth"], None),
    ],
)
def test_a_directory_tells_what_it_is(tmp_path, files, words):
    touch(tmp_path, *files)
    found = foreign_layout(tmp_path)
    if words is None:
        assert found is None
    else:
        assert words in found
        assert not found.endswith("8")


# What stands in a file's place.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\xef\xbb\xbf \r\n\t<!DOCTYPE html>", "a web page"),
        (b"<HTML>", "a web page"),
        (b" " * 251 + b"<html", "a web page"),
        (b" " * 252 + b"<html", None),
        (b"{}", None),
        (b"", None),
        (b"x<html", None),
    ],
)
def test_a_stand_in_is_named(content, words):
    if words:
        with pytest.raises(JllamaError, match=f"^a.b is {words}"):
            refuse_stand_in("a.b", content)
    else:
        refuse_stand_in("a.b", content)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("one\ntwo"), "x is truncated or damaged (ValueError: one); do this"),
        (ValueError("  \n"), "x is truncated or damaged (ValueError); do this"),
        (ValueError("y" * 300), f"x is truncated or damaged (ValueError: {'y' * 200}); do this"),
        (RecursionError(), "x is damaged (it nests too deeply); do this"),
        (MemoryError(), "x asks for more memory than there is; do this"),
        (OSError("odd"), "cannot read x: odd"),
    ],
)
def test_what_a_file_makes_a_reader_raise(error, words):
    with pytest.raises(JllamaError) as raised, file_errors("x", "do this"):
        raise error
    assert str(raised.value) == words
    with pytest.raises(JllamaError) as raised, file_errors("x"):
        raise error
    assert ("download it again" in str(raised.value)) == ("do this" in words)


# JSON.


def test_an_object_is_bounded_by_bytes_and_values(tmp_path, monkeypatch):
    text = json.dumps({"a": [1, 2], "b": {}}).encode()  # 2 commas, 2 colons, 1 bracket, 2 braces
    for most, fits in ((7, True), (6, False)):
        monkeypatch.setattr(json_files, "MAX_VALUES", most)
        for given in ({}, {"most": most}):
            with (
                contextlib.nullcontext()
                if fits
                else pytest.raises(JllamaError, match="larger than any such file")
            ):
                assert json_files.parse_object(Path("x"), text, **given) == {"a": [1, 2], "b": {}}
    assert json_files.parse_object(Path("x"), text, most=7)
    monkeypatch.setattr(json_files, "MAX_VALUES", 100)
    (tmp_path / "x").write_bytes(text)
    for most, fits in ((len(text), True), (len(text) - 1, False)):
        monkeypatch.setattr(json_files, "MAX_BYTES", most)
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(JllamaError, match="larger than any such file")
        ):
            json_files.read_object(tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[]", "holds no JSON object"),
        (b'"x"', "holds no JSON object"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"<html>", "a web page"),
    ],
)
def test_what_is_no_object(text, words):
    with pytest.raises(JllamaError, match=words):
        json_files.parse_object(Path("x"), text)


def test_the_parser_takes_options():
    assert json_files.parse_object(Path("x"), b'{"a": 1.5}', parse_float=str) == {"a": "1.5"}


# A model's files.


def test_where_the_tokenizer_lies(tmp_path):
    gguf = ModelFiles(description="x", gguf=tmp_path / "a.gguf")
    assert gguf.tokenizer_gguf == tmp_path / "a.gguf"
    whole = ModelFiles(description="x", directory=tmp_path)
    assert (whole.config_path, whole.tokenizer_gguf) == (tmp_path / "config.json", None)
    touch(tmp_path, TOKENIZER_GGUF)
    assert whole.tokenizer_gguf == tmp_path / TOKENIZER_GGUF


# Paths and locks.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_lock_is_one_s_own_and_let_go(cache):
    with paths.locked("x", lambda: 1 / 0) as alone:
        assert alone
        with (cache / "locks" / "x").open("wb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(ValueError, match="mine"), paths.locked("x"):
        raise ValueError("mine")
    with paths.locked("x", lambda: 1 / 0) as alone, paths.locked("y", lambda: 1 / 0):
        assert alone


def test_who_waits_is_told_before(cache, monkeypatch):
    seen = []

    def flock(descriptor, how):
        seen.append(how)
        if how & fcntl.LOCK_NB:
            raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", flock)
    with paths.locked("x", lambda: seen.append("waiting")) as alone:
        assert alone
    assert seen == [fcntl.LOCK_EX | fcntl.LOCK_NB, "waiting", fcntl.LOCK_EX]


def test_without_locks_others_may_be_at_it(cache, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, "none")

    monkeypatch.setattr(fcntl, "flock", flock)
    with paths.locked("x") as alone:
        assert alone is False


def test_a_lock_that_can_not_be_made_is_explained(cache):
    (cache / "locks" / "x").mkdir(parents=True, mode=0o700)
    cache.chmod(0o700)
    with (
        pytest.raises(
            JllamaError, match=r"cannot use the cache directory .*x: Is a directory; set JLLAMA_CACHE"
        ),
        paths.locked("x"),
    ):
        pass


def test_a_dead_link_and_a_directory_have_a_file_s_name(tmp_path):
    paths.check_no_other_kind(tmp_path / "absent")
    os.symlink("absent", tmp_path / "link")
    with pytest.raises(JllamaError, match=r"cannot read .*link: No such file"):
        paths.check_no_other_kind(tmp_path / "link")
    with pytest.raises(JllamaError, match="is a directory where a file is due"):
        paths.check_no_other_kind(tmp_path)
    touch(tmp_path, "file")
    paths.check_no_other_kind(tmp_path / "file")
    assert paths.special_kind(tmp_path / "file") is None
    assert paths.special_kind(Path(os.devnull)) == "a device"


@pytest.mark.parametrize(
    "code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EIO]
)
def test_a_cache_that_can_not_be_changed_may_be_read(cache, monkeypatch, code):
    cache.mkdir(mode=0o700)

    def mkdir(path, *args, **options):
        if path != cache.parent:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    if code == errno.EIO:
        with pytest.raises(JllamaError, match=os.strerror(code)):
            paths.cache_dir("a", writable=False)
    else:
        assert paths.cache_dir("a", writable=False) == cache / "a"
    with pytest.raises(JllamaError, match=os.strerror(code)):
        paths.cache_dir("a")
    cache.rmdir()
    with pytest.raises(JllamaError, match=os.strerror(code)):
        paths.cache_dir("a", writable=False)


def test_without_a_home_the_cache_needs_a_name(monkeypatch):
    for name in ("JLLAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(JllamaError, match="no home directory for the cache; set JLLAMA_CACHE"):
        paths.cache_dir()


HOLDS = """
import sys
from jllama.files.paths import locked
with locked("x"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_system_lets_go_for_a_process_that_was_killed(cache):
    root = Path(__file__).parents[2]
    holder = subprocess.Popen([sys.executable, "-c", HOLDS], cwd=root, stdin=-1, stdout=-1)
    assert holder.stdout.readline() == b"held\n"
    waited = []

    def waiting():
        waited.append(1)
        holder.kill()
        holder.communicate()

    with paths.locked("x", waiting) as alone:
        assert alone
    assert waited == [1]
