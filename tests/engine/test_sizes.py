"""How prompts, programs and turns are cut, and which of XLA's options a program gets: nothing is computed."""

import dataclasses
from types import SimpleNamespace

import pytest

from jllama.config import ModelConfig
from jllama.engine import masked_programs, slot_programs
from jllama.engine.state import Way
from jllama.engine.turns import turn_tokens, worth_copying
from jllama.kernels.target import CUBLAS, ONE_BY_ONE, Target
from tests.support.decoding import CPU, GPU, empty_slots


def on(target, made, packs=False):
    made.target, made.packs = target, packs
    return made


@pytest.mark.parametrize(
    ("target", "left", "chunk", "scored"),
    [
        (CPU, 30, 32, 32),
        (CPU, 70, 128, 128),
        (CPU, 600, 512, 128),
        (GPU, 100, 128, 128),
        (GPU, 300, 512, 128),
    ],
)
def test_a_chunk_whose_tokens_are_scored_is_short(tiny_config, tiny_params, target, left, chunk, scored):
    slots = on(target, empty_slots(tiny_config, tiny_params))
    assert (slots.next_chunk(left), slots.next_chunk(left, scored=True)) == (chunk, scored)


@pytest.mark.parametrize(
    ("target", "count", "groups"),
    [
        (CPU, 1, {32: 1, 128: 1, 512: 1}),
        (CPU, 3, {32: 3, 128: 3, 512: 1}),
        (CPU, 20, {32: 8, 128: 4, 512: 1}),
        (GPU, 20, {64: 8, 256: 8, 512: 4, 1024: 2, 2048: 1}),
        (GPU, 5, {64: 5, 512: 4}),
    ],
)
def test_as_many_prompts_are_read_together_as_a_long_chunk_and_the_slots_hold(
    tiny_config, tiny_params, target, count, groups
):
    slots = on(target, empty_slots(tiny_config, tiny_params, count, max_len=4))
    assert {size: slots.group(size) for size in groups} == groups


def test_where_padding_costs_nothing_a_program_takes_chunks_of_all_sizes(tiny_config, tiny_params):
    slots = on(CPU, empty_slots(tiny_config, tiny_params, 3, max_len=4), packs=True)
    assert [slots.group(size) for size in (32, 128, 512)] == [3, 3, 3]
    assert [slots.next_chunk(left) for left in (1, 32, 33, 129, 513)] == [32, 32, 128, 512, 512]
    assert [slots.next_chunk(left, scored=True) for left in (1, 129, 513)] == [
        32,
        128,
        128,
    ]  # all is computed


@pytest.mark.parametrize(("target", "count", "fresh"), [(CPU, 1, False), (GPU, 1, True), (GPU, 2, False)])
def test_only_a_single_text_on_a_gpu_begins_anew(tiny_config, tiny_params, target, count, fresh):
    slots = on(target, empty_slots(tiny_config, tiny_params, count, max_len=4))
    assert [slots.fresh(start) for start in (0, 1, 64)] == [fresh, False, False]


class Mesh:
    """So many devices."""

    def __init__(self, size):
        self.size = size


def test_greedy_rows_have_a_loop_of_their_own_where_logits_lie_on_several_devices(tiny_config, tiny_params):
    """Which need not gather them."""
    slots = empty_slots(tiny_config, tiny_params)
    ways = [on(target, slots).way(greedy=True, short=True) for target in (CPU, meshed(CPU, 2), GPU)]
    assert [(way.greedy, way.short) for way in ways] == [(False, False), (True, False), (True, True)]


def meshed(target, devices):
    return dataclasses.replace(target, mesh=None if devices == 1 else Mesh(devices))


SEVEN_B = ModelConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
)


def sized(**fields):
    return dataclasses.replace(SEVEN_B, **fields)


@pytest.mark.parametrize(
    ("config", "devices", "chunks"),
    [
        (SEVEN_B, 1, 1),  # 13 GFLOP a token: 27 TFLOP a chunk
        (SEVEN_B, 2, 2),
        (SEVEN_B, 8, 8),
        (sized(num_hidden_layers=16), 1, 2),
        (sized(num_hidden_layers=8), 1, 4),
        (sized(num_hidden_layers=8, num_key_value_heads=8), 1, 5),
        (sized(num_hidden_layers=8, intermediate_size=22016), 1, 2),
        (sized(num_hidden_layers=1), 1, 8),
        (sized(num_hidden_layers=200), 1, 1),
    ],
)
def test_a_turn_of_a_gpu_is_a_twentieth_of_a_second_of_work(config, devices, chunks):
    assert turn_tokens(config, meshed(GPU, devices)) == chunks * 2048


def test_a_turn_elsewhere_is_a_chunk():
    assert turn_tokens(SEVEN_B, CPU) == turn_tokens(sized(num_hidden_layers=1), Target("metal")) == 512


def test_on_a_gpu_a_short_beginning_is_read_anew_where_a_cpu_copies_it():
    assert (worth_copying(CPU), worth_copying(GPU)) == (16, 32)


def test_a_step_of_several_rows_and_a_long_chunk_have_options_of_their_own(monkeypatch):
    seen = []

    def compiled(run, target, out, *, options, donated=(2,)):
        seen.append((run.__name__, options, donated))

    def jit(run, *, donate_argnums, compiler_options):
        seen.append((run.__name__, compiler_options, donate_argnums))

    monkeypatch.setattr(slot_programs, "compiled", compiled)
    monkeypatch.setattr(masked_programs, "jax", SimpleNamespace(jit=jit))
    for batched in (False, True):
        slot_programs.runner.__wrapped__(Way(GPU), batched)
        masked_programs.feeder.__wrapped__(None, None, GPU, batched)
    for size in (512, 1024):
        slot_programs.reader.__wrapped__(GPU, size)
        slot_programs.scorer.__wrapped__(GPU, size)
    slot_programs.runner.__wrapped__(Way(CPU), True)
    one, several = ([("run", options, (2,)), ("feed", options, (1, 2))] for options in (None, CUBLAS))
    short, long = ([("read", options, (2,))] * 2 for options in (CUBLAS, ONE_BY_ONE))
    assert seen == [*one, *several, *short, *long, ("run", None, (2,))]


def test_a_burst_is_short_up_to_the_steps_of_a_hurried_one(tiny_config, tiny_params, monkeypatch):
    ways = []

    class Done(Exception):  # noqa: N818
        """Asked for."""

    def runner(how, batched):
        ways.append(how.short)
        raise Done

    monkeypatch.setattr(slot_programs, "runner", runner)
    slots = on(GPU, empty_slots(tiny_config, tiny_params))
    for steps in (1, 4, 5, 16):
        with pytest.raises(Done):
            slots.run([0], steps)
    assert ways == [True, True, False, False]
