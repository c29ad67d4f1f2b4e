"""Texts on slots of their own, with what does not matter to a test left neutral."""

import numpy as np

from jllama.engine import slot_programs
from jllama.engine.decoder import bursts, read_prompt
from jllama.engine.rows import Row
from jllama.engine.slots import Slots
from jllama.engine.state import NO_TOKEN, DecodeState
from jllama.kernels.target import Target
from jllama.layers.cache import KVCache
from jllama.layers.sampling import Sampling

CPU, GPU, XLA = Target("cpu"), Target("gpu"), Target("xla")
STOPS = 4


def row_of(config, prompt, *, key=(0, 0), limit=20, stop_ids=(), floor=0, scores=False, **settings):
    """A row with the settings of `Sampling.build`."""
    return Row(
        prompt=np.array(prompt, np.int32),
        sampling=Sampling.build(batch=1, vocab_size=config.vocab_size, **settings),
        key=np.array(key, np.uint32),
        limit=limit,
        stop_ids=stop_ids,
        floor=floor,
        scores=scores,
    )


def slots_on(config, params, cache):
    """Slots in the rows of a cache, which they take."""
    one = cache.batch == 1
    state = DecodeState.of_one(cache) if one else slot_programs.empty(cache, config.vocab_size, STOPS)
    return Slots(config, params, state, STOPS)


def empty_slots(config, params, slots=1, max_len=64, dtype="float32"):
    """Slots as a session has them or, several, as an engine has."""
    return slots_on(config, params, KVCache.empty(config, batch=slots, max_len=max_len, dtype=dtype))


def started(slots, prompts, *, keys=None, **options):
    """Reads a prompt into each slot; the burst of first tokens of all of them. `options`: of `row_of`."""
    keys = [(0, 0)] * len(prompts) if keys is None else keys
    rows = [
        row_of(slots.config, prompt, key=key, **options) for prompt, key in zip(prompts, keys, strict=True)
    ]
    read = [read_prompt(slots, row.prompt, slot=slot) for slot, row in enumerate(rows)]
    logits = np.concatenate([np.asarray(each) for each in read])
    return slots.begin_together([(slot, row, slot) for slot, row in enumerate(rows)], logits)


def texts(slots, prompts, **options):
    """The generated ids of each prompt, read and run in slots 0, 1, …"""
    blocks = list(bursts(slots, started(slots, prompts, **options), range(len(prompts))))
    return [[int(token) for token in row if token != NO_TOKEN] for row in np.concatenate(blocks, axis=1)]


def as_on_a_gpu(monkeypatch):
    """Programs are what a GPU runs, but for its kernels."""
    monkeypatch.setattr("jllama.engine.slots.target_of", lambda tree: GPU)


def short_chunks(monkeypatch):
    """Chunks of 4, 8 and 16 tokens on any platform."""
    monkeypatch.setattr("jllama.kernels.target.CHUNK_SIZES", {"cpu": (4, 8, 16), "gpu": (4, 8, 16)})
