"""Configurations: every spelling, each refusal by name, and no field that nothing reads."""

import jax
from helpers import full_logits


def test_tiny_model_runs_on_the_cpu(tiny_config, tiny_params):
    assert full_logits(tiny_config, tiny_params, [[1, 2, 3]]).shape == (1, 3, 61)
    assert jax.devices()[0].platform == "cpu"
