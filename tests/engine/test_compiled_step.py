"""What XLA makes of the decode step: no float32 copy of a 16-bit weight, kept or made anew each step."""

import re

import numpy as np
import pytest

from jllama.config import ModelConfig
from jllama.engine import slot_programs
from jllama.engine.state import Way
from jllama.kernels.target import Target
from tests.support.decoding import empty_slots, started
from tests.support.helpers import AS_FOR_USERS, random_params
from tests.support.small_models import SMALL_MODELS

V, D, F = 1009, 48, 80
WEIGHTS = {"table": (V, D), "gate and up": (2, F, D)}


@pytest.fixture(scope="module")
def program():
    """The text of the compiled loop on a CPU, without our own kernels."""
    config = ModelConfig.from_hf(SMALL_MODELS["tied"] | {"vocab_size": V})
    params = random_params(config, dtype="bfloat16")
    slots = empty_slots(config, params, max_len=16, dtype="bfloat16")
    started(slots, [[1]])
    run = slot_programs.runner(Way(Target("cpu", kernels=False)), batched=False)
    lowered = run.lower(config, params, slots.state, np.array([0, 1, 3], np.int32))
    return lowered.compile(AS_FOR_USERS).as_text()


@pytest.mark.parametrize("name", WEIGHTS)
def test_no_weight_is_widened_in_memory(program, name):
    """Inside a fused loop it may be: only what passes between loops is a copy."""
    shape = ",".join(map(str, WEIGHTS[name]))
    passed_on = rf"= {{}}\[{shape}\]\S* (?:parameter|fusion|get-tuple-element)\("
    assert re.search(passed_on.format("bf16"), program)
    assert not re.search(passed_on.format("f32"), program)
