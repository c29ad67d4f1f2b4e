"""bfloat16 and float16 against the float32 path over real text. docs/precision.md tells what was measured.

Run `pytest tests/test_precision.py -s` to see the figures of this machine.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.checkpoint import load_params, read_config
from jllama.hub.references import resolve
from jllama.layers.cache import KVCache
from jllama.loading import load_tokenizer
from jllama.model import forward
from tests.support.helpers import AS_FOR_USERS

TOKENS = 500
# (model, dtype): largest relative error of the logits, smallest top-1 agreement; twice what was measured.
BOUNDS = {
    ("story", "bfloat16"): (1.1e-2, 0.975),  # measured 5.3e-3, 99.0%
    ("story", "float16"): (1.5e-3, 0.995),  # measured 7.1e-4, 100.0%
    ("smollm2", "bfloat16"): (3.2e-2, 0.975),  # measured 1.6e-2, 98.8%
    ("smollm2", "float16"): (4.2e-3, 0.99),  # measured 2.1e-3, 99.8%
}
LOSS = {"story": 3.3, "smollm2": 3.8}  # nats a token in float32; measured 3.02 and 3.49
GOLDENS = Path(__file__).parent / "goldens"


def logits_of(files, tokens: np.ndarray, dtype: str) -> np.ndarray:
    """float32 `[T, V]`."""
    config = read_config(files)
    params = load_params(files, config, dtype, progress=False)
    cache = KVCache.empty(config, batch=1, max_len=TOKENS, dtype=dtype)
    run = jax.jit(forward, static_argnums=0, compiler_options=AS_FOR_USERS)
    return np.asarray(run(config, params, jnp.asarray(tokens[None]), cache)[0])[0]


@pytest.fixture(scope="module", params=["story", "smollm2"])
def model(request):
    """Its name, files, 500 tokens of real text and their float32 logits."""
    fixture = {"story": "story_dir", "smollm2": "smollm2_gguf"}[request.param]
    files = resolve(str(request.getfixturevalue(fixture)), progress=False)
    text = (GOLDENS / {"story": "story.txt", "smollm2": "text.txt"}[request.param]).read_text(
        encoding="utf-8"
    )
    if request.param == "smollm2":
        text = text.replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n")
    tokens = np.asarray(load_tokenizer(files).encode(text), np.int32)
    assert len(tokens) >= TOKENS
    with jax.default_matmul_precision("highest"):
        oracle = logits_of(files, tokens[:TOKENS], "float32")
    return request.param, files, tokens[:TOKENS], oracle


def test_the_text_is_plausible_to_the_model(model):
    """The oracle predicts it: so the figures are of a working model."""
    name, _, tokens, oracle = model
    picked = np.take_along_axis(oracle[:-1], tokens[1:, None], axis=1)[:, 0]
    loss = float(np.mean(np.asarray(jax.nn.logsumexp(jnp.asarray(oracle[:-1]), axis=-1)) - picked))
    print(f"{name}: {loss:.3f} nats a token")
    assert loss < LOSS[name]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_stay_near_float32(model, dtype):
    name, files, tokens, oracle = model
    ours = logits_of(files, tokens, dtype)
    error = float(np.linalg.norm(ours - oracle) / np.linalg.norm(oracle))
    agreement = float(np.mean(ours.argmax(-1) == oracle.argmax(-1)))
    print(f"{name} {dtype}: relative error {error:.2e}, top-1 agreement {agreement:.1%}")
    largest_error, smallest_agreement = BOUNDS[name, dtype]
    assert error <= largest_error
    assert agreement >= smallest_agreement
