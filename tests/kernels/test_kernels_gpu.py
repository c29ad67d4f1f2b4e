"""The CUDA kernels against the plain-JAX model: on a CPU through an emulation, on a GPU with `-m gpu`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import model
from jllama.checkpoint.layout import layout
from jllama.config import ModelConfig
from jllama.kernels.gpu import decode, launch, plan
from jllama.kernels.gpu.family import decode_frequencies
from jllama.layers.cache import KVCache
from jllama.layers.kind import LayerKind
from jllama.layers.qtensor import QTensor, dequantize, recorded
from jllama.layers.quantization import Scheme, quantize
from jllama.layers.rope import Rope
from tests.support import emulation
from tests.support.block_files import random_weight
from tests.support.placed import gathered, scattered


def shape(hidden, ffn, layers, heads, kv_heads, head_dim, vocab=130, **more) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        **more,
    )


TOKENS = (7, 11, 42)  # of texts on a GPU
SMALL = shape(256, 704, 1, 8, 2, 32)
ODD = shape(288, 352, 1, 4, 2, 32)  # rows that end within a unit of 64
TIED = shape(512, 1408, 1, 4, 4, 128, tie_word_embeddings=True)
SLIDING = shape(256, 320, 1, 4, 2, 64, sliding_window=50)
NARROW = shape(576, 1536, 1, 9, 3, 64, tie_word_embeddings=True)  # rows of scales of 36 bytes
TINYLLAMA = shape(2048, 5632, 2, 32, 4, 64, vocab=32000)
LLAMA_8B = shape(4096, 14336, 1, 32, 8, 128, vocab=1026)
MANY_HEADS = shape(256, 512, 1, 16, 1, 32)
LONG = shape(256, 320, 1, 4, 1, 128)  # four parts, which every block joins
HALVES = shape(1024, 1024, 1, 8, 4, 128)  # rows of two slots: four groups of warps
BLOCKS = shape(512, 2816, 2, 8, 2, 64)  # rows of whole blocks of 256, some in more than one slot
ROW8, BLOCKS8, BLOCKS4 = Scheme(bits=8, group=None), Scheme(bits=8, group=32), Scheme(bits=4, group=32)
STORED = {
    "bf16": None,
    "int8": (ROW8, ROW8),
    "q8": (BLOCKS8, BLOCKS8),
    "int4": (BLOCKS4, ROW8),
    "int4, by 64": (Scheme(bits=4, group=64), ROW8),
    "q4": (BLOCKS4,) * 2,
}
# GGUF's types of q·k·v, o, gate·up, down and the tables in a file, by layers in turn. A leaf may have two.
FILES = {
    "q4_k_m": (("Q4_K Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"), ("Q4_K", "Q4_K", "Q4_K", "Q4_K", "Q6_K")),
    "q5_k_m": (("Q5_K", "Q5_K", "Q5_K", "Q5_K", "Q4_K"), ("Q5_K Q6_K", "Q5_K", "Q5_K", "Q6_K", "Q4_K")),
    "q5_0": (("Q5_0", "Q5_1", "Q4_1", "IQ4_NL", "Q5_1"),),
    "mixed": (("Q6_K Q8_0", "Q4_K", "Q5_0", "Q4_0", "Q8_0"), ("Q4_K", "bf16", "Q4_K", "Q4_0 Q4_1", "Q8_0")),
}


GROWING = Rope(llama_4_scaling_beta=0.3, original_max_position_embeddings=2)
KINDS = dict(layer_kinds=(LayerKind(4, Rope()), LayerKind(None, GROWING)), final_logit_softcapping=3.0)


def begun(config: ModelConfig) -> KVCache:
    """Of three texts, which hold 6, 0 and 3 tokens."""
    cache = KVCache.empty(config, batch=3, max_len=16, dtype="bfloat16")
    random = np.random.default_rng(1)
    keys, values = (
        tuple(jnp.asarray(random.normal(size=leaf.shape), leaf.dtype) for leaf in leaves)
        for leaves in (cache.keys, cache.values)
    )
    return dataclasses.replace(cache, keys=keys, values=values, length=jnp.array([6, 0, 3], jnp.int32))


def weights(config: ModelConfig, stored: str, dtype="bfloat16"):
    """Random parameters; `q8` and `q4` as GGUF's Q8_0 and Q4_0 have them: float16 scales, no offsets."""
    params = drawn(config, dtype)
    if stored in FILES:
        return in_blocks(params, FILES[stored])
    return params if STORED[stored] is None else quantised(params, stored)


