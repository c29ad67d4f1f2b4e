"""The persistent CUDA kernel with several texts in one launch: emulated, or on a GPU with `-m gpu`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels.gpu import decode, launch
from jllama.kernels.gpu.family import decode_frequencies
from jllama.layers.cache import KVCache
from tests.kernels.test_kernels_gpu import (
    BLOCKS,
    HALVES,
    LLAMA_8B,
    MANY_HEADS,
    SMALL,
    TINYLLAMA,
    errors,
    near,
    noise,
    shape,
)
from tests.kernels.test_kernels_gpu import four_blocks as four_blocks
from tests.kernels.test_kernels_gpu_families import FAMILIES, family_weights
from tests.support import emulation
from tests.support.placed import gathered, scattered

ODD = shape(288, 352, 1, 9, 1, 32)  # rows of half a unit more
IDLE = -1  # instead of a length: a row that does not run


def texts(config, max_len, lengths):
    """A cache of noise, not a number beyond each length; tokens; which rows run."""
    tokens = np.array([[7 + 3 * row] for row in range(len(lengths))], np.int32)
    cache = noise(config, max_len, np.maximum(np.array(lengths, np.int32), 0))
    return cache, jnp.asarray(tokens), jnp.asarray([length != IDLE for length in lengths], jnp.int32)


def row_of(cache: KVCache, row: int) -> KVCache:
    def own(leaf):
        return jnp.asarray(np.asarray(leaf)[row : row + 1])

    keys, values = (tuple(map(own, leaves)) for leaves in (cache.keys, cache.values))
    return dataclasses.replace(cache, keys=keys, values=values, length=own(cache.length), rows=None)


@functools.partial(jax.jit, static_argnums=(0, 4))
def filled_up(config, cache, tokens, runs, count):
    """For so many texts, with what they are rotated by."""
    return decode._filled_up(tokens, cache, decode_frequencies(config, cache.length + 1), runs, count)


@pytest.fixture
def eight_blocks(four_blocks, monkeypatch):
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 8)


def all_agree(config, params, tokens, cache, lengths, logits, new) -> None:
    """The rows that run are as near to the float32 model as the plain one's; no other was touched."""
    found = []
    for row, length in enumerate(lengths):
        ours = row_of(new, row)
        if length == IDLE:
            before = row_of(cache, row)
            for a, b in zip(ours.keys + ours.values, before.keys + before.values, strict=True):
                np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
        else:
            given = int(tokens[row, 0]), row_of(cache, row), logits[row : row + 1], ours
            found.append(errors(config, params, *given))
            assert np.isnan(given[2]).all() == (length == cache.max_len)
    near([pairs for pairs in found if len(pairs) > 1])


class Emulated:
    """The kernel for so many rows of a model, run on a CPU."""

    def __init__(self, directory, config, params, rows, max_len):
        self.config, self.params = config, params
        cache, tokens, runs = texts(config, max_len, (0,) * rows)
        assert decode.decode_refusal(config, params, cache, tokens) is None
        self.texts = decode.texts_of(rows)
        cut = decode.make_plan(config, params, 1, self.texts)
        _, slots = self._operands(cache, tokens, runs)
        self._rest = 2 * config.num_hidden_layers
        slots += [decode.LOGITS_SLOT] + [-1] * self._rest
        how = dict(grid=cut.blocks, threads=cut.threads, shared=cut.shared)
        source = decode.source(cut, slots)
        self._kernel = emulation.Emulated(directory, source, "jllama_decode", len(slots), **how)

    def _operands(self, cache, tokens, runs):
        given = filled_up(self.config, cache, tokens, runs, self.texts)
        return decode._operands(self.config, self.params, *given)

    def __call__(self, cache, tokens, runs):
        """float32 logits `[texts, 1, V]` and the cache with the tokens' keys and values."""
        apart = scattered(cache)
        operands, _ = self._operands(apart, tokens, runs)
        arrays = [np.array(operand) for operand in operands]
        logits = np.full((self.texts, 1, self.config.vocab_size), np.nan, np.float32)
        self._kernel([*arrays, logits, *[None] * self._rest])
        count = self._rest // 2
        keys, values = tuple(arrays[-2 * count : -count]), tuple(arrays[-count:])
        return logits, gathered(dataclasses.replace(apart, keys=keys, values=values), apart)


