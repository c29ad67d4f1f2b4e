"""The number that tells one model's weights from another's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.chat.archive import fingerprint as module
from jllama.chat.archive.fingerprint import fingerprint
from jllama.layers.quantization import Scheme, quantize
from jllama.loading import Model
from tests.support.helpers import random_params


def model(config, params, dtype="float32"):
    return Model(config=config, params=params, tokenizer=None, name="tiny", dtype=dtype)


def with_table(params, table):
    return dataclasses.replace(params, embed_tokens=table)


def test_it_depends_on_the_weights_alone(tiny_config, tiny_params):
    first = fingerprint(model(tiny_config, tiny_params))
    assert first == fingerprint(model(tiny_config, random_params(tiny_config)))
    assert first != fingerprint(model(tiny_config, random_params(tiny_config, seed=1)))
    assert first != fingerprint(model(tiny_config, tiny_params, dtype="bfloat16"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_every_weight_counts_and_so_does_its_place(monkeypatch, tiny_config, tiny_params, dtype):
    """With lanes that go through a leaf several times, and a last stretch that is not whole."""
    monkeypatch.setattr(module, "LANES", 100)
    module._checksum.clear_cache()
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.integers(-9, 9, tiny_params.embed_tokens.shape), dtype)

    def of(changed):
        return fingerprint(model(tiny_config, with_table(tiny_params, changed)))

    places = [(0, 0), (0, 31), (30, 7), (60, 0), (60, 31)]
    changes = [table.at[place].set(jnp.asarray(17, dtype)) for place in places]
    moves = [table[::-1], jnp.roll(table, 1), jnp.roll(table, 100)]
    assert len({of(changed) for changed in (table, *changes, *moves)}) == 9
    np.testing.assert_array_equal(module._checksum(table), module._checksum(module._whole_numbers(table)))
    module._checksum.clear_cache()


@pytest.mark.parametrize(
    ("dtype", "size", "numbers"),
    [
        ("uint8", 5, [3411766510, 3381377242]),
        ("uint16", 262144, [1132521155, 1175423241]),  # each lane takes in one
        ("uint32", 524295, [45154859, 1287385587]),  # or three, some of them twice
        ("float32", 524295, [2451847204, 3430861616]),
    ],
)
def test_a_saved_cache_is_known_to_later_versions(dtype, size, numbers):
    bits = (np.arange(size, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(7)).astype(dtype)
    assert np.asarray(module._checksum(jnp.asarray(bits))).tolist() == numbers


def test_the_same_bits_of_another_dtype_are_other_weights(tiny_config, tiny_params):
    bits = np.arange(tiny_params.embed_tokens.size, dtype=np.uint16).reshape(tiny_params.embed_tokens.shape)
    tables = [jax.device_put(bits.view(dtype)) for dtype in (jnp.float16, jnp.bfloat16)]
    assert len({fingerprint(model(tiny_config, with_table(tiny_params, table))) for table in tables}) == 2


def test_quantised_weights_have_one_too(tiny_config, tiny_params):
    table = quantize(tiny_params.embed_tokens, Scheme(bits=4, group=32))
    first = fingerprint(model(tiny_config, with_table(tiny_params, table)))
    other = dataclasses.replace(table, scales=table.scales.at[0, 0].mul(2))
    assert fingerprint(model(tiny_config, with_table(tiny_params, table))) == first
    assert fingerprint(model(tiny_config, with_table(tiny_params, other))) != first
