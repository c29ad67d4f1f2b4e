"""Bursts that ask the host for masks while they run: on a CPU by callbacks in place of a desk's words."""

import time
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.checkpoint.random_params import random_params
from jllama.cli.measure_matching import constraints_of
from jllama.config import ModelConfig
from jllama.engine import asking, decoder, mask_server
from jllama.engine.decoder import masked_bursts, read_prompt
from jllama.engine.slots import Slots
from jllama.engine.state import NO_TOKEN
from jllama.errors import JllamaError
from jllama.grammar.constraint import masks_for
from jllama.kernels.gpu import desk
from tests import test_gpu
from tests.support.decoding import empty_slots, row_of
from tests.support.played_desk import played

CONFIG = ModelConfig(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
)
SETTINGS = [dict(temperature=1.0, top_p=0.9, frequency_penalty=0.5), dict(floor=3)]


@pytest.fixture(autouse=True)
def _own_programs():
    """None that asks at another test's desk."""
    asking.asker.cache_clear()
    yield
    asking.asker.cache_clear()


def begun(slots, free=(), **options):
    """What each row must match and the first tokens; those that are `free` may be anything."""
    count, V = slots.buckets[-1], slots.config.vocab_size
    constraints = constraints_of(slots, count)
    constraints = [None if row in free else each for row, each in enumerate(constraints)]
    prompts = np.random.default_rng(0).integers(V, size=(count, 9)).tolist()
    rows = [
        row_of(slots.config, ids[at % 7 :], key=(0, at), limit=40 + 5 * at, **options)
        for at, ids in enumerate(prompts)
    ]
    logits = np.concatenate([read_prompt(slots, row.prompt, slot=at) for at, row in enumerate(rows)])
    beginnings = [(at, row, at) for at, row in enumerate(rows)]
    return slots.begin_together(beginnings, logits, masks_for(constraints)), constraints


def answers(slots, **options):
    """Tokens of each row, and how many columns came at once."""
    first, constraints = begun(slots, **options)
    blocks = list(masked_bursts(slots, first, constraints, range(len(constraints))))
    rows = np.concatenate(blocks, axis=1).tolist()
    return [[token for token in row if token != NO_TOKEN] for row in rows], [b.shape[1] for b in blocks]


@pytest.mark.parametrize("free", [(), (1,)])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_they_give_what_single_steps_give(monkeypatch, free, options):
    params = random_params(CONFIG, "float32")
    wanted, steps = answers(empty_slots(CONFIG, params, 3, 128), free=free, **options)
    assert set(steps) == {1}
    slots = empty_slots(CONFIG, params, 3, 128)
    at = played(monkeypatch, slots)
    came, columns = answers(slots, free=free, **options)
    assert came == wanted
    assert [len(row) for row in came] == [40, 45, 50]
    assert columns == [1, *[8] * 6, 1]
    assert at.turn > 2


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_row_that_is_alone_jumps_over_what_must_come(monkeypatch, options):
    params, jumps, jump = random_params(CONFIG, "float32"), [], asking.jump
    monkeypatch.setattr("jllama.kernels.target.Target.chunk_steps", 3)

    def noted(slots, *given):
        before = slots.state
        jump(slots, *given)
        jumps.append(given[-1])
        assert all(leaf.is_deleted() for leaf in (before.token, before.generated, before.counts.answer))

    monkeypatch.setattr(decoder, "jump", noted)
    (wanted,), _ = answers(empty_slots(CONFIG, params, 1, 128), **options)
    slots = empty_slots(CONFIG, params, 1, 128)
    played(monkeypatch, slots)
    (came,), _ = answers(slots, **options)
    assert came == wanted
    assert len(came) == 40
    assert jumps
    assert all(len(tokens) > 3 for tokens in jumps)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [2, 5, 8])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_on_a_gpu_they_give_what_single_steps_give(count, options):
    params = random_params(test_gpu.CONFIG, "bfloat16")
    room = dict(slots=count, max_len=128, dtype="bfloat16")
    made = [Slots.empty(test_gpu.CONFIG, params, **room) for _ in range(2)]
    assert all(slots.masked.asks for slots in made)
    made[0].masked.asks = False
    wanted, steps = answers(made[0], free=(1,), **options)
    came, columns = answers(made[1], free=(1,), **options)
    assert came == wanted
    assert set(steps) == {1}
    assert columns[1] == 8


@pytest.mark.gpu
def test_on_a_gpu_a_host_that_is_away_ends_what_must_match_and_nothing_else(monkeypatch):
    monkeypatch.setattr(desk, "PATIENCE", 1)
    monkeypatch.setattr(desk, "_spare", defaultdict(list))  # turns begin with 2
    desk.desk_source.cache_clear()
    params = random_params(test_gpu.CONFIG, "bfloat16")
    slots = Slots.empty(test_gpu.CONFIG, params, slots=2, max_len=128, dtype="bfloat16")
    first, constraints = begun(slots, free=(1,), temperature=1.0)
    fill = mask_server.masks_for

    def late(constraints, masks):
        at = slots.masked.server._desk
        while not at.given_up(9):  # the last turn of the first burst
            time.sleep(0.01)
        return fill(constraints, masks)

    monkeypatch.setattr(mask_server, "masks_for", late)
    came = masked_bursts(slots, first, constraints, range(2))
    assert next(came).shape == (2, 1)
    with pytest.raises(JllamaError, match="stood still"):
        next(came)
    burst = slots.run([1], 16)  # the desk is at nobody's service now, and the device at everybody's
    assert burst.tokens.shape == (1, 16)
    desk.desk_source.cache_clear()


@pytest.fixture
def launched():
    """Slots whose first burst begins with turn 2^31 + 6; what was served, and what ran."""
    served, ran = [], []

    def serve(one, *_):
        one.turn = 2**31 + 6
        served.append(one)

    server = SimpleNamespace(serve=serve, addresses=None)
    masked = SimpleNamespace(server=server, ran=lambda *given: ran.append(given))
    how = dict(needs=lambda rows: (False, False, False), way=lambda **_: None, buckets=[1, 4])
    slots = SimpleNamespace(masked=masked, config=None, params=None, state=None, **how)
    return slots, served, ran


def test_turns_are_words_of_32_bits(monkeypatch, launched):
    slots, served, ran = launched
    told, burst = [], SimpleNamespace(underway=lambda: "burst", arrived=False)

    def run(config, params, state, numbers, addresses):
        told.append((numbers.dtype, numbers.tolist()))
        return "state", burst

    monkeypatch.setattr(asking, "asker", lambda how, b: run)
    assert asking.ask(slots, [2, 0], [None, None]) == ("burst", served[0])
    assert told == [(np.int32, [2, 0, 1, 3, 2, 6 - 2**31])]
    assert (slots.state, ran, served[0].steps) == ("state", [([2, 0], 8)], 8)
    assert not served[0].over()
    asking.ask(slots, [3], [None])
    assert (told[1][1], served[1].steps) == ([3, 1, 6 - 2**31], 4)


def test_a_burst_that_can_not_be_launched_is_over(monkeypatch, launched):
    """Else the thread that answers would wait for it for ever."""
    slots, served, ran = launched

    def fails(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(asking, "asker", lambda how, b: fails)
    with pytest.raises(RuntimeError, match="no memory"):
        asking.ask(slots, [0], [None])
    assert served[0].over()
    assert ran == []
