"""What is cut where, and how parts lie behind one another: numbers tell their place, on one device."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jllama import sharding
from jllama.errors import JllamaError
from jllama.layers.qtensor import QTensor
from jllama.layers.shards import AXIS, Shards
from jllama.sharding import mesh as meshes
from jllama.sharding import split
from jllama.sharding.cuts import array_spec, check_groups, cut_axis, spec_of, with_own_scales
from jllama.sharding.split import _by_rows, _device_by_device, _with_repeated_keys


def path(name):
    return (jax.tree_util.GetAttrKey(name),)


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


CUTS = [
    *(("qkv_proj", array(2, 6, 8, 32), 0), ("qkv_bias", array(2, 6, 8), 0), ("o_proj", array(32, 32), 1)),
    *(
        ("gate_up_proj", array(2, 48, 32), 1),
        ("gate_up_bias", array(2, 48), 1),
        ("down_proj", array(32, 48), 1),
    ),
    *(("lm_head", array(64, 32), 0), ("lm_head", array(63, 32), None), ("embed_tokens", array(64, 32), None)),
    *(("q_norm", array(8), None), ("q_norm", array(2, 4, 8), 0), ("k_norm", array(2, 8), 0)),
    *(
        (name, array(32), None)
        for name in ("norm", "attn_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm")
    ),
    *(("o_bias", array(32), None), ("down_bias", array(32), None), ("peers", array(2, 2), None)),
]


@pytest.mark.parametrize(("name", "leaf", "axis"), CUTS)
def test_each_parameter_is_cut_along_its_axis_or_lies_whole(name, leaf, axis):
    assert cut_axis(path(name), leaf, 2) == axis
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)
    assert spec_of(path(name), leaf, 2) == spec


@pytest.mark.parametrize(
    ("axis", "ndim", "spec"),
    [
        (None, 2, PartitionSpec()),
        (0, 2, PartitionSpec(AXIS)),
        (0, 4, PartitionSpec(AXIS)),
        (1, 3, PartitionSpec(AXIS)),
        (1, 2, PartitionSpec(None, AXIS)),
        (2, 3, PartitionSpec(None, AXIS)),
    ],
)
def test_arrays_of_a_quantised_leaf_are_cut_by_rows_or_by_columns(axis, ndim, spec):
    assert array_spec(axis, ndim) == spec


def quantised(bits=8, groups=1, units=False):
    return QTensor(
        values=jnp.zeros((4, 64), jnp.int8),
        scales=jnp.arange(4.0 * groups).reshape(4, groups),
        offsets=None,
        scale_units=jnp.ones((4, 1)) if units else None,
        shape=(4, 64),
        bits=bits,
    )


@pytest.mark.parametrize(
    ("leaf", "repeated"),
    [
        (quantised(), True),
        (quantised(groups=2), False),
        (quantised(groups=4), False),
        (quantised(bits=4), False),
        (quantised(units=True), False),
    ],
)
def test_a_scale_of_whole_rows_is_there_for_each_device(leaf, repeated):
    made = with_own_scales(leaf, 3)
    assert (made is leaf) is not repeated
    if repeated:
        assert made.scales.tolist() == [[row] * 3 for row in range(4)]
        assert (made.shape, made.group) == (leaf.shape, 64 // 3)


@pytest.mark.parametrize(
    ("counts", "devices", "words"),
    [
        ((8, 4), 4, None),
        ((8, 4), 1, None),
        ((8, 4), 8, "rows of 96 weights in blocks of 24 can't be cut into 8 equal parts: .* one of 1, 2, 4,"),
        ((6,), 4, "in blocks of 16 .* one of 1, 2, 3, 6,"),
        ((128,), 3, "one of 1, 2, 4, 8, 16, 32, 64,"),
    ],
)
def test_groups_are_not_cut(counts, devices, words):
    with pytest.raises(JllamaError, match="o_proj: rows of 64 weights in blocks of 21"):
        spec_of(path("o_proj"), quantised(groups=3), 2)
    assert spec_of(path("qkv_proj"), quantised(groups=3), 2).scales == PartitionSpec(AXIS)  # by rows
    if words is None:
        check_groups("down_proj", 96, counts, devices)
    else:
        with pytest.raises(JllamaError, match=f"down_proj: .*{words}"):
            check_groups("down_proj", 96, counts, devices)


@pytest.mark.parametrize(
    ("N", "K", "fit"),
    [
        (8, 2, [1, 2, 4, 8]),
        (8, 8, [1, 2, 4, 8]),
        (12, 3, [1, 3, 6, 12]),
        (6, 2, [1, 2, 6]),
        (64, 1, "powers"),
    ],
)
def test_into_how_many_parts_heads_can_be_cut(tiny_config, N, K, fit):
    sizes = dict(num_attention_heads=N, num_key_value_heads=K, intermediate_size=64 * 9)
    config = dataclasses.replace(tiny_config, **sizes)
    fit = [1, 2, 4, 8, 16, 32, 64] if fit == "powers" else fit
    assert [n for n in range(1, 65) if sharding.refusal(config, n) is None] == fit


def test_queries_keep_their_key_where_keys_are_repeated():
    """[K, G + 2]: queries of four for each key; on four devices each key is there twice."""
    qkv = jnp.arange(2 * 6).reshape(2, 6, 1)
    made = _with_repeated_keys(qkv, 2)[:, :, 0].tolist()
    assert made == [[0, 1, 4, 5], [2, 3, 4, 5], [6, 7, 10, 11], [8, 9, 10, 11]]
    leaf = QTensor(
        values=jnp.arange(12 * 4, dtype=jnp.int8).reshape(12, 4),
        scales=jnp.arange(12.0)[:, None],
        offsets=None,
        shape=(2, 6, 4),
        bits=8,
    )
    rows = _by_rows(lambda a: _with_repeated_keys(a, 2), leaf, -1)
    assert rows.shape == (4, 4, 4)
    assert rows.scales[:, 0].tolist() == [float(n) for row in made for n in row]
    assert rows.values[:, 0].tolist() == [4 * n for row in made for n in row]


@pytest.mark.parametrize(
    ("name", "shape"), [("q_norm", (2, 4, 8)), ("k_norm", (2, 8)), ("qkv_proj", (2, 6, 8, 3))]
)
def test_fewer_devices_than_keys_repeat_nothing(tiny_config, name, shape):
    leaf = jnp.arange(float(np.prod(shape))).reshape(shape)
    made = sharding.split_leaf(path(name), leaf, tiny_config, sharding.mesh_of(1))
    np.testing.assert_array_equal(made, leaf)


@pytest.fixture
def four(monkeypatch):
    """Four devices; what would lie on them is given back whole."""
    monkeypatch.setattr(split, "spec_of", lambda path, leaf, devices: leaf)
    monkeypatch.setattr(split, "on_mesh", lambda mesh, leaf: leaf)
    monkeypatch.setattr(split, "put", lambda _, leaf: leaf)
    return SimpleNamespace(size=4)


def test_norms_over_all_heads_follow_the_keys_that_are_repeated(tiny_config, four):
    """Two keys of two queries each, on four devices: two devices have the same key."""
    assert (tiny_config.num_attention_heads, tiny_config.num_key_value_heads) == (4, 2)
    q_norm, k_norm = np.arange(4.0).reshape(2, 2, 1), np.array([[1.0], [2.0]])
    made = sharding.split_leaf(path("q_norm"), q_norm, tiny_config, four)
    np.testing.assert_array_equal(made, np.arange(4.0).reshape(4, 1, 1))
    made = sharding.split_leaf(path("k_norm"), k_norm, tiny_config, four)
    np.testing.assert_array_equal(made, [[1.0], [1.0], [2.0], [2.0]])
    bias = np.array([[10, 11, 1, 2], [20, 21, 3, 4]])[:, :, None]  # of two queries, their key, their value
    made = sharding.split_leaf(path("qkv_bias"), jnp.asarray(bias), tiny_config, four)
    np.testing.assert_array_equal(made[:, :, 0], [[10, 1, 2], [11, 1, 2], [20, 3, 4], [21, 3, 4]])
    for name, norm in (("q_norm", q_norm[0, :, 0]), ("k_norm", k_norm[:, 0])):  # of each head alone
        assert sharding.split_leaf(path(name), norm, tiny_config, four) is norm


@pytest.mark.parametrize(("name", "scales"), [("o_proj", 4), ("down_proj", 4), ("lm_head", 1)])
def test_rows_that_are_cut_have_a_scale_for_each_device(tiny_config, four, name, scales):
    assert sharding.split_leaf(path(name), quantised(), tiny_config, four).scales.shape == (4, scales)


@pytest.mark.parametrize(
    ("tied", "vocab", "devices", "keys", "still_tied"),
    [
        (True, 64, 2, 2, False),
        (True, 63, 2, 2, True),  # a head that can't be cut lies whole on each
        (False, 63, 2, 2, False),
        (False, 64, 4, 4, False),
    ],
)
def test_a_model_as_several_devices_hold_it(tiny_config, tied, vocab, devices, keys, still_tied):
    config = dataclasses.replace(tiny_config, tie_word_embeddings=tied, vocab_size=vocab)
    made = sharding.widened(config, devices)
    assert (made.num_key_value_heads, made.tie_word_embeddings) == (keys, still_tied)
    own = sharding.local(made, devices)
    sizes = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    assert [getattr(own, name) * devices for name in sizes] == [getattr(made, name) for name in sizes]
    assert dataclasses.replace(own, **{name: getattr(made, name) for name in sizes}) == made


def test_how_many_devices_hold_a_tree(monkeypatch):
    for mesh, count in ((None, 1), (SimpleNamespace(size=4), 4)):
        monkeypatch.setattr(meshes, "mesh_under", lambda tree, mesh=mesh: mesh)
        assert sharding.devices_under("tree") == count


def test_a_mesh_that_others_made_is_none_of_ours():
    one = jax.devices()[:1]
    for name, ours in ((meshes.AXIS, True), ("data", False)):
        mesh = jax.make_mesh((1,), (name,), devices=one)
        array = jax.device_put(np.zeros(2, np.float32), jax.NamedSharding(mesh, jax.P()))
        assert meshes.mesh_under([array]) == (mesh if ours else None)
    assert meshes.mesh_under([np.zeros(2)]) is None


def test_gate_and_up_rows_of_a_device_follow_one_another():
    gate_up = jnp.arange(12).reshape(2, 6, 1)
    made = _device_by_device(gate_up, 3)
    assert made.shape == (3, 2, 2, 1)
    assert made.reshape(3, -1).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


@pytest.mark.parametrize(
    ("wanted", "chosen"), [(2, [0, 2]), (4, [0, 1, 2, 3]), (3, "processes"), (8, "needs so many devices")]
)
def test_each_process_gives_as_many_of_its_devices_the_first_ones(monkeypatch, wanted, chosen):
    devices = [SimpleNamespace(id=n, process_index=n // 2, platform="gpu") for n in range(4)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(meshes, "Mesh", lambda array, names: ([device.id for device in array], names))
    if isinstance(chosen, str):
        with pytest.raises(JllamaError, match=chosen) as caught:
            meshes.mesh_of(wanted)
        assert "CPU" not in str(caught.value)
    else:
        assert meshes.mesh_of(wanted) == (chosen, (AXIS,))


def test_what_a_device_has_of_parameters(tiny_config, tiny_params):
    params = dataclasses.replace(tiny_params, lm_head=None)
    own = sharding.local_shapes(params, 2)
    layer = own.layers[0]
    found = {
        "qkv": layer.attention.qkv_proj.shape,
        "o": layer.attention.o_proj.shape,
        "gate_up": layer.mlp.gate_up_proj.shape,
        "down": layer.mlp.down_proj.shape,
        "norm": own.norm.shape,
        "table": own.embed_tokens.shape,
    }
    D, F, V = tiny_config.hidden_size, tiny_config.intermediate_size, tiny_config.vocab_size
    assert found == {
        "qkv": (1, 4, 8, D),
        "o": (D, 16),
        "gate_up": (2, F // 2, D),
        "down": (D, F // 2),
        "norm": (D,),
        "table": (V, D),
    }
    assert own.norm.dtype == jnp.float32


def test_parts_go_in_float32_unless_a_kernel_says_otherwise():
    assert Shards(count=2).parts_dtype(jnp.bfloat16, 10**9) == jnp.float32


def test_one_device_runs_programs_as_they_are():
    def run(x):
        return x + 1

    assert sharding.everywhere(run, None, sharding.WHOLE) is run
    assert sharding.devices_under({"a": np.zeros(1)}) == 1
