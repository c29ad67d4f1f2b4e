"""Checkpoints of random weights: what lies in which file, and what the numbers hang on."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from jllama.checkpoint import random_weights
from jllama.checkpoint.layout import Part
from jllama.checkpoint.random_weights import write_random_checkpoint
from tests.support.checkpoint_files import KEYS


@pytest.mark.parametrize(
    ("sizes", "limit", "shards"),
    [
        ([5, 5, 5], None, [[5, 5, 5]]),
        ([5, 5, 5], 40, [[5, 5], [5]]),
        ([5, 5, 5], 39, [[5], [5], [5]]),
        ([5, 5, 5], 60, [[5, 5, 5]]),
        ([5, 5, 5], 59, [[5, 5], [5]]),
        ([50, 1, 1, 50], 8, [[50], [1, 1], [50]]),
        ([50], 1, [[50]]),
    ],
)
def test_a_shard_takes_what_there_is_room_for_and_one_tensor_at_least(sizes, limit, shards):
    tensors = [Part(name=str(at), shape=(size, 1)) for at, size in enumerate(sizes)]
    made = random_weights._shards(tensors, 4, limit)
    assert [[part.shape[0] for part in shard] for shard in made] == shards
    assert [part for shard in made for part in shard] == tensors


def test_shards_are_numbered_and_an_index_names_them(tmp_path, config_file, monkeypatch):
    monkeypatch.setattr(random_weights, "CHUNK", 1000)  # no number hangs on it
    write_random_checkpoint(config_file, tmp_path / "one", dtype="float32", seed=5)
    write_random_checkpoint(config_file, tmp_path / "many", dtype="float32", seed=5, shard_bytes=50_000)
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert files == [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    there = {
        name: (file, array) for file in files for name, array in load_file(tmp_path / "many" / file).items()
    }
    assert index["weight_map"] == {name: file for name, (file, _) in there.items()}
    assert index["metadata"] == {"total_size": sum(array.nbytes for array in whole.values())}
    assert there.keys() == whole.keys()
    assert all(np.array_equal(array, whole[name]) for name, (_, array) in there.items())
    assert json.loads((tmp_path / "one" / "config.json").read_text()) == KEYS
    for file in files:
        data = (tmp_path / "many" / file).read_bytes()
        length = int.from_bytes(data[:8], "little")
        assert length % 8 == 0
        assert json.loads(data[8 : 8 + length])["__metadata__"] == {"format": "pt"}
        assert (
            sum(array.nbytes for name, (place, array) in there.items() if place == file)
            == len(data) - 8 - length
        )


def test_what_the_numbers_hang_on(tmp_path, config_file):
    def tensors(name, **how):
        write_random_checkpoint(config_file, tmp_path / name, **{"dtype": "float32", "seed": 1} | how)
        return load_file(tmp_path / name / "model.safetensors")

    first, again, other, wide = (
        tensors("a"), tensors("b"), tensors("c", seed=2), tensors("d", scale=0.5)
    )  # fmt: skip
    for name, array in first.items():
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        assert np.array_equal(array, again[name])
        assert not np.array_equal(array, other[name])
        assert abs(array.mean() - centre) < 0.02
        assert 0.01 < array.std() < 0.03
        np.testing.assert_allclose(wide[name] - centre, (array - centre) * 25, atol=1e-4)
    matrices = [array for name, array in first.items() if array.ndim > 1]
    assert len({array.flat[0] for array in matrices}) == len(matrices)
