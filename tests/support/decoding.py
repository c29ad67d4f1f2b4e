"""The beginning of a decode loop, with what does not matter to a test left neutral."""

import numpy as np

from jllama.engine.state import NO_TOKEN, start_decode
from jllama.kernels.target import Target
from jllama.layers.sampling import Sampling

CPU, GPU, XLA = Target("cpu"), Target("gpu"), Target("xla")
WIDTH = 64  # of the padded prompts: one for all, since each is compiled anew


def start(cache, logits, *, prompts=None, keys=None, limit=9, stop_ids=(), **settings):
    """`start_decode` with the same settings, limit and stop ids for each row.

    Args:
      cache: donated.
      logits: float32 `[B, V]`.
      prompts: token ids of each row, for the penalties; none when None.
      keys: uint32 `[B, 2]`; 0 and the row's number when None.
      limit: tokens that a row may generate.
      stop_ids: tokens that end a row.
      **settings: of `Sampling.build`.
    """
    B, V = logits.shape
    prompts = [[]] * B if prompts is None else prompts
    padded = np.full((B, WIDTH), NO_TOKEN, np.int32)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    return start_decode(
        cache,
        logits,
        Sampling.build(batch=B, vocab_size=V, **settings),
        padded,
        np.array([*map(len, prompts)], np.int32),
        np.array([[0, row] for row in range(B)], np.uint32) if keys is None else keys,
        np.full((B,), limit, np.int32),
        np.array([[*stop_ids, NO_TOKEN]] * B, np.int32),
    )


def as_on_a_gpu(monkeypatch):
    """Programs are what a GPU runs, but for its kernels."""
    for module in ("prefill", "state"):
        monkeypatch.setattr(f"jllama.engine.{module}.target_of", lambda tree: GPU)


def short_chunks(monkeypatch):
    """Chunks of 4, 8 and 16 tokens on any platform."""
    monkeypatch.setattr("jllama.kernels.target.CHUNK_SIZES", {"cpu": (4, 8, 16), "gpu": (4, 8, 16)})