@functools.lru_cache(maxsize=4)
def drawn(config: ModelConfig, dtype):
    """As `random_params` would, but by NumPy: a program for each shape would take longer."""
    generator = np.random.default_rng(2)

    def leaf(leaf):
        first = leaf.parts[0]
        scale = 0.1 if first.is_norm else 0.02 if first.is_bias else leaf.shape[-1] ** -0.5
        values = generator.standard_normal(leaf.shape, np.float32) * scale
        return jnp.asarray((values + (1.0 - config.norm_offset) * first.is_norm).astype(dtype))

    return jax.tree.map(leaf, layout(config))


@functools.partial(jax.jit, static_argnums=1)
def quantised(params, stored: str):
    block, head = STORED[stored]

    def leaf(path, w):
        if w.ndim < 2 or path[-1].name.endswith("bias"):
            return w
        q = quantize(w, head if path[0].name in ("embed_tokens", "lm_head") else block)
        if stored[0] != "q":
            return q
        return without_offsets(dataclasses.replace(q, scales=q.scales.astype("float16")))

    return jax.tree_util.tree_map_with_path(leaf, params)


def in_blocks(params, layers):
    """The same shapes with random weights in GGUF's types, as `FILES` has them."""
    names = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

    def leaf(path, w):
        if w.ndim < 2 or path[-1].name.endswith("bias"):
            return w
        inside = path[0].name == "layers"
        kinds = layers[path[1].idx % len(layers) if inside else 0]
        kind = kinds[names.index(path[-1].name) if inside else 4]
        seed = len(jax.tree_util.keystr(path)) + 97 * (path[1].idx if inside else 0)
        return w if kind == "bf16" else recorded(random_weight(seed, kind.split(), w.shape))

    return jax.tree_util.tree_map_with_path(leaf, params)


def without_offsets(q: QTensor) -> QTensor:
    return dataclasses.replace(q, offsets=None)


def filled(config: ModelConfig, max_len: int, length: int, dtype="bfloat16") -> KVCache:
    """A cache of noise, the part beyond `length` not a number: nothing may read it."""
    return noise(config, max_len, np.array([length], np.int32), dtype)


