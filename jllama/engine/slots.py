"""Many texts in one state: each lies in a slot, comes, goes and is sampled by settings of its own.

The state of all slots is allocated once. Programs take `rows`, int32 `[b]`: the slots that they work on. The
cache is addressed through them, the small vectors are gathered and scattered; nothing is compacted.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax import Array

from jllama.config import ModelConfig
from jllama.engine import slot_programs
from jllama.engine.prefill import chunk_sizes
from jllama.engine.rows import Piece, Row, packed, stacked
from jllama.engine.state import NO_TOKEN, Burst, Way
from jllama.engine.step import HURRIED
from jllama.kernels.target import target_of
from jllama.layers.sampling import Scores
from jllama.model import Params

# Programs that sample a first token count the prompt's tokens: few sizes, because each is compiled anew.
PROMPT_SIZES = tuple(512 * 8**n for n in range(8))
TURN_FLOPS, MOST_CHUNKS = 3 * 10**13, 8
SCORED = 128  # tokens of a chunk, at most, where the logits behind each are kept: V floats a token


class Slots:
    """The state of all slots, and the programs that work on some of them. Not for several threads."""

    def __init__(
        self, config: ModelConfig, params: Params, *, slots: int, max_len: int, dtype: str, stops: int = 32
    ) -> None:
        """Allocates everything.

        Args:
          config: the architecture.
          params: its weights.
          slots: how many texts at once.
          max_len: positions of each.
          dtype: of the cache.
          stops: ids that may end a row, at most.
        """
        self.config, self.params, self.stops = config, params, stops
        self.target = target_of(params)
        self.buckets = [b for b in (1 << n for n in range(slots.bit_length())) if b < slots] + [slots]
        state = slot_programs.empty(config, slots, max_len, dtype, stops)
        # Bound to the device from the beginning, as what programs return is: else each is compiled twice.
        self.state = jax.device_put(state, next(iter(jax.tree.leaves(params)[0].devices())))
        self._greedy, self._extras = np.ones((slots,), bool), np.zeros((slots,), bool)

    @property
    def max_len(self) -> int:
        """Positions of a slot."""
        return self.state.cache.max_len

    def settle(self) -> None:
        """Waits until the device has done what it was asked for."""
        jax.block_until_ready(self.state.cache.length)

    def copy_prefix(self, source: int, to: int, count: int) -> None:
        """The first `count` positions of a slot, and a few more, into another."""
        size = min(self.max_len, 1 << (count - 1).bit_length())
        numbers = np.array([source, to, count], np.int32)
        cache = slot_programs.copy_prefix(self.state.cache, numbers, size=size)
        self.state = dataclasses.replace(self.state, cache=cache)

    def clear(self, slot: int) -> None:
        """Forgets what a slot holds. Numbers that are not finite would spoil who comes next."""
        cache = slot_programs.clear(self.state.cache, np.int32(slot))
        self.state = dataclasses.replace(self.state, cache=cache)

    @property
    def turn_tokens(self) -> int:
        """Tokens of prompts that may be read between two bursts: a chunk; on a GPU some 50 ms of work."""
        chunk = self.target.chunk_sizes[-1]
        if not self.target.on_gpu:
            return chunk
        c = self.config
        heads = 2 * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
        weights = c.num_hidden_layers * c.hidden_size * (heads + 3 * c.intermediate_size)
        return chunk * min(max(TURN_FLOPS // (2 * weights * chunk), 1), MOST_CHUNKS)

    def next_chunk(self, left: int, *, scored: bool = False) -> int:
        """How many of a prompt's last `left` tokens the next call of `read` takes; they may be fewer."""
        sizes = self.target.chunk_sizes
        return chunk_sizes(left, [size for size in sizes if size <= SCORED] if scored else sizes)[0]

    def group(self, size: int) -> int:
        """How many chunks of that size one call of `read_together` takes."""
        return min(slot_programs.GROUP, self.target.chunk_sizes[-1] // size, self.buckets[-1])

    def read_together(self, pieces: Sequence[Piece], size: int) -> Array:
        """Puts tokens of prompts into their slots.

        Args:
          pieces: one of them, or `group(size)`; each has at most `size` tokens.
          size: of the program: `next_chunk` says it.

        Returns:
          float32 `[1, V]`, or `[GROUP, V]` of several in their order: the logits behind their last tokens.
        """
        program = slot_programs.reader(self.target, size)
        logits, cache = program(self.config, self.params, self.state.cache, packed(pieces, size, size))
        self.state = dataclasses.replace(self.state, cache=cache)
        return logits

    def read_scored(self, slot: int, prompt: np.ndarray, start: int, size: int) -> tuple[Array, Scores]:
        """Reads `size` tokens of `prompt`, int32 `[n]`, from `start` on, and scores the tokens behind each.

        Returns:
          float32 `[1, V]`, as of `read_together`; of token `start + 1 + i` what was predicted, `[size, ...]`,
          which means nothing past the prompt's end.
        """
        piece = Piece(slot, prompt[start : start + size + 1], start, len(prompt))
        program = slot_programs.scorer(self.target, size)
        arguments = (self.config, self.params, self.state.cache, packed([piece], size, size + 1))
        logits, scores, cache = program(*arguments)
        self.state = dataclasses.replace(self.state, cache=cache)
        return logits, scores

    def prompt_size(self, count: int) -> int:
        """For the penalties: places for the tokens of a prompt of `count`."""
        return min(next(size for size in PROMPT_SIZES if size >= count), self.max_len)

    def way(self, *, greedy: bool = False, extras: bool = False, short: bool = False) -> Way:
        """How rows run: few programs, since each is compiled anew.

        Args:
          greedy: all take the largest logit.
          extras: some row has a floor, or its log-probabilities are told.
          short: `HURRIED` steps at most.
        """
        on_gpu = self.target.on_gpu
        return Way(self.target, on_gpu and greedy and not extras, extras, extras, on_gpu and short)

    def begin_together(self, beginnings: Sequence[tuple[int, Row, int]], logits: Array) -> Burst:
        """Samples the first tokens of slots whose prompts were read.

        Args:
          beginnings: of each its slot, its row, and which of the logits are its.
          logits: what `read_together` gave last.

        Returns:
          A burst whose rows are in that order; there may be more, which are nobody's.
        """
        size = 1 if len(logits) == 1 else slot_programs.GROUP
        longest = self.prompt_size(max(len(row.prompt) for _, row, _ in beginnings))
        numbers, keys = np.zeros((size, 5), np.int32), np.zeros((size, 2), np.uint32)
        numbers[:, 0] = self.buckets[-1] + np.arange(size)  # no slots, until they get one
        stops = np.full((size, self.stops), NO_TOKEN, np.int32)
        prompts = np.full((size, longest), NO_TOKEN, np.int32)
        for at, (slot, row, which) in enumerate(beginnings):
            numbers[at] = slot, which, len(row.prompt), row.limit, row.floor
            keys[at], stops[at, : len(row.stop_ids)] = row.key, row.stop_ids
            prompts[at, : len(row.prompt)] = row.prompt
            self._greedy[slot], self._extras[slot] = row.sampling.is_greedy(), row.extras
        sampling = stacked([row.sampling for _, row, _ in beginnings], size)
        how = self.way(extras=any(row.extras for _, row, _ in beginnings))
        arrays = (numbers, keys, stops, prompts, sampling)
        self.state, first = slot_programs.begin(self.state, logits, *arrays, how=how)
        return first

    def run(self, slots: Sequence[int], steps: int) -> Burst:
        """Up to `steps` more tokens of each row in `slots`, in that order.

        Args:
          slots: rows that run. Others fill the program of the next size: what they hold stays as it is.
          steps: at most `BURST`.
        """
        bucket = next(b for b in self.buckets if b >= len(slots))
        others = (slot for slot in range(self.buckets[-1]) if slot not in slots)
        rows = np.array([*slots, *others][:bucket], np.int32)
        chosen = list(slots)
        greedy, extras = bool(self._greedy[chosen].all()), bool(self._extras[chosen].any())
        how = self.way(greedy=greedy, extras=extras, short=steps <= HURRIED)
        run = slot_programs.runner(how, bucket > 1)
        numbers = np.concatenate([rows, np.array([len(slots), steps], np.int32)])
        self.state, burst = run(self.config, self.params, self.state, numbers)
        return burst
