"""Slots on an NVIDIA GPU, whose kernels find each text's rows by its slot: `pytest -m gpu`."""

import re

import numpy as np
import pytest

from jllama.checkpoint.random_params import random_params
from jllama.engine import slot_programs
from jllama.engine.decoder import read_prompt
from jllama.engine.rows import Piece
from jllama.engine.slots import Slots
from jllama.engine.state import Way
from tests.engine.test_slots import begin, run
from tests.support.decoding import GPU, XLA
from tests.test_gpu import CONFIG, MAX_LEN

pytestmark = pytest.mark.gpu

PROMPTS = [np.random.default_rng(row).integers(4096, size=20 + 37 * row).tolist() for row in range(6)]
SETTINGS = [{}, dict(temperature=1.0), dict(temperature=0.8, top_p=0.9), dict(frequency_penalty=0.7)]


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, "bfloat16")


def made(params, target=GPU, slots=8):
    slots = Slots.empty(CONFIG, params, slots=slots, max_len=MAX_LEN, dtype="bfloat16", stops=4)
    slots.target = target
    return slots


def texts(slots, order, settings):
    """Tokens of the first prompts, one for each slot in `order`; they run together."""
    tokens = {}
    for number, slot in enumerate(order):
        options = settings[number % len(settings)]
        tokens[slot] = begin(slots, slot, PROMPTS[number], seed=number, limit=60, **options)
    for _ in range(4):
        run(slots, tokens, list(order))
    return [tokens[slot] for slot in order]


@pytest.mark.parametrize("settings", [SETTINGS, [{}]], ids=["mixed", "greedy"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_text_does_not_depend_on_its_slot(params, settings, count):
    wanted = texts(made(params), range(count), settings)
    assert all(len(tokens) == 60 for tokens in wanted)
    for order in ([7, 3, 5, 0], [2, 6, 1, 4]):
        assert texts(made(params), order[:count], settings) == wanted


def test_the_kernels_give_what_plain_xla_gives(params):
    for number in (0, 5):
        prompt = np.array(PROMPTS[number], np.int32)
        ours, theirs = (np.asarray(read_prompt(made(params, on), prompt, slot=3)) for on in (GPU, XLA))
        assert np.linalg.norm(ours - theirs) < 0.03 * np.linalg.norm(theirs)


@pytest.mark.parametrize("count", [1, 4])
def test_no_program_copies_the_cache(params, count):
    slots, numbers = made(params), np.array([*range(count), count, 16], np.int32)
    steps = slot_programs.runner(Way(GPU, greedy=True), count > 1)
    chunk = np.zeros((1, 4 + 128), np.int32)
    for text in (
        steps.lower(CONFIG, params, slots.state, numbers).compile().as_text(),
        slot_programs.reader(GPU, 128).lower(CONFIG, params, slots.state.cache, chunk).compile().as_text(),
    ):
        assert "custom-call" in text
        assert not re.search(r"bf16\[8,2,512,64\]\S* (copy|gather|fusion)\(", text)


def test_prompts_that_are_read_together_are_what_they_are_alone(params):
    slots, apart = made(params), made(params)
    pieces = [Piece(7 - row, np.array(PROMPTS[row][:64], np.int32), 0, 64) for row in range(6)]
    pieces += [Piece(row, np.array(PROMPTS[row][3:], np.int32)[:40], 0, 40) for row in range(2)]
    together = np.asarray(slots.read_together(pieces, 64))
    for row, piece in enumerate(pieces):
        moved = Piece(row, piece.tokens, 0, piece.context)
        alone = np.asarray(apart.read_together([moved], 64))[0]
        assert np.linalg.norm(together[row] - alone) < 0.02 * np.linalg.norm(alone)
