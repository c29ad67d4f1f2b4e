"""`--output` of the scripts that write a model: where it may point, and what an early end leaves there."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jllama.checkpoint.output import appearing, check_free
from jllama.errors import JllamaError
from tests.support.scripts_helpers import PATIENCE, ROOT, assert_explained, command, environment
from tests.support.tiny_checkpoint import KEYS

MAKE = "make_random_checkpoint.py"
WRITTEN = ["config.json", "model.safetensors"]


@pytest.fixture
def make(server, config_file):
    return lambda output, **env: server.run(MAKE, f"--config={config_file}", f"--output={output}", **env)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_tilde_is_the_home_directory(make, tmp_path):
    outcome = make("~/new", HOME=str(tmp_path))
    assert (outcome.code, outcome.err) == (0, f"wrote {tmp_path}/new\n")
    assert names(tmp_path / "new") == WRITTEN
    assert_explained(make("~nobody-here/new"), "~nobody-here/new: there is no such home directory")


def test_a_link_to_an_empty_directory_is_filled(make, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert make(tmp_path / "link").code == 0
    assert names(tmp_path / "empty") == WRITTEN


def test_the_working_directory_is_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_free(Path())
    with appearing(Path()) as scratch:
        for name in WRITTEN:
            (scratch / name).touch()
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == WRITTEN


def test_an_empty_directory_stays_so_after_an_error(tmp_path):
    with pytest.raises(JllamaError, match="half"):
        fail_inside(tmp_path)
    assert names(tmp_path) == []


def fail_inside(output):
    with appearing(output) as scratch:
        (scratch / "config.json").touch()
        raise JllamaError("half")


def test_places_that_cannot_be_written_are_refused_before_the_work(server, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    cases = {
        "file": "exists already",
        "file/x": "Not a directory",
        "link": "is a link to nothing",
        "n" * 300: "File name too long",
    }
    for name, words in cases.items():
        flags = ["--model=nowhere", "--quantize=int8", f"--output={tmp_path / name}"]
        assert_explained(server.run("quantize.py", *flags), f"{name}|{words}")
    assert names(tmp_path) == ["file", "link"]


def test_sigterm_leaves_nothing(config_file, tmp_path):
    config_file.write_text(json.dumps(KEYS | dict(vocab_size=10**6, hidden_size=1024, head_dim=8)))
    flags = [f"--config={config_file}", f"--output={tmp_path / 'out' / 'new'}"]
    with subprocess.Popen(command(MAKE, *flags), env=environment(tmp_path), cwd=ROOT, stderr=-1) as process:
        while not list(tmp_path.glob("out/.new-*/complete/model.safetensors")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (143, b"")
    assert names(tmp_path / "out") == []
