"""The engine: texts in one state, each in a slot, where it comes, goes and is sampled by its own settings.

The state of all slots is allocated once. Programs take `rows`, int32 `[b]`: the slots that they work on. The
cache is addressed through them, the small vectors are gathered and scattered; nothing is compacted. A single
text is an engine of one slot, whose programs gather nothing.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax import Array

from jllama import kernels, sharding
from jllama.config import ModelConfig
from jllama.engine import leading, slot_programs
from jllama.engine.masked_steps import MaskedSteps
from jllama.engine.rows import Piece, Row, bucketed, chunk_size, filled, packed, prompt_places, stacked
from jllama.engine.state import NO_TOKEN, Burst, DecodeState, Way, not_finite, reopened
from jllama.engine.step import HURRIED
from jllama.engine.turns import turn_tokens
from jllama.errors import JllamaError
from jllama.kernels.target import target_of
from jllama.layers.sampling import Scores
from jllama.model import Params

STOPS = 32  # ids that may end a row
SCORED = 128  # tokens of a chunk, at most, where the logits behind each are kept: V floats a token


class Slots:
    """The state of all slots, and the programs that work on some of them. Not for several threads."""

    def __init__(self, config: ModelConfig, params: Params, state: DecodeState, stops: int = STOPS) -> None:
        """Allocates nothing.

        Args:
          config: the architecture.
          params: its weights.
          state: a row for each slot; the slots' own from now on.
          stops: ids that may end a row, at most; of a single row as many as it brings.
        """
        self.name = -1  # by which other processes that run the same model know them
        self.config, self.params, self.stops = config, params, stops
        self.state, self.target, slots = state, target_of(params), state.cache.batch
        self.buckets = [b for b in (1 << n for n in range(slots.bit_length())) if b < slots] + [slots]
        self.alone = slots == 1
        self.packs = not self.alone and kernels.skips_padding(config, params, state.cache, self.target)
        self._needs = np.zeros((3, slots), bool)  # of each row: a draw, scores, a floor
        self.masked = MaskedSteps(config, params, slots, asks=kernels.asks_for_masks(self.target))

    @classmethod
    def empty(
        cls, config: ModelConfig, params: Params, *, slots: int, max_len: int, dtype: str, stops: int = STOPS
    ) -> "Slots":
        """Slots that hold nothing, each of `max_len` positions, in a cache of `dtype`."""
        name = leading.number()
        leading.tell(name, leading.NEW, slots, max_len, stops)
        cache = kernels.empty_cache(config, params, batch=slots, max_len=max_len, dtype=dtype)
        state = slot_programs.empty(cache, config.vocab_size, stops)
        # Bound to the device from the beginning, as what programs return is: else each is compiled twice.
        state = sharding.beside(params, state)
        made = cls(config, params, state, stops)
        made.name = name
        return made

    @property
    def max_len(self) -> int:
        """Positions of a slot."""
        return self.state.cache.max_len

    def settle(self) -> None:
        """Waits until the device has done what it was asked for."""
        jax.block_until_ready(self.state.cache.length)

    @leading.told
    def copy_prefix(self, source: int, to: int, count: int) -> None:
        """The first `count` positions of a slot, and a few more, into another."""
        size = min(self.max_len, 1 << (count - 1).bit_length())
        numbers = np.array([source, to, count], np.int32)
        cache = slot_programs.copy_prefix(self.state.cache, numbers, size=size, target=self.target)
        self.state = dataclasses.replace(self.state, cache=cache)

    @leading.told
    def clear(self, slot: int) -> None:
        """Forgets what a slot holds. Numbers that are not finite would spoil who comes next."""
        cache = slot_programs.clear(self.state.cache, np.int32(slot), target=self.target)
        self.state = dataclasses.replace(self.state, cache=cache)

    @property
    def turn_tokens(self) -> int:
        """Tokens of prompts that may be read between two bursts."""
        return turn_tokens(self.config, self.target)

    def next_chunk(self, left: int, *, scored: bool = False) -> int:
        """How many of a prompt's last `left` tokens the next call of `read` takes; they may be fewer."""
        call = (self.config, self.params, self.state.cache, self.target)
        sizes = [s for s in self.target.chunk_sizes if s <= SCORED] if scored else kernels.chunk_sizes(*call)
        return chunk_size(left, sizes, pads_freely=self.packs and not scored)

    def group(self, size: int) -> int:
        """How many chunks of that size one call of `read_together` takes."""
        most = slot_programs.GROUP if self.packs else self.target.chunk_sizes[-1] // size
        return min(slot_programs.GROUP, most, self.buckets[-1])

    @leading.told
    def read_together(self, pieces: Sequence[Piece], size: int) -> Array:
        """Puts tokens of prompts into their slots.

        Args:
          pieces: one of them, or `group(size)`, or fewer if it `packs`; each has at most `size` tokens.
          size: of the program: `next_chunk` says it.

        Returns:
          float32 `[1, V]`, or `[GROUP, V]` of several in their order: the logits behind their last tokens.
        """
        program = slot_programs.reader(self.target, size, self.fresh(pieces[0].start))
        rows = range(self.buckets[-1] + len(pieces), self.buckets[-1] + self.group(size))  # of no slot
        chunk = packed(pieces, size, size, rows if len(pieces) > 1 else ())
        logits, cache = program(self.config, self.params, self.state.cache, chunk)
        self.state = dataclasses.replace(self.state, cache=cache)
        return logits

    @leading.told
    def read_scored(self, slot: int, prompt: np.ndarray, start: int, size: int) -> tuple[Array, Scores]:
        """Reads `size` tokens of `prompt`, int32 `[n]`, from `start` on, and scores the tokens behind each.

        Returns:
          float32 `[1, V]`, as of `read_together`; of token `start + 1 + i` what was predicted, `[size, ...]`,
          which means nothing past the prompt's end.
        """
        chunk = packed([Piece(slot, prompt[start : start + size + 1], start, len(prompt))], size, size + 1)
        program = slot_programs.scorer(self.target, size)
        logits, scores, cache = program(self.config, self.params, self.state.cache, chunk)
        self.state = dataclasses.replace(self.state, cache=cache)
        return logits, scores

    def fresh(self, start: int) -> bool:
        """Whether a chunk from `start` on is read as one that nothing precedes: a GPU has a faster way."""
        return self.alone and self.target.on_gpu and start == 0

    def prompt_size(self, count: int) -> int:
        """For the penalties: places for a prompt of `count` tokens; a single text grows from turn to turn."""
        return self.max_len if self.alone else prompt_places(count, self.max_len)

    def way(
        self, *, greedy: bool = False, scores: bool = False, floors: bool = False, short: bool = False
    ) -> Way:
        """How rows run. Few programs for many rows, since each is compiled anew: who scores keeps floors too.

        On a GPU greedy rows get a loop of their own: XLA finds the largest logits of many rows sooner than
        our kernel, and without that a loop for all settings would branch. Elsewhere one serves them all.

        Args:
          greedy: all take the largest logit.
          scores: log-probabilities of some row are told.
          floors: some row has a floor.
          short: `HURRIED` steps at most.
        """
        on_gpu = self.target.on_gpu
        if not self.alone:
            scores = floors = scores or floors
            greedy = greedy and not scores
        own_greedy = on_gpu or self.target.mesh is not None  # which need not gather the logits of all devices
        return Way(self.target, own_greedy and greedy, scores, floors, on_gpu and short)

    @property
    def before(self) -> DecodeState:
        """What a beginning takes: of a single row the cache alone, since it brings all else."""
        return DecodeState.of_one(self.state.cache) if self.alone else self.state

    @leading.told
    def begin_together(
        self,
        beginnings: Sequence[tuple[int, Row, int]],
        logits: Array | np.ndarray,
        masks: np.ndarray | None = None,
    ) -> Burst:
        """Samples the first tokens of slots whose prompts were read.

        Args:
          beginnings: of each its slot, its row, and which of the logits are its.
          logits: what `read_together` gave last, or any others, float32 `[b, V]`.
          masks: int32 `[n, ceil(V/32)]`, of each beginning the tokens that may come; None: any.

        Returns:
          A burst whose rows are in that order; there may be more, which are nobody's.
        """
        size = len(logits)
        longest = self.prompt_size(max(len(row.prompt) for _, row, _ in beginnings))
        numbers, keys = np.zeros((size, 5), np.int32), np.zeros((size, 2), np.uint32)
        numbers[:, 0] = self.buckets[-1] + np.arange(size)  # no slots, until they get one
        most = max(len(row.stop_ids) for _, row, _ in beginnings)
        stops = np.full((size, max(self.stops, 1 << (most - 1).bit_length())), NO_TOKEN, np.int32)
        prompts = np.full((size, longest), NO_TOKEN, np.int32)
        for at, (slot, row, which) in enumerate(beginnings):
            numbers[at] = slot, which, len(row.prompt), row.limit, row.floor
            keys[at], stops[at, : len(row.stop_ids)] = row.key, row.stop_ids
            prompts[at, : len(row.prompt)] = row.prompt
            self.masked.begin(slot, row)
            self._needs[:, slot] = not row.sampling.is_greedy(), row.scores, row.floor > 0
        sampling = stacked([row.sampling for _, row, _ in beginnings], size)
        _, scores, floors = self.needs([slot for slot, _, _ in beginnings])
        how = self.way(scores=scores, floors=floors)
        arrays = (numbers, keys, stops, prompts, sampling, filled(masks, size))
        self.state, first = slot_programs.begin(self.before, logits, *arrays, how=how)
        return first.underway()

    @leading.told
    def run(self, slots: Sequence[int], steps: int, masks: np.ndarray | None = None) -> Burst:
        """Up to `steps` more tokens of each row in `slots`, in that order; one where there are masks.

        The logits behind that one are under way then: to the next call the masks for these are given.

        Args:
          slots: rows that run. Others fill the program of the next size: what they hold stays as it is.
          steps: at most `BURST`.
          masks: int32 `[n, ceil(V/32)]`, of each row the tokens that may come; None: any, of all rows.
        """
        rows = bucketed(slots, self.buckets)
        drawn, scores, floors = self.needs(slots)
        if masks is not None or self.masked.pending(slots):
            way = self.way(scores=scores, floors=floors)
            self.state, burst = self.masked.step(self.state, rows, len(slots), masks, way)
            return burst
        how = self.way(greedy=not drawn, scores=scores, floors=floors, short=steps <= HURRIED)
        run = slot_programs.runner(how, len(rows) > 1)
        numbers = np.concatenate([rows, np.array([len(slots), steps], np.int32)])
        self.state, burst = run(self.config, self.params, self.state, numbers)
        return burst.underway()

    @leading.told
    def accept(self, slot: int, tokens: np.ndarray) -> None:
        """Takes tokens of a row that must come next, int32 `[n]`, as one chunk; `MaskedSteps.accept`."""
        self.state = self.masked.accept(self.state, slot, tokens, self.way())

    @leading.told
    def go_on(self, slot: int, limit: int) -> None:
        """A row that is done by its limit has another one, and is not done."""
        self.state = reopened(self.state, np.array([slot, limit], np.int32))
        self.masked.forget(slot)

    def needs(self, slots: Sequence[int]) -> Iterator[bool]:
        """Whether any of them needs a draw, scores, a floor."""
        return map(bool, np.any(self._needs[:, list(slots)], axis=1))

    def not_finite(self) -> JllamaError:
        """What the reader of a row that is not healthy is told."""
        return not_finite(self.state.cache.keys[0].dtype)
