"""Which attention a GPU's call takes, and that a cache which holds anything is never begun anew."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels
from jllama.engine import prefill
from jllama.kernels.target import Target
from jllama.layers.cache import KVCache
from tests.support.decoding import as_on_a_gpu, short_chunks


@pytest.fixture
def gpu(monkeypatch):
    """As if there were one that takes every shape."""
    monkeypatch.setattr(kernels.gpu, "attention_refusal", lambda *_: None)
    monkeypatch.setattr(kernels.gpu, "prefill_refusal", lambda *_: None)
    monkeypatch.setattr(kernels.gpu, "chunk_refusal", lambda *_: None)


def chosen(config, params, *, T, fresh, use=True, max_len=16, dtype="float32"):
    cache = KVCache.empty(config, batch=2, max_len=max_len, dtype=dtype)
    return kernels.gpu_attention(
        config, params, jnp.zeros((2, T), jnp.int32), cache, fresh, Target("gpu", use)
    )


def test_attention_of_a_call(gpu, tiny_config, tiny_params, monkeypatch):
    take = functools.partial(chosen, tiny_config, tiny_params)
    assert take(T=1, fresh=False) is take(T=1, fresh=True) is kernels.gpu.decode_attend
    assert take(T=16, fresh=True) is take(T=16, fresh=True, max_len=15) is kernels.gpu.first_chunk_attend
    assert take(T=16, fresh=False) is kernels.gpu.chunk_attend
    assert take(T=16, fresh=True, dtype="bfloat16") is take(T=1, fresh=False, dtype="bfloat16") is None
    assert take(T=1, fresh=False, use=False) is take(T=16, fresh=False, use=False) is None
    monkeypatch.setattr(kernels.gpu, "chunk_refusal", lambda *_: "an older GPU")
    assert take(T=16, fresh=True) is kernels.gpu.prefill_attend
    assert take(T=16, fresh=False) is take(T=16, fresh=True, max_len=15) is None


def test_a_row_that_holds_something_keeps_it_though_its_neighbour_is_empty(
    tiny_config, tiny_params, monkeypatch
):
    short_chunks(monkeypatch)
    empty = KVCache.empty(tiny_config, batch=2, max_len=32, dtype="float32")
    _, cache = prefill.prefill(tiny_config, tiny_params, empty, [[1, 2, 3], [4, 5, 6]])
    held = cache.holding(np.array([3, 0], np.int32))
    as_on_a_gpu(monkeypatch)
    ours, _ = prefill.prefill(tiny_config, tiny_params, held, [[7, 8], [9]])
    for row, text in enumerate(([1, 2, 3, 7, 8], [9])):
        alone = KVCache.empty(tiny_config, batch=1, max_len=32, dtype="float32")
        wanted, _ = prefill.prefill(tiny_config, tiny_params, alone, [text])
        np.testing.assert_allclose(ours[row], wanted[0], rtol=0, atol=2e-5)
