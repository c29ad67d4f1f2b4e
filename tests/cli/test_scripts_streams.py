"""Where texts come from and go to: files, pipes, devices, full disks."""

import os
import subprocess
import sys
import threading

import pytest

from jllama.cli import streams
from jllama.errors import JllamaError
from tests.support.scripts_helpers import ROOT, assert_explained, environment, start

INSPECT, QUANTIZE = "inspect_model.py", "quantize.py"


@pytest.fixture(scope="module")
def model(base_dir):
    return base_dir


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.mark.parametrize("parts", [[b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe", b"\r\n"], [b"x" * 10**6]])
def test_a_text_comes_from_a_fifo(fifo, parts):
    def write():
        with fifo.open("wb") as pipe:
            for part in parts:
                pipe.write(part)
                pipe.flush()

    writer = threading.Thread(target=write)
    writer.start()
    assert streams.read_text(str(fifo)) == b"".join(parts).decode("utf-8-sig")
    writer.join()


def test_a_writer_that_takes_its_time_is_waited_for(fifo, monkeypatch):
    monkeypatch.setattr(streams, "PATIENCE", 0.01)
    ready, write = threading.Event(), threading.Event()

    def late():
        with fifo.open("wb") as pipe:
            ready.set()
            write.wait(500)
            pipe.write(b"late")

    # Opening it to write waits for a reader.
    keep = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = threading.Thread(target=late)
    writer.start()
    assert ready.wait(500)
    threading.Timer(0.1, write.set).start()
    assert streams.read_text(str(fifo)) == "late"
    writer.join()
    os.close(keep)


def test_a_fifo_that_nobody_writes_to_is_not_waited_for(fifo, monkeypatch):
    monkeypatch.setattr(streams, "PATIENCE", 0.01)
    with pytest.raises(JllamaError, match="is a FIFO, and nobody writes to it"):
        streams.read_text(str(fifo))


def test_a_device_has_no_end(monkeypatch):
    monkeypatch.setattr(streams, "LARGEST_TEXT", 2**20)
    with pytest.raises(JllamaError, match="/dev/zero holds more than 1 MiB"):
        streams.read_text("/dev/zero")
    with open("/dev/zero", "rb") as zero:
        monkeypatch.setattr(streams, "standard_input", lambda: zero)
        with pytest.raises(JllamaError, match="- holds more than 1 MiB"):
            streams.read_text("-")


def test_what_a_shell_puts_in_a_files_place(tmp_path):
    """`<(command)` as a flagfile and as a prompt."""
    flags = "--flagfile=<(echo --model=/no/such) --prompt_file=<(echo Hello)"
    line = f"{sys.executable} scripts/generate.py {flags}"
    done = subprocess.run(
        ["bash", "-c", line], env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "no such model: '/no/such'" in done.stderr


FLAGFILES = {
    "fifo": "is a FIFO, and nobody writes to it",
    "/dev/full": "holds more than",
    "/": "Is a directory",
    "x" * 5000: "File name too long",
}


@pytest.mark.parametrize(("name", "words"), FLAGFILES.items(), ids=["FIFO", "device", "directory", "long"])
def test_flagfiles_that_are_none(name, words, fifo, tmp_path, monkeypatch):
    from absl import flags

    from jllama.cli import flagfiles

    monkeypatch.setattr(streams, "LARGEST_TEXT", 2**20)
    monkeypatch.setattr(streams, "PATIENCE", 0.01)
    name = str(fifo) if name == "fifo" else name
    (tmp_path / "outer.cfg").write_text(f"# a comment\n\n// another\n--flagfile={name}\n")
    for argument in (f"--flagfile={name}", f"--flagfile={tmp_path / 'outer.cfg'}"):
        with pytest.raises(JllamaError, match=words):
            flagfiles.parse(flags.FlagValues(), ["script", argument])


def test_flagfiles_that_name_each_other_are_read_once(tmp_path):
    from jllama.cli import flagfiles

    one, other = tmp_path / "one.cfg", tmp_path / "other.cfg"
    one.write_text(f"# --seed=7\n\n// --seed=8\n--seed=1\n--flagfile={other}\n--top_k=3\n")
    other.write_text(f"  --seed=2  \r\n--flagfile={one}\n")
    assert flagfiles._read(str(one)) == ["--seed=1", "--seed=2", "--top_k=3"]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (INSPECT, []),
        (INSPECT, ["--json"]),
        ("generate.py", ["--prompt=x", "--max_new_tokens=2", "--json"]),
        ("generate.py", ["--prompt=x", "--max_new_tokens=2"]),
    ],
)
def test_a_full_disk_under_the_output(script, arguments, server, model):
    outcome = server.run(script, f"--model={model}", *arguments, stdout="/dev/full")
    assert outcome.code == 2
    assert "error: cannot write the output: No space left on device\n" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2> >(true)"])
def test_a_stderr_that_takes_nothing_costs_no_answer(redirect, server, model):
    """A pipe is closed as soon as `true` ends."""
    flags = f"--model={model} --prompt=x --max_new_tokens=2 --dtype=float32 --verbose --stats"
    for line, code in ((flags, 0), (f"{flags} --top_p=7", 2)):
        line = f"{sys.executable} scripts/generate.py {line} {redirect}"
        done = subprocess.run(
            ["bash", "-c", line], env=server.env, cwd=ROOT, capture_output=True, check=False
        )
        assert (done.returncode, bool(done.stdout)) == (code, code == 0)


def test_names_in_messages_do_not_steer_the_terminal(capsys):
    streams.say("note: as saved in a\x1b[31m\nb", "second line")
    assert capsys.readouterr().err == "note: as saved in a\\x1b[31m\\nb\nsecond line\n"


@pytest.mark.parametrize("script", [QUANTIZE, "make_random_checkpoint.py"])
@pytest.mark.parametrize("output", ["fifo", "/dev/null", "x" * 5000, "~nobody-here/x"])
def test_an_output_that_is_no_place_for_a_model(script, output, server, fifo, model):
    output = str(fifo) if output == "fifo" else output
    source = f"--config={model}/config.json" if "random" in script else f"--model={model}"
    outcome = server.run(script, source, f"--output={output}")
    assert_explained(outcome, "exists already" if output[0] == "/" else "")


def test_names_in_a_listing_do_not_steer_the_terminal(server, tmp_path):
    from tests.support.checkpoint_files import KEYS, write_directory
    from tests.support.checkpoint_generator import random_tensors

    tensors = random_tensors(KEYS)
    directory = write_directory(tmp_path, KEYS, tensors | {"x\x1b[31m\n": tensors["model.norm.weight"]})
    outcome = server.run(INSPECT, f"--model={directory or tmp_path}")
    assert "\x1b" not in outcome.out + outcome.err


def test_warnings_are_one_line(tmp_path):
    config = (ROOT / "configs" / "models" / "tinyllama-1.1b.json").read_text()
    (tmp_path / "x.json").write_text(config.replace("{", '{"a\\u001b[31m\\n": 1,', 1))
    outcome = start(
        INSPECT, f"--model={tmp_path}/x.json", "--json", env=environment(tmp_path), warnings="default"
    )
    assert outcome.code == 0
    assert outcome.err == "warning: config.json: keys that jllama does not know: a\\x1b[31m\\n\n"
