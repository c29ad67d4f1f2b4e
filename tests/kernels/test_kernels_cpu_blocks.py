"""GGUF's block types in the C++ kernels: products, steps and prompts as stored, and who refuses them."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import model
from jllama.checkpoint import load_params, read_config
from jllama.checkpoint.leaves.block_types import TYPES, Form
from jllama.hub.references import resolve
from jllama.kernels import cpu
from jllama.kernels.gpu import decode, launch, product
from jllama.kernels.gpu.plan import weight_format
from jllama.layers.qtensor import QTensor, recorded
from tests.support.block_files import numbers_of, random_blocks, weight_of, write_mixed_gguf
from tests.support.checkpoint_generator import random_tensors
from tests.support.helpers import whole
from tests.support.kernels_cpu import (
    activations,
    every_machine,
    filled_cache,
    has_tiles,
    kernel_step,
    products,
    skip_without_kernels,
    suffix_of,
)

COLUMNS = 768
MIXED = Form(8, 16, offsets=True, scales="int8")  # Q4_K or Q5_K beside Q6_K
WIDEST = Form(8, 16, offsets=True, scales="float32")
CASES = [(kind, TYPES[kind].form) for kind in TYPES]
CASES += [("Q4_K", MIXED), ("Q5_K", MIXED), ("Q6_K", MIXED), ("Q4_1", WIDEST), ("Q6_K", WIDEST)]
CASES += [("Q4_K", Form(4, 32, offsets=True, scales="float32"))]


@every_machine
@pytest.mark.parametrize(("kind", "form"), CASES)
def test_products(machine, kind, form):
    rng = np.random.default_rng(0)
    for rows, batches in ((1, [(2,)]), (16, [(1,)]), (50, [(1,), (5,), (3, 4), (17,), (66,)])):
        raw = random_blocks(rng, kind, rows, COLUMNS)
        full, packed = numbers_of(raw, kind), cpu.prepare(weight_of(raw, kind, form))
        assert packed.layout == "tiles"
        many = [activations(rng, *batch, COLUMNS) for batch in batches]
        for x, y in zip(many, products(packed, many, machine), strict=True):
            exact = np.asarray(x, np.float64) @ full.T.astype(np.float64)
            size = np.abs(np.asarray(x, np.float64)) @ np.abs(full.T)
            lost = 3 * 2.0**-16 if len(x) == 66 and has_tiles(machine) else 2e-6
            np.testing.assert_array_less(np.abs(y - exact), lost * size)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_tiles_hold_the_same_numbers(kind, form):
    for rows in (1, 16, 39):
        w = weight_of(random_blocks(np.random.default_rng(1), kind, rows, COLUMNS), kind, form)
        np.testing.assert_array_equal(whole(cpu.prepare(w)), whole(w))


# Whole models.

KEYS = dict(
    model_type="llama",
    vocab_size=83,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=True,
)
FILES = {
    "Q4_K_M": {"layers.0.self_attn.v": "Q6_K", "layers.0.mlp.down": "Q6_K", "proj": "Q4_K", "": "Q6_K"},
    "Q5_K_M": {"layers.0.self_attn.v": "Q6_K", "layers.0.mlp.down": "Q6_K", "proj": "Q5_K", "": "Q6_K"},
    "narrow": {"v_proj": "Q8_0", "down": "Q5_1", "mlp": "IQ4_NL", "proj": "Q5_0", "": "Q8_0"},
    "strange": {"q_proj": "Q4_K", "k_proj": "Q8_0", "v_proj": "Q5_1", "gate": "Q4_0", "": "Q4_1"},
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_several_types_runs_as_stored(name, tmp_path):
    """A step of two rows, and a prompt in chunks, beside the expanded weights in float32."""
    skip_without_kernels()
    path = write_mixed_gguf(tmp_path / "m.gguf", KEYS, random_tensors(KEYS), FILES[name], seed=2)
    files = resolve(str(path))
    config = read_config(files)
    kept = load_params(files, config, "float32", quantize="auto")
    full = load_params(files, config, "float32")
    assert all(isinstance(leaf, QTensor) for leaf in weights(kept))
    rng = np.random.default_rng(3)
    for lengths, T in (((7, 3), 1), ((2,), 9), ((4,), 40)):
        cache = filled_cache(config, rng, lengths, 64, "float32")
        assert cpu.forward_refusal(config, kept, cache) is None
        tokens = jnp.asarray(rng.integers(0, 83, (len(lengths), T)), jnp.int32)
        n_valid = jnp.full((len(lengths),), T, jnp.int32)
        wanted, _ = model.forward(config, full, tokens, cache, n_valid=n_valid)
        got, _ = kernel_step(config, kept, tokens, cache, "")
        np.testing.assert_allclose(got, wanted, atol=2e-4 * float(jnp.abs(wanted).max()))


def weights(params) -> list:
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return [leaf for leaf in leaves if isinstance(leaf, QTensor) or leaf.ndim > 1]


@every_machine
@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_rows_behind_the_last_and_memory_behind_the_end_spoil_nothing(machine, kind):
    """Poison in the padding of the last tile stays there: its rows are not written."""
    w = cpu.prepare(weight_of(random_blocks(np.random.default_rng(4), kind, 5, COLUMNS), kind))
    units = np.array(w.scale_units)
    units[:, :, 5:] = np.nan
    target = f"jllama_product{suffix_of(machine)}"
    poisoned = dataclasses.replace(w, scale_units=jnp.asarray(units))
    for rows in (3, 20, 70):
        x = activations(np.random.default_rng(5), rows, COLUMNS)
        np.testing.assert_array_equal(
            cpu.quantized_linear(poisoned, x, target=target), cpu.quantized_linear(w, x, target=target)
        )


# Who refuses what.


@pytest.mark.parametrize("kind", TYPES)
def test_a_gpu_s_kernels_know_every_type_in_the_layout_that_they_read(kind, monkeypatch):
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)
    rows = weight_of(random_blocks(np.random.default_rng(0), kind, 64, 1024), kind)
    reasons = {"rows": "but in records" if rows.scale_units is not None else None, "records": None}
    for w in (rows, recorded(rows)):
        words = reasons[w.layout]
        for reason in (
            product.product_refusal(weight_format(w), 64, 1024),
            decode._format_refusal(weight_format(w), 1024, SimpleNamespace(row_bytes=1024)),
        ):
            assert reason is None if words is None else words in reason


def test_the_cpu_s_kernels_name_scales_that_they_do_not_know():
    w = cpu.prepare(weight_of(random_blocks(np.random.default_rng(0), "Q4_K", 16, 256), "Q4_K"))
    assert cpu.weight_refusal(w) is None
    assert cpu.weight_refusal(dataclasses.replace(w, scale_units=None)) == "scales of float16, int8"
    bare = dataclasses.replace(w, scale_units=None, offset_units=None)
    assert cpu.weight_refusal(bare) == "scales of int8"
    wide = dataclasses.replace(w, scale_units=w.scale_units.astype(jnp.float32))
    assert cpu.weight_refusal(wide) == "scales of float16, float32, int8"
