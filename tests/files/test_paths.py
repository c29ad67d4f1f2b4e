"""The cache directory, and files that are none."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

import jllama
from jllama.errors import JllamaError
from jllama.files.paths import cache_dir, check_file
from tests.support.tiny_checkpoint import write_tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_cache_is_private(cache):
    assert cache_dir("a", "b") == cache / "a" / "b"
    assert mode(cache) == mode(cache / "a") == mode(cache / "a" / "b") == 0o700


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("JLLAMA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "jllama"
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", "beside")
        patch.chdir(tmp_path)
        assert cache_dir() == tmp_path / "beside" / "jllama"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "jllama"
    monkeypatch.setenv("JLLAMA_CACHE", "here")
    monkeypatch.chdir(tmp_path)
    assert cache_dir() == tmp_path / "here"  # wherever the process goes later


def test_a_cache_that_cannot_be_made_or_written(tmp_path, cache, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(JllamaError, match="set JLLAMA_CACHE to a directory you can write"):
        cache_dir(writable=False)
    monkeypatch.setenv("JLLAMA_CACHE", str(cache))
    cache_dir("xla")
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(JllamaError, match="it is not writable"):
        cache_dir("xla")
    assert cache_dir("xla", writable=False) == cache / "xla"


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_where_reading_will_do_a_lacking_directory_is_no_error(cache, monkeypatch, reason):
    cache_dir()
    make = Path.mkdir

    def mkdir(path, *args, **options):
        if path.name == "xla":
            raise OSError(reason, os.strerror(reason))
        make(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert not cache_dir("xla", writable=False).exists()
    with pytest.raises(JllamaError, match=os.strerror(reason)):
        cache_dir("xla")


@pytest.mark.parametrize("open_mode", [0o777, 0o707, 0o702, 0o1777])
@pytest.mark.parametrize("which", ["", "xla"])
def test_a_cache_that_others_can_write_to_is_refused(cache, which, open_mode):
    cache_dir("xla")
    (cache / which).chmod(open_mode)
    if (which, open_mode) == ("", 0o1777):  # as /tmp is: nobody can touch what lies in it
        assert cache_dir("xla") == cache / "xla"
        return
    for writable in (True, False):
        with pytest.raises(JllamaError, match="others can write to the cache directory"):
            cache_dir("xla", writable=writable)


def test_a_group_of_ones_own_is_closed_and_another_refused(cache, monkeypatch):
    cache_dir()
    state = cache.stat()
    own = os.stat_result((stat.S_IFDIR | 0o775, *state[1:4], state.st_uid, state.st_uid, *state[6:]))
    cache.chmod(0o775)
    if state.st_gid == state.st_uid:
        assert mode(cache_dir()) == 0o755
    shared = os.stat_result((*own[:5], state.st_uid + 1, *own[6:]))
    monkeypatch.setattr(Path, "stat", lambda path, **options: shared)
    with pytest.raises(JllamaError, match="others can write"):
        cache_dir()


@pytest.mark.parametrize("owner", [12345, 0])
def test_a_cache_of_somebody_else_is_refused(cache, monkeypatch, owner):
    cache_dir()
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    state = cache.stat()
    foreign = os.stat_result((*state[:4], owner, *state[5:]))
    monkeypatch.setattr(Path, "stat", lambda path, **options: foreign)
    if owner == 0:  # the administrator's
        assert cache_dir() == cache
        return
    with pytest.raises(JllamaError, match="it belongs to another user"):
        cache_dir()


def special_files(directory: Path) -> dict[str, Path]:
    os.mkfifo(directory / "fifo")
    (directory / "device").symlink_to("/dev/zero")
    (directory / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
    return {path.name: path for path in directory.iterdir()}


def test_what_is_no_file_is_named(tmp_path):
    for kind, path in special_files(tmp_path).items():
        with pytest.raises(JllamaError, match=f"{kind} where a file is due".replace("fifo", "FIFO")):
            check_file(path)
    (tmp_path / "file").touch()
    check_file(tmp_path / "file")


@pytest.mark.parametrize(
    "name", ["x.gguf", "config.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]
)
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_model_with_a_special_file_is_refused_at_once(name, kind, tmp_path):
    """It neither waits for a writer nor reads without end."""
    model = write_tiny_model(tmp_path / "model")
    (model / name).unlink(missing_ok=True)
    (tmp_path / "special").mkdir()
    special_files(tmp_path / "special")[kind].rename(model / name)
    with pytest.raises(JllamaError):
        jllama.load(model / name if name == "x.gguf" else model)


@pytest.mark.parametrize("reference", ["~\0", "~\ud800/x", "~nobody-here"])
def test_a_home_that_is_none(reference):
    with pytest.raises(JllamaError, match="there is no such home directory"):
        jllama.load(reference)


@pytest.mark.parametrize("reference", ["x" * 5000, "/" + "x" * 300, "a/" * 3000])
def test_names_too_long_for_the_file_system(reference):
    with pytest.raises(JllamaError, match="File name too long"):
        jllama.load(reference)


def test_a_directory_to_write_to_must_be_one_to_go_into_too(cache, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)) or True)
    assert cache_dir("xla", "deep") == cache / "xla" / "deep"
    assert asked == [(cache / "xla" / "deep", os.W_OK | os.X_OK)]
    cache_dir("xla", writable=False)
    assert len(asked) == 1
