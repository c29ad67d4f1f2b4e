"""Kernels that span GPUs, emulated: each GPU is a process, which shares the mailboxes with the others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jllama import kernels, sharding
from jllama.kernels.gpu import decode, exchange, peers
from jllama.kernels.target import target_of
from jllama.layers.cache import KVCache
from jllama.layers.qtensor import QTensor
from jllama.layers.shards import AXIS
from jllama.sharding.cuts import cut_axis, local, map_leaves
from tests.kernels.test_kernels_gpu import agree, distance, filled, rope_of, shape, weights, wide
from tests.kernels.test_kernels_gpu import four_blocks as four_blocks
from tests.support import emulation

SMALL = shape(256, 704, 2, 8, 2, 32, vocab=132)
BIASES = dict(attention_bias=True, attention_out_bias=True)
BIASED = shape(256, 512, 1, 8, 4, 64, vocab=136, norm_placement="both", **BIASES)
CASES = [
    (SMALL, "bf16", 2, 160, (150,)),
    (BIASED, "int8", 4, 40, (33,)),
]
BOXES = dict(MAX_ROW=512, MAX_VOCABULARY=256, MAX_SUMS=4096)  # small ones


@pytest.fixture
def small_boxes(four_blocks, monkeypatch):
    for name, size in BOXES.items():
        monkeypatch.setattr(peers, name, size)
    monkeypatch.setattr(exchange, "MOST_BLOCKS", 4)


def part(params, gpus: int, rank: int):
    """What one of several GPUs holds of a model's parameters."""

    def cut(leaf, axis):
        return jnp.split(leaf, gpus, axis)[rank]

    def own(path, leaf):
        axis = cut_axis(path, leaf, gpus)
        if axis is None:
            return leaf
        if not isinstance(leaf, QTensor):
            return cut(leaf, axis)
        *rows, C = leaf.shape
        if axis == len(rows):
            pieces = jax.tree.map(lambda a: a if a.shape[1] == 1 else cut(a, 1), leaf)
        else:
            pieces = jax.tree.map(lambda a: cut(a.reshape(*rows, -1), axis).reshape(-1, a.shape[1]), leaf)
        shape = [n // gpus if i == axis else n for i, n in enumerate((*rows, C))]
        return dataclasses.replace(pieces, shape=tuple(shape))

    return map_leaves(own, params)


class Fleet:
    """The decode kernel on several GPUs, whose mailboxes stay from launch to launch."""

    def __init__(self, directory, config, params, gpus, max_len, dtype="bfloat16"):
        self.config, self.gpus, self.max_len = local(config, gpus), gpus, max_len
        self.parts = [part(params, gpus, rank) for rank in range(gpus)]
        self.boxes = [np.zeros(peers.places(gpus)["BOX_END"], np.uint64) for _ in range(gpus)]
        self.addresses = np.zeros(gpus, np.int64)
        cache = filled(self.config, max_len, 0, dtype)
        operands, slots = self._operands(0, cache)
        assert decode.decode_refusal(self.config, self.parts[0], cache, operands[0], self._peers(0)) is None
        slots += [decode.LOGITS_SLOT] + [-1] * 2 * config.num_hidden_layers
        plan = decode.make_plan(self.config, self.parts[0], gpus)
        self.kernel = emulation.Emulated(
            directory, decode.source(plan, slots), "jllama_decode", len(slots),
            grid=plan.blocks, threads=plan.threads, shared=plan.shared, gpus=gpus,
        )  # fmt: skip

    def _peers(self, rank: int):
        return _At(count=self.gpus, addresses=jnp.zeros((self.gpus, 2), jnp.int32), where=rank)

    def _operands(self, rank: int, cache: KVCache):
        tokens, rope = jnp.array([[7]], jnp.int32), rope_of(self.config, cache)
        return decode._operands(self.config, self.parts[rank], tokens, cache, rope, self._peers(rank))

    def __call__(self, cache: KVCache):
        """The logits of each GPU and the new cache, from a whole one."""
        given, logits = [], []
        for rank in range(self.gpus):
            own = dataclasses.replace(cache, **{
                name: tuple(jnp.split(leaf, self.gpus, 1)[rank] for leaf in getattr(cache, name))
                for name in ("keys", "values")
            })  # fmt: skip
            operands, slots = self._operands(rank, own)
            arrays = [np.array(a) for a in operands]
            arrays[slots.index(decode.PEERS_SLOT)] = self.addresses
            logits.append(np.full((1, 1, self.config.vocab_size), np.nan, np.float32))
            given.append([*arrays, logits[-1], *[None] * 2 * len(cache.keys)])
        self.kernel([a for one in given for a in one], [(self.addresses, self.boxes)])
        count = len(cache.keys)
        ends = [one[: -1 - 2 * count][-2 * count :] for one in given]
        leaves = [np.concatenate(parts, axis=1) for parts in zip(*ends, strict=True)]
        return logits, dataclasses.replace(cache, keys=tuple(leaves[:count]), values=tuple(leaves[count:]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _At(exchange.Peers):
    """A GPU of an emulated fleet."""

    where: int = dataclasses.field(metadata=dict(static=True))

    def rank(self):
        return jnp.array([self.where], jnp.int32)


@pytest.mark.parametrize(("config", "stored", "gpus", "max_len", "lengths"), CASES)
@pytest.mark.usefixtures("small_boxes")
def test_decode_emulated_on_several_gpus(tmp_path, config, stored, gpus, max_len, lengths):
    params = weights(config, stored)
    fleet = Fleet(tmp_path, config, params, gpus, max_len)
    epochs = []
    for length in lengths:
        cache = filled(config, max_len, length)
        first, new = fleet(cache)
        again, _ = fleet(cache)  # launches follow one another: no word of the last one is taken for a new one
        for logits in (*first, *again):
            np.testing.assert_array_equal(logits, first[0])
        agree(config, params, 7, cache, first[0], new)
        epochs += [box[peers.places(gpus)["BOX_EPOCH"]] for box in fleet.boxes]
    turns = config.num_hidden_layers + 1
    assert epochs == [2 * (i // gpus + 1) * turns for i in range(gpus * len(lengths))]


ON_GPUS = [
    (shape(256, 704, 2, 8, 2, 32, vocab=512), "bf16", 1),
    (shape(2048, 5632, 2, 32, 4, 64, vocab=32000), "int4", 1),
    (shape(2048, 5632, 2, 32, 4, 64, vocab=32000), "int8", 4),
    (shape(4096, 14336, 1, 32, 8, 128, vocab=1024), "bf16", 32),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("config", "stored", "rows"), ON_GPUS)
def test_two_gpus_are_as_near_as_one(config, stored, rows):
    if len(jax.devices()) < 2:
        pytest.skip("one GPU")
    params = weights(config, stored)
    split = kernels.joined(sharding.split_params(config, params, sharding.mesh_of(2)))
    assert split.peers is not None
    tokens = np.random.default_rng(1).integers(config.vocab_size, size=(rows, 20), dtype=np.int32)
    alone, both = logits_of(config, params, tokens), logits_of(sharding.widened(config, 2), split, tokens)
    exact = logits_of(config, wide(params), tokens)
    np.testing.assert_array_equal(both[:, 0], both[:, 1])
    np.testing.assert_array_equal(logits_of(sharding.widened(config, 2), split, tokens), both)
    for step in range(tokens.shape[1]):
        near = distance(alone[step], exact[step])
        assert distance(both[step, 0], exact[step, 0]) < 1.5 * near + 1e-3


def logits_of(config, params, tokens):
    """Of each step and device, `[T, t, B, V]`, of texts `[B, T]` fed token by token."""
    target = target_of(params)
    room = dict(batch=len(tokens), max_len=64, dtype=str(params.norm.dtype))
    cache = sharding.beside(params, sharding.empty_cache(config, params, **room))

    def run(params, cache, token):
        n_valid = jnp.ones((len(tokens),), jnp.int32)
        logits, cache = kernels.forward(config, params, token, cache, n_valid=n_valid, target=target)
        return target.whole(logits, config.vocab_size)[None, :, 0], cache

    step = jax.jit(sharding.everywhere(run, target.mesh, (PartitionSpec(AXIS), sharding.CACHE)))
    found = []
    for at in range(tokens.shape[1]):
        logits, cache = step(params, cache, tokens[:, at : at + 1])
        found.append(np.asarray(logits))
    return np.array(found)
