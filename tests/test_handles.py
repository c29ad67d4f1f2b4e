"""Whatever opens a file closes it again, also where something goes wrong."""

import contextlib
import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from jllama.chat.archive.files import replacing
from jllama.checkpoint import likeness
from jllama.checkpoint.formats.gguf import read_gguf_header
from jllama.checkpoint.formats.safetensors import read_header
from jllama.cli import answers, streams
from jllama.cli.terminal import line_editor
from jllama.errors import JllamaError
from jllama.files.model_files import ModelFiles
from jllama.text.vocabularies import ranked, spm_file
from tests.support.checkpoint_files import write_safetensors


def alike(path):
    write_safetensors(path / "model.safetensors", {"a": np.ones((4, 4), np.float32)})
    likeness.sampled(ModelFiles(description="m", directory=path))


def cut(path):
    write_safetensors(path / "model.safetensors", {"a": np.ones((4, 4), np.float32)})
    os.truncate(path / "model.safetensors", (path / "model.safetensors").stat().st_size - 8)
    likeness.sampled(ModelFiles(description="m", directory=path))


def written(path):
    with replacing(path / "a", path / "b"):
        pass


def not_written(path):
    with replacing(path / "a", path / "b"):
        raise OSError


def answered(path):
    with answers.own(path / "a") as output:
        output.write("1", "m", {"error": "odd"})
    with answers.own(path / "a") as output:
        output.left({"1": "m"})


def taken(path):
    with answers.own(path / "a"), pytest.raises(JllamaError, match="another run"), answers.own(path / "a"):
        pass


def piped(path):
    os.mkfifo(path / "pipe")
    writer = threading.Thread(target=(path / "pipe").write_text, args=("a",))
    writer.start()
    streams.read_text(str(path / "pipe"))
    writer.join()


def file(path, data):
    (path / "f").write_bytes(data)
    return path / "f"


ACTIONS = {
    "files that are compared": alike,
    "a file that ends too early": cut,
    "files that take their places": written,
    "files that don't": not_written,
    "answers": answered,
    "answers of another run": taken,
    "a text": lambda path: streams.read_text(str(file(path, b"a"))),
    "a text that is none": lambda path: streams.read_text(str(file(path, b"\xff"))),
    "a pipe": piped,
    "a history": lambda path: line_editor._close_to_others(str(path / "h")),
    "no safetensors": lambda path: read_header(file(path, b"a" * 99)),
    "no GGUF": lambda path: read_gguf_header(file(path, b"GGUF" + b"a" * 99)),
    "no table": lambda path: ranked._table(file(path, b"a b c\n")),
    "no SentencePiece": lambda path: spm_file.read_model(file(path, b"a" * 99)),
}


@pytest.mark.parametrize("what", ACTIONS)
def test_no_file_stays_open(tmp_path, what):
    gc.collect()
    before = sorted(Path("/proc/self/fd").iterdir())
    with contextlib.suppress(JllamaError):
        ACTIONS[what](tmp_path)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
