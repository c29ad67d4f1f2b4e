"""What tells one model's files from another's, without reading all of them."""

import contextlib
import os
import shutil

import numpy as np
import pytest

from jllama import loading
from jllama.checkpoint import likeness
from jllama.checkpoint.formats.gguf import read_gguf_header
from jllama.checkpoint.formats.safetensors import read_header
from jllama.checkpoint.formats.stored import Reader
from jllama.errors import JllamaError
from jllama.files.model_files import ModelFiles
from tests.support.checkpoint_files import KEYS, write_gguf, write_safetensors
from tests.support.checkpoint_generator import random_tensors


@pytest.fixture
def copied(plain_dir, tmp_path):
    """A copy of a model, and its file of weights."""
    directory = tmp_path / "copy"
    shutil.copytree(plain_dir, directory)
    return ModelFiles(description="copy", directory=directory), directory / "model.safetensors"


def test_the_same_files_elsewhere_are_alike(plain_dir, copied):
    assert likeness.sampled(ModelFiles(description="x", directory=plain_dir)) == likeness.sampled(copied[0])


def test_processes_of_a_group_agree_on_their_files_before_they_read_them(copied, tiny_config, monkeypatch):
    agreed = []

    def agree(marks):
        agreed.append(marks)
        raise JllamaError("they differ")

    monkeypatch.setattr(loading.processes, "group", object)
    monkeypatch.setattr(loading.agreement, "agree", agree)
    with pytest.raises(JllamaError, match="they differ"):
        loading._load_weights(copied[0], tiny_config, "float32", "none", False, None)
    own = dict(dtype="float32", storage="none", devices=1)
    assert agreed == [likeness.marks(tiny_config, likeness.sampled(copied[0]), **own)]


def test_each_tensor_counts(copied):
    """By its first bytes, by some in its middle and by its last."""
    files, path = copied
    whole, before = path.read_bytes(), likeness.sampled(files)
    for stored in read_header(path):
        half, last = stored.nbytes // 2, min(likeness.SAMPLE, stored.nbytes // 2) - 1
        for start in (0, last, half, half + last, stored.nbytes - 1):
            data = bytearray(whole)
            data[stored.offset + start] ^= 1
            path.write_bytes(data)
            assert likeness.sampled(files) != before, (stored.name, start)


def test_tensors_of_a_gguf_count_too(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", KEYS, random_tensors(KEYS))
    files, data = ModelFiles(description="x", gguf=path), bytearray(path.read_bytes())
    before = likeness.sampled(files)
    data[read_gguf_header(path).tensors[0].offset] ^= 1
    path.write_bytes(data)
    assert likeness.sampled(files) != before


def test_what_must_be_the_same_has_a_name(tiny_config):
    own = dict(dtype="bfloat16", storage="none", devices=2)
    marks = likeness.marks(tiny_config, "w", **own)
    changed = {
        "model": likeness.marks(tiny_config, "v", **own),
        "dtype": likeness.marks(tiny_config, "w", **own | {"dtype": "float32"}),
        "--quantize": likeness.marks(tiny_config, "w", **own | {"storage": "int8"}),
        "--tensor_parallel": likeness.marks(tiny_config, "w", **own | {"devices": 4}),
    }
    assert [*marks] == ["version of jllama or jax", *changed]
    for name, other in changed.items():
        assert [key for key in marks if marks[key] != other[key]] == [name]


@pytest.mark.parametrize(
    "other",
    [
        {"u": np.zeros((2, 3), np.float32)},
        {"t": np.zeros((3, 2), np.float32)},
        {"t": np.zeros(6, np.float32)},
        {"t": np.zeros((2, 6), np.float16)},
        {"t": np.zeros((2, 4), np.float32)},
        {"t": np.zeros((2, 3), np.float32), "u": np.zeros(0, np.float32)},
    ],
)
def test_names_shapes_and_types_count_whatever_the_bytes_are(tmp_path, other):
    found = []
    for tensors in ({"t": np.zeros((2, 3), np.float32)}, other):
        write_safetensors(tmp_path / "model.safetensors", tensors)
        found.append(likeness.sampled(ModelFiles(description="x", directory=tmp_path)))
    assert found[0] != found[1]


@pytest.mark.parametrize("fails", [False, True])
def test_files_are_closed_again(copied, monkeypatch, fails):
    closed, close = [], Reader.close
    monkeypatch.setattr(Reader, "close", lambda reader: (closed.extend(reader._files), close(reader)))
    if fails:
        monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(JllamaError, match="ends inside") if fails else contextlib.nullcontext():
        likeness.sampled(copied[0])
    assert closed == [copied[1]]
