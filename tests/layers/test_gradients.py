"""Derivatives with respect to a model's own weights; quantised ones are refused in words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jllama
from jllama.model import Params
from tests.support.tiny_checkpoint import write_tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(
        write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", hidden_size=64, intermediate_size=96)
    )


def loss_of(model):
    def loss(params, bias=0.0):
        cache = jllama.KVCache.empty(model.config, batch=1, max_len=8, dtype="float32")
        return jllama.forward(model.config, params, jnp.array([[3, 1, 4]]), cache)[0].std() + bias

    return loss


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize(
    "transform", [jax.grad, jax.value_and_grad, jax.jacrev, jax.jacfwd, lambda f: jax.jit(jax.grad(f))]
)
def test_quantised_weights_are_refused(directory, mode, transform):
    model = jllama.load(directory, dtype="float32", quantize=mode)
    with pytest.raises(jllama.JllamaError, match='quantize="none"'):
        transform(loss_of(model))(model.params)


def test_other_derivatives_of_a_quantised_model_work(directory):
    model = jllama.load(directory, dtype="float32", quantize="int8")
    assert jax.jit(jax.grad(loss_of(model), argnums=1))(model.params, 1.0) == 1
    scales = jax.jit(jax.grad(loss_of(model), allow_int=True))(model.params).layers[0].mlp.down_proj.scales
    assert np.abs(scales).max() > 0


def test_weights_as_they_are_have_a_gradient_of_their_own_shapes(directory):
    model = jllama.load(directory, dtype="float32", quantize="none")
    gradient = jax.jit(jax.grad(loss_of(model)))(model.params)
    assert isinstance(gradient, Params)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, model.params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_parameters_are_a_pytree_with_named_fields(tiny_params):
    paths, tree = jax.tree_util.tree_flatten_with_path(tiny_params)
    assert jax.tree_util.keystr(paths[0][0]) == ".embed_tokens"
    assert jax.tree_util.keystr(paths[-1][0]) == ".lm_head"
    again = jax.tree.unflatten(tree, [leaf for _, leaf in paths])
    assert again.norm is tiny_params.norm
