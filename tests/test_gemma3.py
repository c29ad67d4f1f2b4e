"""Gemma 3 270M as GGUF (Q4_K, Q5_0, Q6_K, Q8_0) against transformers on the same weights in fp32.

`goldens/make_gemma3.py` makes the goldens. The file has terms of its own and 253 MB, so that nothing fetches
it: `JLLAMA_GEMMA3` names it (docs/models.md says where it is to be had).
"""

import os
from pathlib import Path

import numpy as np
import pytest

import jllama
from tests.support.gemma3 import NEW, prompts

GOLDENS = Path(__file__).parent / "goldens" / "gemma3.npz"


@pytest.fixture(scope="module")
def model():
    """As `jllama generate --dtype=float32` has it; transformers keeps no weight quantised."""
    if not (file := os.environ.get("JLLAMA_GEMMA3")):
        pytest.skip("needs Gemma 3 270M: JLLAMA_GEMMA3 names its file")
    return jllama.load(file, dtype="float32", quantize="none", progress=False)


@pytest.fixture(scope="module", params=range(3))
def text(request):
    """A prompt, its ids and the greedy ones behind it."""
    with np.load(GOLDENS) as goldens:
        tokens, length = goldens[f"tokens{request.param}"], int(goldens[f"prompt_length{request.param}"])
    return prompts()[request.param], tokens[:length].tolist(), tokens[length:].tolist()


def test_the_prompt_is_the_same_tokens(model, text):
    prompt, ids, _ = text
    assert model.tokenizer.encode(prompt) == ids
    assert model.tokenizer.decode(ids[1:]) == prompt


def test_greedy_tokens(model, text):
    """The third prompt is longer than the window of five layers in six."""
    _, ids, wanted = text
    session = jllama.Session(model, max_seq_len=len(ids) + NEW)
    for _ in session.stream(ids, max_new_tokens=NEW, temperature=0.0, ignore_eos=True):
        pass
    assert list(session.result.token_ids) == wanted
