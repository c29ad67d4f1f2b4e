"""Random weights: how large they are, and that the seed decides."""

import jax
import numpy as np
import pytest

from jllama.checkpoint.layout import layout
from jllama.checkpoint.random_params import random_params


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_kind_has_its_size(tiny_config, dtype):
    config = tiny_config
    leaves = zip(jax.tree.leaves(layout(config)), jax.tree.leaves(random_params(config, dtype)), strict=True)
    for leaf, array in leaves:
        values = np.asarray(array, np.float32)
        assert (str(array.dtype), values.shape) == (dtype, leaf.shape)
        mean, deviation = (1, 0.1) if "norm" in leaf.parts[0].name else (0, leaf.shape[-1] ** -0.5)
        if leaf.parts[0].name.endswith("bias"):
            deviation = 0.02
        assert values.mean() == pytest.approx(mean, abs=4 * deviation / values.size**0.5 + 0.01)
        assert values.std() == pytest.approx(deviation, rel=4 / (2 * values.size) ** 0.5 + 0.02)


def test_the_seed_decides(tiny_config):
    first, again, other = (random_params(tiny_config, seed=seed).embed_tokens for seed in (0, 0, 1))
    assert (first == again).all()
    assert not (first == other).any(axis=-1).all()


def test_no_two_leaves_are_alike(tiny_config):
    layers = random_params(tiny_config).layers
    assert len(layers) > 1
    first, second = (layer.mlp.down_proj for layer in layers[:2])
    assert not (first == second).any(axis=-1).all()
