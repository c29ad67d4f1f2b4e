"""Compiles all programs of slots before the first request, from shapes alone: nothing is allocated.

Those for answers that must match are apart: most engines are never asked for one.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jllama.engine import asking, masked_programs, slot_programs
from jllama.engine.rows import Row
from jllama.engine.slots import SCORED, Slots
from jllama.engine.state import Way
from jllama.grammar.constraint import mask_width
from jllama.kernels.programs import Program
from jllama.layers.sampling import Sampling

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]  # a jitted function and its arguments


def compile_all(slots: Slots, *, masked: bool = False) -> int:
    """Compiles what requests of any kind may need; JAX keeps it. Returns how many programs there are.

    Args:
      slots: which.
      masked: what answers that must match need beside it, instead.
    """
    programs = list(_masked_programs(slots) if masked else _programs(slots))
    for program, arguments, options in programs:
        if isinstance(program, Program):
            program.prepare(*arguments, **options)
        else:
            program.lower(*arguments, **options).compile()  # type: ignore[attr-defined]
    return len(programs)


def prepare_beginning(slots: Slots, row: Row) -> threading.Thread:
    """A thread makes ready what begins a text that is alone, while its prompt's program is compiled.

    Args:
      slots: one.
      row: what needs no mask. With more ids that end it than others have, its program is another.
    """
    how, V = slots.way(scores=row.scores, floors=row.floor > 0), slots.config.vocab_size
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), slots.before)
    arguments = (state, *_beginning(slots, jax.ShapeDtypeStruct((1, V), jnp.float32), slots.max_len))

    def prepare() -> None:
        with contextlib.suppress(Exception):  # who calls the program hears of it
            slot_programs.begin.prepare(*arguments, how=how)

    thread = threading.Thread(target=prepare, name="jllama beginning", daemon=True)
    thread.start()
    return thread


def _programs(slots: Slots) -> Iterator[Call]:
    params, state = jax.tree.map(_shape, (slots.params, slots.state))
    model = (slots.config, params)
    for size in _chunks(slots):
        for together in {1, slots.group(size)}:
            chunk = np.zeros((together, 4 + size), np.int32)
            for fresh in {slots.fresh(start) for start in range(2)}:
                yield slot_programs.reader(slots.target, size, fresh), (*model, state.cache, chunk), {}
        if size <= SCORED:
            longer = np.zeros((1, 5 + size), np.int32)
            yield slot_programs.scorer(slots.target, size), (*model, state.cache, longer), {}
    yield from _beginnings(slots)
    for bucket, how in itertools.product(slots.buckets, _ways(slots, "greedy", "scores", "floors", "short")):
        yield slot_programs.runner(how, bucket > 1), (*model, state, np.zeros((bucket + 2,), np.int32)), {}
    here = dict(target=slots.target)
    yield slot_programs.clear, (state.cache, np.int32(0)), here
    for size in {min(slots.max_len, 1 << n) for n in range(slots.max_len.bit_length() + 1)}:
        yield slot_programs.copy_prefix, (state.cache, np.zeros((3,), np.int32)), dict(size=size, **here)


def _masked_programs(slots: Slots) -> Iterator[Call]:
    params, state = jax.tree.map(_shape, (slots.params, slots.state))
    V, sharding = slots.config.vocab_size, state.cache.length.sharding
    logits = jax.ShapeDtypeStruct((slots.buckets[-1], V), jnp.float32, sharding=sharding)
    yield from _beginnings(slots, masked=True)
    if slots.masked.asks:
        yield from _askers(slots)
        return
    halves = (masked_programs.changing_of(state), masked_programs.kept_of(state))
    leaves, weights = jax.tree.flatten(params)
    forced = np.zeros((2 + slots.target.chunk_sizes[0],), np.int32)
    one = jax.ShapeDtypeStruct((1, V), jnp.float32, sharding=sharding)
    yield masked_programs.accepter(slots.target), (halves[0], logits, one, forced), {}
    for bucket in slots.buckets:
        numbers = jax.ShapeDtypeStruct((3, bucket), jnp.int32, sharding=sharding)
        mask = jax.ShapeDtypeStruct((bucket, mask_width(V)), jnp.int32, sharding=sharding)
        feed = masked_programs.feeder(slots.config, weights, slots.target, bucket > 1)
        yield feed, (leaves, state.cache, logits, state.token, state.done, numbers), {}
        for how in _ways(slots, "scores", "floors"):
            yield masked_programs.chooser(how), (*halves, logits, mask, numbers), {}


def _askers(slots: Slots) -> Iterator[Call]:
    params, state = jax.tree.map(_shape, (slots.params, slots.state))
    addresses = jax.ShapeDtypeStruct((4,), jnp.int32, sharding=state.cache.length.sharding)
    forced = np.zeros((2 + slots.target.chunk_sizes[0],), np.int32)
    yield asking.take, (masked_programs.changing_of(state), forced), {}
    for bucket, how in itertools.product(slots.buckets, _ways(slots, "scores", "floors")):
        arguments = (slots.config, params, state, np.zeros((bucket + 2,), np.int32), addresses)
        yield asking.asker(how, bucket), arguments, {}


def _beginnings(slots: Slots, *, masked: bool = False) -> Iterator[Call]:
    state = jax.tree.map(_shape, slots.before)
    V, sharding = slots.config.vocab_size, state.cache.length.sharding
    sizes = {slots.prompt_size(count) for count in _powers(slots.max_len)}
    rows = {1} if slots.alone else {1, slot_programs.GROUP}
    for how, size, b in itertools.product(_ways(slots, "scores", "floors"), sizes, rows):
        logits = jax.ShapeDtypeStruct((b, V), jnp.float32, sharding=sharding)
        yield slot_programs.begin, (state, *_beginning(slots, logits, size, masked)), dict(how=how)


def _beginning(
    slots: Slots, logits: jax.ShapeDtypeStruct, size: int, masked: bool = False
) -> tuple[Any, ...]:
    """What `slot_programs.begin` takes behind the state, with places for prompts of that size."""
    b, V = logits.shape
    sampling, keys = Sampling.build(batch=b, vocab_size=V), np.zeros((b, 2), np.uint32)
    numbers, stops = np.zeros((b, 5), np.int32), np.zeros((b, slots.stops), np.int32)
    mask = np.zeros((b, mask_width(V)), np.int32) if masked else None
    return logits, numbers, keys, stops, np.zeros((b, size), np.int32), sampling, mask


def _ways(slots: Slots, *choices: str) -> set[Way]:
    """All that these choices of `Slots.way` can lead to."""
    flags = itertools.product((False, True), repeat=len(choices))
    return {slots.way(**dict(zip(choices, chosen, strict=True))) for chosen in flags}


def _chunks(slots: Slots) -> list[int]:
    """Sizes of every chunk that a prompt which fits in a slot is cut into."""
    borders = {min(count + more, slots.max_len - 1) for count in _powers(slots.max_len) for more in (0, 1)}
    return sorted({slots.next_chunk(left, scored=scored) for left in borders for scored in (False, True)})


def _powers(most: int) -> list[int]:
    """Powers of two below `most`, and the number below it: where the size of a program may change."""
    return [*(1 << n for n in range((most - 1).bit_length())), most - 1]


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    sharding = array.sharding if array.committed else None
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
