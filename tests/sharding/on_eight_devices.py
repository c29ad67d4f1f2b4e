"""Models on 2, 4 and 8 devices beside the same models on one. Run by `test_sharding.py`, in a process that
has eight.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels, sharding
from jllama.checkpoint.random_params import random_params
from jllama.checkpoint.sizes import parameter_count
from jllama.config import ModelConfig
from jllama.engine import slot_programs
from jllama.engine.decoder import read_prompt
from jllama.engine.slots import Slots
from jllama.engine.state import Way, largest_of_all
from jllama.kernels.target import target_of
from jllama.layers.quantization import SCHEMES, quantize
from jllama.layers.shards import AXIS, Shards
from jllama.loading import Model
from jllama.machine.devices import describe_device
from jllama.model import forward
from tests.support.decoding import started, texts
from tests.support.family_models import BASE, FAMILY_MODELS

SMALL = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)
ONE = dict(num_hidden_layers=1)
PROMPTS = [3, 1, 5, 9, 2, 6], [7, 7, 1]


def changed(**fields):
    return dataclasses.replace(SMALL, **fields)


def split(config, params, devices):
    """The configuration and the parameters of a model on so many devices."""
    sharding.check(config, devices)
    mesh = sharding.mesh_of(devices)
    return sharding.widened(config, devices), sharding.split_params(config, params, mesh)


def all_logits(config, params):
    """Logits `[T, V]` of a prompt: of a split model, what its devices gave."""
    target, cache = (
        target_of(params),
        sharding.empty_cache(config, params, batch=1, max_len=32, dtype="float32"),
    )

    def run(params, cache, tokens):
        given = dict(n_valid=jnp.array([tokens.shape[1]], jnp.int32), target=target, last_only=False)
        logits, cache = kernels.forward(config, params, tokens, cache, **given)
        return target.whole(logits, config.vocab_size)[0]

    tokens = np.array([PROMPTS[0]], np.int32)
    return np.asarray(jax.jit(sharding.everywhere(run, target.mesh, sharding.WHOLE))(params, cache, tokens))


def assert_same(config, params, devices):
    """Logits of a prompt within 1e-5 of their range; the same greedy tokens."""
    wide, parts = assert_same_logits(config, params, devices)
    assert texts(slots(wide, parts), PROMPTS, limit=9) == texts(slots(config, params), PROMPTS, limit=9)


def assert_same_logits(config, params, devices):
    """The split model: a program each, where texts need several."""
    wide, parts = split(config, params, devices)
    one, several = all_logits(config, params), all_logits(wide, parts)
    assert np.abs(one - several).max() <= 1e-5 * (one.max() - one.min())
    return wide, parts


def slots(config, params, count=2):
    return Slots.empty(config, params, slots=count, max_len=32, dtype="float32", stops=4)


CASES = {  # of one layer; other tests have two
    "K divides": (ONE | dict(num_key_value_heads=8), 4),
    "K is the number of devices": (ONE, 2),
    "K is repeated": (ONE, 8),
    "K is one, tied": (ONE | dict(num_key_value_heads=1, tie_word_embeddings=True), 4),
    "V does not divide": (ONE | dict(vocab_size=61, tie_word_embeddings=True), 4),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_tokens_are_those_of_one_device(case):
    fields, devices = CASES[case]
    config = changed(**fields)
    assert_same(config, random_params(config, "float32"), devices)


def test_what_is_told_of_the_devices():
    """Each has its part of what is cut and the whole of what is not; a repeated key head is no parameter."""
    config = changed(**ONE)
    wide, params = split(config, random_params(config, "float32"), 4)
    assert (sharding.devices_under(params), describe_device(params)) == (4, "4 × cpu")
    own = 64 * 32 + 3 * 32 + 2 * 8 * 2 * 32 + 2 * 8 * 32 + 3 * 12 * 32 + 16 * 32
    assert sharding.bytes_on_each(params) == 4 * own
    held = dict(params=params, tokenizer=None, name="m", dtype="float32")
    model = Model(config=wide, checkpoint_config=config, **held)
    assert model.parameters == parameter_count(config) < Model(config=wide, **held).parameters


@pytest.mark.parametrize("family", ["gemma2_caps", "llama_biases", "olmo2"])
def test_families(family):
    """Norms behind the layers and soft caps; biases of sums; norms over the heads of all devices."""
    prefix, changes = FAMILY_MODELS[family]
    keys = BASE | changes | dict(model_type=prefix.lower(), vocab_size=96, num_hidden_layers=1)
    config = ModelConfig.from_hf(keys)
    assert_same_logits(config, random_params(config, "float32"), 4)


def test_quantised_leaves():
    """4 bits in groups and 8 bits with a scale for whole rows, cut by rows and by columns."""
    config = changed(hidden_size=64, intermediate_size=128, head_dim=16, num_hidden_layers=2)
    params = random_params(config, "float32")
    groups, rows = SCHEMES["int4"]
    layers = tuple(
        quantised(layer, scheme) for layer, scheme in zip(params.layers, (groups, rows), strict=True)
    )
    assert_same(config, dataclasses.replace(quantised(params, rows), layers=layers), 4)


def quantised(node, scheme):
    """Parameters with their own matrices quantised, and those of the two parts of a layer."""
    new = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if field.name in ("attention", "mlp"):
            new[field.name] = quantised(value, scheme)
        elif field.name.endswith("proj") or field.name in ("embed_tokens", "lm_head"):
            new[field.name] = quantize(value, scheme)
    return dataclasses.replace(node, **new)


@pytest.fixture(scope="module")
def on_four():
    return slots(*split(SMALL, random_params(SMALL, "float32"), 4))


def collectives(text):
    return {
        name: len(re.findall(rf" {name}(?:-start)?\(", text))
        for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    }


NOTHING = collectives("")


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("greedy", [True, False])
def test_two_sums_a_layer_and_one_exchange_at_the_head(on_four, rows, greedy):
    run = slot_programs.runner(on_four.way(greedy=greedy), rows > 1)
    arguments = on_four.config, on_four.params, on_four.state, np.zeros(rows + 2, np.int32)
    text = run.lower(*arguments).compile().as_text()
    L = SMALL.num_hidden_layers
    head = {"all-reduce": 2 * L + 1} if greedy else {"all-reduce": 2 * L, "all-gather": 1}
    assert collectives(text) == NOTHING | head
    assert not copies_of_the_cache(text)


def copies_of_the_cache(text):
    return [line for line in text.splitlines() if re.search(r"= f32\[2,1,32,8\]\S* copy\(", line)]


def test_prompts_and_copies_move_no_weights(on_four):
    model, cache = (on_four.config, on_four.params), on_four.state.cache
    reader = slot_programs.reader(on_four.target, 32)
    text = reader.lower(*model, cache, np.zeros((1, 36), np.int32)).compile().as_text()
    assert collectives(text) == NOTHING | {"all-reduce": 2 * SMALL.num_hidden_layers, "all-gather": 1}
    for program, number, options in (
        (slot_programs.clear, np.int32(0), {}),
        (slot_programs.copy_prefix, np.zeros(3, np.int32), dict(size=8)),
    ):
        text = program.lower(cache, number, target=on_four.target, **options).compile().as_text()
        assert collectives(text) == NOTHING
        assert not copies_of_the_cache(text)


SETTINGS = [
    dict(temperature=0.8, top_p=0.9),
    dict(repetition_penalty=1.3, presence_penalty=0.5),
    dict(temperature=1.0, logit_bias={5: 4.0}, scores=True),
    dict(floor=4, stop_ids=[13]),
]


@pytest.mark.parametrize("options", SETTINGS, ids=["drawn", "penalties", "scores", "floor"])
def test_every_setting_gives_what_it_gives_on_one_device(options):
    params = random_params(SMALL, "float32")
    keys = [(0, 1), (0, 2)]
    one = texts(slots(SMALL, params), PROMPTS, keys=keys, limit=9, **options)
    assert texts(slots(*split(SMALL, params, 4)), PROMPTS, keys=keys, limit=9, **options) == one


def test_masked_steps_choose_as_on_one_device():
    params = random_params(SMALL, "float32")

    def chosen(both):
        mask = np.full((2, 2), 0x0F0F0F0F, np.int32)
        came = [started(both, PROMPTS, limit=9), *(both.run([0, 1], 1, mask) for _ in range(3))]
        return [np.asarray(burst.tokens).tolist() for burst in came]

    assert chosen(slots(*split(SMALL, params, 4))) == chosen(slots(SMALL, params))


def test_a_copied_prefix_is_as_good_as_a_read_one():
    both = slots(*split(SMALL, random_params(SMALL, "float32"), 4))
    prompt = np.array(PROMPTS[0], np.int32)
    whole = read_prompt(both, prompt, slot=0)
    both.copy_prefix(0, 1, 4)
    assert np.allclose(read_prompt(both, prompt, 4, slot=1), whole, rtol=0, atol=1e-5)


def test_state_and_logits_are_the_same_on_every_device(on_four):
    texts(on_four, PROMPTS, limit=5)
    for leaf in jax.tree.leaves(dataclasses.replace(on_four.state, cache=None)):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert all(np.array_equal(copy, copies[0]) for copy in copies)
    parts = [shard.data.shape for shard in on_four.state.cache.keys[0].addressable_shards]
    assert parts == [(2, 1, 32, 8)] * 4


def test_the_first_of_equal_logits_wins_and_the_sum_is_that_of_all():
    logits = np.array([[1, 5, 2, 5, 0, 5, 3, 3], [0, 0, 0, 0, 0, 0, 0, 9]], np.float32)
    way = Way(target_of(split(SMALL, random_params(SMALL, "float32"), 4)[1]), greedy=True)

    def run(all_logits):
        at = jax.lax.axis_index(AXIS) * 2
        return largest_of_all(jax.lax.dynamic_slice_in_dim(all_logits, at, 2, axis=1), 8, way.target.shards)

    token, total = jax.jit(sharding.everywhere(run, way.target.mesh, sharding.WHOLE))(logits)
    assert (token.tolist(), total.tolist()) == ([1, 7], [24.0, 9.0])


def test_the_plain_model_runs_on_the_parts_too():
    """`model.forward` itself, as a kernel's oracle would call it."""
    params = random_params(SMALL, "float32")
    config, parts = split(SMALL, params, 2)

    def run(params, cache, tokens):
        logits, _ = forward(sharding.local(config, 2), params, tokens, cache, shards=Shards(count=2))
        return Shards(count=2).gathered(logits)

    cache = sharding.empty_cache(config, parts, batch=1, max_len=8, dtype="float32")
    tokens = np.array([PROMPTS[0]], np.int32)
    got = jax.jit(sharding.everywhere(run, sharding.mesh_under(parts), sharding.WHOLE))(parts, cache, tokens)
    assert np.allclose(got[0], all_logits(SMALL, params), rtol=0, atol=1e-5)
