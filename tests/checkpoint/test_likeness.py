"""What tells one model's files from another's, without reading all of them."""

import shutil

import pytest

from jllama.checkpoint import likeness
from jllama.checkpoint.formats.safetensors import read_header
from jllama.files.model_files import ModelFiles


@pytest.fixture
def copied(plain_dir, tmp_path):
    """A copy of a model, and its file of weights."""
    directory = tmp_path / "copy"
    shutil.copytree(plain_dir, directory)
    return ModelFiles(description="copy", directory=directory), directory / "model.safetensors"


def test_the_same_files_elsewhere_are_alike(plain_dir, copied):
    assert likeness.sampled(ModelFiles(description="x", directory=plain_dir)) == likeness.sampled(copied[0])


def test_each_tensor_counts(copied):
    """By its first byte, and by one in its middle."""
    files, path = copied
    whole, before = path.read_bytes(), likeness.sampled(files)
    for stored in read_header(path):
        for start in (0, stored.nbytes // 2):
            data = bytearray(whole)
            data[stored.offset + start] ^= 1
            path.write_bytes(data)
            assert likeness.sampled(files) != before, (stored.name, start)


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
