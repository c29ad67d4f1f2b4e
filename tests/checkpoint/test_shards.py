"""What each of several devices takes of a checkpoint's tensors, against heads and rows counted by hand."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jllama.checkpoint.layout import layout, parts
from jllama.checkpoint.shards import device_share, leaf_rows, numbers, shard_layout

N, H, D, F, V = 8, 4, 6, 16, 12  # query heads, and the sizes of everything but key heads
CASES = [
    *[(dict(num_key_value_heads=K), t) for K in (1, 2, 4, 8) for t in (2, 4, 8)],
    (dict(num_key_value_heads=4, attention_bias=True, mlp_bias=True), 2),
    (dict(num_key_value_heads=2, attention_bias=True, mlp_bias=True), 4),
    *[(dict(num_key_value_heads=2, qk_norm=kind), t) for kind in ("head", "full") for t in (2, 4)],
    (dict(num_key_value_heads=2, tie_word_embeddings=True), 2),
    (dict(num_key_value_heads=2, tie_word_embeddings=True, vocab_size=13), 2),
    (dict(num_key_value_heads=2, vocab_size=13), 2),
]


def sized(tiny_config, **changes):
    sizes = dict(num_attention_heads=N, head_dim=H, hidden_size=D, intermediate_size=F, vocab_size=V)
    return dataclasses.replace(tiny_config, num_hidden_layers=1, **sizes | changes)


def filled(leaf, tensors):
    """The array that a leaf's parts make, each from its rows and columns."""
    out = np.full(leaf.shape, np.nan)
    for part in leaf.parts:
        rows, columns = slice(*part.rows or (None,)), slice(*part.columns or (None,))
        taken = tensors[part.name][rows]
        taken = taken[:, columns] if taken.ndim > 1 else taken
        assert (part.height, part.width) == (len(taken), math.prod(taken.shape[1:]))
        out[part.place] = taken.reshape(out[part.place].shape)
    assert not np.isnan(out).any()
    return out


def by_name(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path[-1].name: leaf for path, leaf in flat}


def wanted(name, whole, config, t, at):
    """A device's part of a leaf, of the leaf as one device has it (`whole`)."""
    K, each, repeats = config.num_key_value_heads, N // t, max(t // config.num_key_value_heads, 1)
    keys = range(at * K // t, (at + 1) * K // t) if repeats == 1 else [at // repeats]
    queries = [divmod(head, N // K) for head in range(at * each, (at + 1) * each)]
    per_key = each // len(keys)
    if name in ("qkv_proj", "qkv_bias"):
        rows = [
            [whole[k, g] for k, g in queries[place * per_key :][:per_key]] + [whole[key, -2], whole[key, -1]]
            for place, key in enumerate(keys)
        ]
        return np.array(rows)
    if name == "q_norm" and whole.ndim > 1:
        return np.array([whole[k, g] for k, g in queries]).reshape(len(keys), per_key, H)
    if name == "k_norm" and whole.ndim > 1:
        return whole[list(keys)]
    cut = dict(o_proj=1, down_proj=1, gate_up_proj=1, gate_up_bias=1)
    if name == "lm_head" and config.vocab_size % t == 0:
        cut["lm_head"] = 0
    return np.split(whole, t, axis=cut[name])[at] if name in cut else whole


@pytest.mark.parametrize(("changes", "devices"), CASES, ids=str)
def test_each_device_takes_its_heads_and_rows(tiny_config, changes, devices):
    config = sized(tiny_config, **changes)
    tensors = {
        name: np.random.default_rng(at).random(part.shape)
        for at, (name, part) in enumerate(parts(config).items())
    }
    whole = by_name(layout(config))
    for at in range(devices):
        own = by_name(shard_layout(config, devices, at))
        untied = config.tie_word_embeddings and config.vocab_size % devices == 0
        assert own.keys() - whole.keys() == ({"lm_head"} if untied else set())
        for name, leaf in own.items():
            source = whole.get(name, whole["embed_tokens"])
            found, before = filled(leaf, tensors), filled(source, tensors)
            np.testing.assert_array_equal(found, wanted(name, before, config, devices, at), name)
            if not any(part.columns for part in leaf.parts):
                flat = before.reshape(-1, before.shape[-1] if source.is_matrix else 1)
                rows = leaf_rows(source, leaf)
                np.testing.assert_array_equal(flat[rows].reshape(found.shape), found, name)


def test_how_many_numbers_a_process_and_a_device_make(tiny_config):
    config = sized(tiny_config, num_key_value_heads=2)
    whole = sum(math.prod(part.shape) for part in parts(config).values())
    alike = V * D + 3 * D  # the table and the norms lie whole on each
    assert numbers(config, None) == whole
    mesh = SimpleNamespace(size=4, devices=np.array([SimpleNamespace(process_index=p) for p in (0, 0, 1, 1)]))
    keys = 2 * 2 * H * D  # 2 heads of keys and of values, which 4 devices have twice
    each = alike + (whole - alike + keys) // 4
    assert numbers(config, mesh) == 2 * each
    assert device_share(config, 4) == each / whole
    assert device_share(config, 1) == 1