def noise(config: ModelConfig, max_len: int, held: np.ndarray, dtype="bfloat16") -> KVCache:
    """The same for rows that hold so many tokens."""
    generator, counted = np.random.default_rng(7), 2 * config.num_hidden_layers
    size = (len(held), config.num_key_value_heads, max_len, config.head_dim)
    live = (np.arange(max_len) < held[:, None])[:, None, :, None]
    drawn = (generator.standard_normal(size, np.float32) for _ in range(counted))
    leaves = [jnp.asarray(np.where(live, leaf, np.nan).astype(dtype)) for leaf in drawn]
    return KVCache(
        keys=tuple(leaves[: counted // 2]), values=tuple(leaves[counted // 2 :]), length=jnp.asarray(held)
    )


@jax.jit
def wide(tree):
    """Everything in float32."""

    def widen(leaf):
        if isinstance(leaf, QTensor):
            return dequantize(leaf)
        return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(widen, tree, is_leaf=lambda leaf: isinstance(leaf, QTensor))


@jax.jit
def clean(cache: KVCache) -> KVCache:
    """Without the poison: the plain model multiplies it by zero."""
    return dataclasses.replace(
        cache, keys=tuple(map(jnp.nan_to_num, cache.keys)), values=tuple(map(jnp.nan_to_num, cache.values))
    )


def cleaned(cache: KVCache, dtype=None) -> KVCache:
    """The same in a dtype, by NumPy: two programs less."""

    def leaf(a):
        return jnp.asarray(np.nan_to_num(np.asarray(a, np.float32)).astype(dtype or a.dtype))

    keys, values = (tuple(map(leaf, leaves)) for leaves in (cache.keys, cache.values))
    return dataclasses.replace(cache, keys=keys, values=values)


def distance(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


plain_step = jax.jit(model.forward, static_argnums=0)


def jitted_step(config):
    """`step(params, tokens, cache)`: the kernel's, compiled."""
    return jax.jit(lambda *given: decode.decode_step(config, *given, rope_of(config, given[2])))


@functools.partial(jax.jit, static_argnums=0)
def rope_of(config: ModelConfig, cache: KVCache):
    return decode_frequencies(config, cache.length + 1)


def agree(config, params, token, cache, logits, new) -> None:
    """As near to the float32 model as the plain model is, the cache as it was but for the new token."""
    pairs = errors(config, params, token, cache, logits, new)
    if int(cache.length[0]) == cache.max_len:
        assert np.isnan(logits).all()
    else:
        near([pairs])


def near(found: list[list[tuple[float, float]]]) -> None:
    """Of logits and of each layer's keys and values, the errors of several tokens weighed together.

    Single tokens' errors scatter, the plain model's too, and another card rounds that one otherwise.
    """
    ours, plain = np.sqrt(np.mean(np.square(found), axis=0)).T
    assert (ours < 1.5 * plain + 1e-3).all(), (ours, plain)


def steps_agree(step, config, params, cache) -> None:
    """`step(params, tokens, cache)` gives the same bits each time, as near to float32 as the plain model."""
    found = []
    for token in TOKENS:
        tokens = jnp.array([[token]], jnp.int32)
        logits, new = step(params, tokens, cache)
        for _ in range(3):
            again, _ = step(params, tokens, cache)
            np.testing.assert_array_equal(again, logits)
        found.append(errors(config, params, token, cache, logits, new))
        full = int(cache.length[0]) == cache.max_len
        assert np.isnan(logits).all() == full
    if not full:
        near(found)


def errors(config, params, token, cache, logits, new) -> list[tuple[float, float]]:
    """How far kernel and plain model are from the float32 model: logits, then the new keys and values.

    Nothing else in the cache may have changed.
    """
    tokens, length = jnp.array([[token]], jnp.int32), int(cache.length[0])
    twin, twin_cache = plain_step(config, params, tokens, cleaned(cache))
    with jax.default_matmul_precision("highest"):
        exact, exact_cache = plain_step(config, wide(params), tokens, cleaned(cache, np.float32))
    found = [(distance(logits, exact), distance(twin, exact))]
    others = np.arange(cache.max_len) != length
    caches = (new, cache, twin_cache, exact_cache)
    for leaves in zip(*(c.keys + c.values for c in caches), strict=True):
        after, before, plain, true = (np.asarray(leaf, np.float32) for leaf in leaves)
        np.testing.assert_array_equal(after[:, :, others], before[:, :, others])
        if length < cache.max_len:
            here = [leaf[:, :, length] for leaf in (after, plain, true)]
            found.append((distance(here[0], here[2]), distance(here[1], here[2])))
    return found


@pytest.fixture
def four_blocks(monkeypatch):
    if emulation.COMPILER is None:
        pytest.skip("no g++")
    monkeypatch.setattr(launch, "refusal", lambda: None)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 4)
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)


CASES = [
    (SMALL, "bf16", "bfloat16", 300, (0, 128, 299, 300)),
    (SMALL, "int4", "bfloat16", 40, (37,)),
    (SMALL, "int8", "float16", 40, (37,)),
    (ODD, "int8", "bfloat16", 40, (37,)),
    (SLIDING, "q4", "bfloat16", 200, (170,)),
    (MANY_HEADS, "q8", "bfloat16", 320, (300,)),  # three parts, which every block joins
    (NARROW, "q4", "bfloat16", 40, (33,)),
    (HALVES, "bf16", "bfloat16", 80, (64,)),
    (BLOCKS, "q4_k_m", "bfloat16", 40, (37,)),
    (BLOCKS, "q5_k_m", "float16", 40, (37,)),
    (BLOCKS, "q5_0", "bfloat16", 40, (0,)),
    (BLOCKS, "mixed", "bfloat16", 40, (37,)),
]


@pytest.mark.parametrize(("config", "stored", "dtype", "max_len", "lengths"), CASES)
def test_decode_emulated(four_blocks, tmp_path, config, stored, dtype, max_len, lengths):
    params, tokens = weights(config, stored, dtype), jnp.array([[7]], jnp.int32)
    cache = filled(config, max_len, 0, dtype)
    assert decode.decode_refusal(config, params, cache, tokens) is None
    emulate(tmp_path, config, params, max_len, lengths, dtype)


def test_decode_of_large_layers_emulated(four_blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SMALL_LAYER", 0)
    emulate(tmp_path, LONG, weights(LONG, "bf16"), 300, (191, 250))


def test_decode_of_many_parts_emulated(four_blocks, tmp_path, monkeypatch):
    """One part of two turns, then more parts than every block joins."""
    monkeypatch.setattr(plan, "JOINED_PARTS", 1)
    emulate(tmp_path, MANY_HEADS, weights(MANY_HEADS, "q8"), 320, (180, 300))


def test_decode_on_a_fast_memory_emulated(four_blocks, tmp_path, monkeypatch):
    """Some of the warps that stream only join in at the head, and a slot is another group's in each turn."""
    monkeypatch.setattr(launch, "memory_rate", lambda: 4.9e12)
    monkeypatch.setattr(launch, "shared_memory", lambda: 150000)
    params = weights(HALVES, "bf16")
    cut = plan.make_plan(HALVES, params)
    assert (cut.producers, cut.team, cut.slots % cut.groups) == (4, 2, 3)
    emulate(tmp_path, HALVES, params, 140, (130,))


def emulate(tmp_path, config, params, max_len, lengths, dtype="bfloat16") -> None:
    """The kernel for `params` behind texts of these lengths, each twice."""
    tokens, cache = jnp.array([[7]], jnp.int32), filled(config, max_len, 0, dtype)
    _, slots = decode._operands(config, params, tokens, cache, rope_of(config, cache))
    slots += [decode.LOGITS_SLOT] + [-1] * 2 * config.num_hidden_layers
    cut = decode.make_plan(config, params)
    kernel = emulation.Emulated(
        tmp_path,
        decode.source(cut, slots),
        "jllama_decode",
        len(slots),
        grid=cut.blocks,
        threads=cut.threads,
        shared=cut.shared,
    )
    for length in lengths:
        cache = filled(config, max_len, length, dtype)
        apart = scattered(cache)
        operands, _ = decode._operands(config, params, tokens, apart, rope_of(config, cache))
        arrays = [np.array(a) for a in operands]
        results = []
        for _ in range(2):
            logits = np.full((1, 1, config.vocab_size), np.nan, np.float32)
            kernel([*arrays, logits, *[None] * 2 * config.num_hidden_layers])
            results.append(logits)
        np.testing.assert_array_equal(*results)
        count = config.num_hidden_layers
        new = dataclasses.replace(
            apart, keys=tuple(arrays[-2 * count : -count]), values=tuple(arrays[-count:])
        )
        agree(config, params, 7, cache, results[0], gathered(new, apart))


ON_GPU = [
    (SMALL, "bf16", "bfloat16", 300, (0, 1, 130, 299, 300)),
    (SMALL, "int8", "float16", 100, (37,)),
    (SLIDING, "bf16", "bfloat16", 200, (20, 50, 170)),
    (NARROW, "q4", "bfloat16", 40, (33,)),
    (TIED, "bf16", "bfloat16", 140, (133,)),
    (MANY_HEADS, "bf16", "float16", 200, (180,)),
    (LONG, "bf16", "bfloat16", 600, (64, 191, 600)),
    (HALVES, "bf16", "bfloat16", 600, (128, 590)),
    *((TINYLLAMA, stored, "bfloat16", 2048, (0, 100, 1900, 2048)) for stored in (*STORED, *FILES)),
    (LLAMA_8B, "bf16", "bfloat16", 300, (290,)),
    (LLAMA_8B, "int4", "bfloat16", 300, (290,)),
    (LLAMA_8B, "q4_k_m", "bfloat16", 300, (290,)),
    *((BLOCKS, stored, "float16", 40, (37,)) for stored in FILES),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("config", "stored", "dtype", "max_len", "lengths"), ON_GPU)
def test_decode(config, stored, dtype, max_len, lengths):
    params, tokens = weights(config, stored, dtype), jnp.array([[7]], jnp.int32)
    cache = filled(config, max_len, 0, dtype)
    assert decode.decode_refusal(config, params, cache, tokens) is None
    step = jitted_step(config)
    for length in lengths:
        cache = filled(config, max_len, length, dtype)
        steps_agree(step, config, params, cache)
        logits, new = step(params, tokens, cache)
        apart = scattered(cache)
        again, moved = step(params, tokens, apart)
        np.testing.assert_array_equal(again, logits)
        for ours, same in zip(jax.tree.leaves(gathered(moved, apart)), jax.tree.leaves(new), strict=True):
            np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(same, np.float32))


@pytest.mark.gpu
def test_a_donated_cache_is_updated_in_place_through_many_steps():
    """200 steps across the borders of the attention's splits, against the plain model's cache."""
    config, params = TINYLLAMA, weights(TINYLLAMA, "bf16")
    tokens = jax.random.randint(jax.random.key(1), (200,), 0, config.vocab_size, jnp.int32)

    @functools.partial(jax.jit, donate_argnums=(1,), static_argnums=(2,))
    def run(params, cache, kernel):
        def step(i, state):
            cache, _ = state
            token = jax.lax.dynamic_slice(tokens, (i,), (1,))[None]
            if kernel:
                logits, cache = decode.decode_step(config, params, token, cache, rope_of(config, cache))
                return cache.advance(jnp.ones((1,), jnp.int32)), logits
            logits, cache = model.forward(config, params, token, cache)
            return cache, logits

        return jax.lax.fori_loop(0, 200, step, (cache, jnp.zeros((1, 1, config.vocab_size))))

    compiled = run.lower(params, clean(filled(config, 512, 250)), True).compile()
    caches = "bf16[1,4,512,64]{3,2,1,0} copy("
    assert caches not in compiled.as_text()
    cache, logits = compiled(params, clean(filled(config, 512, 250)))
    plain_cache, plain_logits = run(params, clean(filled(config, 512, 250)), False)
    assert distance(logits, plain_logits) < 0.05
    for ours, plain in zip(cache.keys, plain_cache.keys, strict=True):
        assert distance(ours, plain) < 0.02