CASES = {
    "four": (SMALL, "bf16", (5, IDLE, 320, 130)),
    "two, slots of halves": (HALVES, "bf16", (64, 300)),
    "eight": (MANY_HEADS, "bf16", (300, 0, IDLE, 180, 7, 320)),
    "gemma3": (FAMILIES["gemma3"][0], "bf16", (61, 19, IDLE)),
    "qwen2": (FAMILIES["qwen2"][0], "bf16", (61, 19)),
    "phi3": (FAMILIES["phi3"][0], "bf16", (20, 61)),  # the rotation depends on the length
    "int8 four": (SMALL, "int8", (5, 200, 0, 37)),
    "int8 eight, half a unit left": (ODD, "int8", (5, 37, IDLE, 200, 0, 320)),
    "int4 two": (SMALL, "int4", (5, 200)),
    "int4 eight": (MANY_HEADS, "int4", (300, 0, IDLE, 180, 7, 320)),
    "int4 four, by 64": (SMALL, "int4, by 64", (5, 200, 0)),
    "q4 four": (SMALL, "q4", (5, 200, 0)),
    "q8 eight": (MANY_HEADS, "q8", (5, 200, 0, 37, 319)),
    "gemma3 int4": (FAMILIES["gemma3"][0], "int4", (61, 19, IDLE)),
    "exaone4 q4": (FAMILIES["exaone4"][0], "q4", (61, 19, 3)),  # nothing normalised in front of products
    "q4_k_m": (BLOCKS, "q4_k_m", (200, 37)),
}


@pytest.mark.parametrize("name", CASES)
def test_several_texts_emulated(eight_blocks, tmp_path, name):
    config, stored, lengths = CASES[name]
    params = family_weights(config, stored)
    run = Emulated(tmp_path, config, params, len(lengths), max_len=320)
    cache, tokens, runs = texts(config, 320, lengths)
    logits, new = run(cache, tokens, runs)
    all_agree(config, params, tokens, cache, lengths, logits, new)
    # A row's bits do not depend on its neighbours.
    others = tuple(length if row == 0 else IDLE for row, length in enumerate(lengths))
    alone, _ = run(*texts(config, 320, others))
    np.testing.assert_array_equal(alone[0], logits[0])


ON_GPU = {
    **CASES,
    **{
        f"tinyllama {stored}": (TINYLLAMA, stored, (300, 3, 320, 130))
        for stored in ("bf16", "int8", "int4", "q4")
    },
    **{
        f"tinyllama {stored}, eight": (TINYLLAMA, stored, (300, 3, 320, 130, 17, IDLE, 250))
        for stored in ("bf16", "int8", "int4", "q4", "q8")
    },
    "8b": (LLAMA_8B, "bf16", (290, 17)),
    **{name: (config, "bf16", (61, 19, IDLE, 0)) for name, (config, _) in FAMILIES.items()},
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_several_texts(name):
    config, stored, lengths = ON_GPU[name]
    params = family_weights(config, stored)
    cache, tokens, runs = texts(config, 320, lengths)
    assert decode.decode_refusal(config, params, cache, tokens) is None
    step = jax.jit(functools.partial(decode.decode_step, config))
    apart, angles = scattered(cache), decode_frequencies(config, cache.length + 1)
    logits, new = step(params, tokens, apart, angles, None, runs)
    for _ in range(3):
        again, _ = step(params, tokens, apart, angles, None, runs)
        np.testing.assert_array_equal(again, logits)
    all_agree(config, params, tokens, cache, lengths, logits, gathered(new, apart))
