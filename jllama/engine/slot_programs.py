"""The programs of `Slots`: they take a donated state, or its cache, and give the next one.

A state of one row is that row: nothing is gathered, and the kernels for a single text see a cache without
`rows`.
"""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jllama import kernels, sharding
from jllama.config import ModelConfig
from jllama.engine.state import NO_TOKEN, Burst, DecodeState, Way, take_token
from jllama.engine.step import decode_steps
from jllama.kernels.programs import Program, kept
from jllama.kernels.target import Target
from jllama.layers.cache import KVCache
from jllama.layers.sampling import LIKELIEST, Sampling, Scores, TokenCounts
from jllama.model import Params
from jllama.sharding import CACHE, WHOLE

Steps = Callable[[DecodeState], tuple[DecodeState, Burst]]
GROUP = 8  # prompts that are read together, at most
_SPECS: Any = {field.name: WHOLE for field in dataclasses.fields(DecodeState)}
STATE = DecodeState(
    **_SPECS | {"cache": CACHE, "scores": None}
)  # on a mesh: all of it everywhere, but the cache


def empty(cache: KVCache, vocab_size: int, stops: int) -> DecodeState:
    """The state of slots that hold nothing."""
    slots, V = cache.batch, vocab_size
    return DecodeState(
        cache=dataclasses.replace(cache, length=jnp.zeros((slots,), jnp.int32)),
        token=jnp.zeros((slots,), jnp.int32),
        generated=jnp.zeros((slots,), jnp.int32),
        limit=jnp.zeros((slots,), jnp.int32),
        floor=jnp.zeros((slots,), jnp.int32),
        done=jnp.ones((slots,), bool),
        healthy=jnp.ones((slots,), bool),
        keys=jnp.zeros((slots, 2), jnp.uint32),
        stop_ids=jnp.full((slots, stops), NO_TOKEN, jnp.int32),
        sampling=jax.tree.map(jnp.asarray, Sampling.build(batch=slots, vocab_size=V)),
        counts=TokenCounts(prompt=jnp.zeros((slots, V), bool), answer=jnp.zeros((slots, V), jnp.int32)),
    )


def compiled(
    run: Callable[..., Any],
    target: Target,
    out: Any,
    *,
    options: dict[str, Any] | None,
    donated: tuple[int, ...] = (2,),
) -> Program:
    """`run(config, params, state or cache, *arrays)` compiled, on each of the target's devices; what it works
    on is `donated`. `out`: how its results lie on them (`STATE`, `CACHE`, or `WHOLE`: the same everywhere).
    """

    def program(config: ModelConfig, params: Params, state: Any, *arrays: Array) -> Any:
        return sharding.everywhere(partial(run, config), target.mesh, out)(params, state, *arrays)

    program.__name__ = run.__name__
    return Program(program, 1, static_argnums=0, donate_argnums=donated, compiler_options=options)


def _seen(cache: KVCache, rows: Array) -> KVCache:
    """The cache, seen through some rows."""
    return cache if cache.batch == 1 else cache.at(rows)


def _whole(cache: KVCache, view: KVCache) -> KVCache:
    """The whole cache again after a call on what `_seen` gave."""
    return view if cache.batch == 1 else cache.with_rows_of(view)


def some_rows(state: DecodeState, rows: Array) -> DecodeState:
    """The state of some rows: the cache seen through them, everything else gathered."""
    if state.cache.batch == 1:
        return state
    rest = dataclasses.replace(state, cache=None)  # type: ignore[arg-type]
    return dataclasses.replace(jax.tree.map(lambda leaf: leaf[rows], rest), cache=state.cache.at(rows))


def _with(state: DecodeState, rows: Array, new: DecodeState) -> DecodeState:
    """The whole state with new rows."""
    if state.cache.batch == 1:
        return new

    def put(old: Array, leaf: Array) -> Array:
        return old.at[rows].set(leaf, unique_indices=True)

    rest, changed = (dataclasses.replace(s, cache=None) for s in (state, new))  # type: ignore[arg-type]
    merged = jax.tree.map(put, rest, changed)
    return dataclasses.replace(merged, cache=state.cache.with_rows_of(new.cache))


def _with_steps(state: DecodeState, rows: Array, new: DecodeState, greedy: bool) -> DecodeState:
    """`_with` after steps: what they do not change is not written either."""
    if state.cache.batch == 1:
        return new
    names = ("token", "generated", "done", "healthy")
    put = {name: getattr(state, name).at[rows].set(getattr(new, name), unique_indices=True) for name in names}
    answer = state.counts.answer
    answer = answer if greedy else answer.at[rows].set(new.counts.answer, unique_indices=True)
    counts = dataclasses.replace(state.counts, answer=answer)
    return dataclasses.replace(state, **put, counts=counts, cache=state.cache.with_rows_of(new.cache))


def _forward(
    config: ModelConfig, params: Params, cache: KVCache, chunk: Array, tokens: Array, **options: Any
) -> tuple[Array, KVCache]:
    """`kernels.forward` of `tokens` (int32 `[b, T]`) in the slots that a `chunk` of `reader` names."""
    rows, start, n_valid, context = (chunk[:, i] for i in range(4))
    view = dataclasses.replace(_seen(cache, rows), length=start)
    options |= dict(n_valid=n_valid, context=context)
    logits, view = kernels.forward(config, params, tokens, view, **options)
    return options["target"].whole(logits, config.vocab_size), _whole(cache, view)


@functools.cache
def reader(target: Target, size: int, fresh: bool = False) -> Callable[..., tuple[Array, KVCache]]:
    """Puts chunks of b prompts into their slots: `chunk` is int32 `[b, 4 + size]`, of each the slot, the
    start, how many of the tokens count, the length of the whole prompt, then the tokens. Gives float32 logits
    `[1, V]`, or `[GROUP, V]` of several: those behind b mean nothing. `fresh`: nothing precedes them.
    """

    def read(config: ModelConfig, params: Params, cache: KVCache, chunk: Array) -> tuple[Array, KVCache]:
        logits, cache = _forward(config, params, cache, chunk, chunk[:, 4:], target=target, fresh=fresh)
        b = chunk.shape[0]
        return jnp.pad(logits[:, 0], ((0, 0 if b == 1 else GROUP - b), (0, 0))), cache

    return compiled(read, target, (WHOLE, CACHE), options=target.chunk_options(size))


@functools.cache
def scorer(target: Target, size: int) -> Callable[..., tuple[Array, Scores, KVCache]]:
    """`reader` of one prompt, with a token more in the chunk, that also scores what stands behind each."""

    def read(
        config: ModelConfig, params: Params, cache: KVCache, chunk: Array
    ) -> tuple[Array, Scores, KVCache]:
        options: Any = dict(target=target, last_only=False)
        logits, cache = _forward(config, params, cache, chunk, chunk[:, 4:-1], **options)
        last = jax.lax.dynamic_slice_in_dim(logits[0], chunk[0, 2] - 1, 1)
        return last, Scores.of(logits[0], chunk[0, 5:]), cache

    return compiled(read, target, (WHOLE, WHOLE, CACHE), options=target.chunk_options(size))


@kept(donate_argnames="state", static_argnames="how")
def begin(state: DecodeState, *arrays: Any, how: Way) -> tuple[DecodeState, Burst]:
    """Samples the first tokens of b slots, from the arrays that `_begin` takes."""
    return sharding.everywhere(partial(_begin, how), how.target.mesh, (STATE, WHOLE))(state, *arrays)


def _begin(
    how: Way,
    state: DecodeState,
    logits: Array,
    numbers: Array,
    keys: Array,
    stop_ids: Array,
    prompt: Array,
    sampling: Sampling,
    mask: Array | None = None,
) -> tuple[DecodeState, Burst]:
    """`numbers`: int32 `[b, 5]`, of each the slot (a number that is none: nothing is kept), which of the
    logits (all V of each) are its, the length of its prompt, limit, floor; `mask` as in `take_token`, in the
    order of the slots.
    """
    rows, which, n_prompt, limit, floor = (numbers[:, i] for i in range(5))
    zeros, logits = jnp.zeros_like(rows), logits[which]
    new = DecodeState(
        cache=_seen(state.cache, rows),
        token=zeros,
        generated=zeros,
        limit=limit,
        floor=floor,
        done=zeros > 0,
        healthy=zeros == 0,
        keys=keys,
        stop_ids=stop_ids,
        sampling=sampling,
        counts=TokenCounts.of_prompt(prompt, n_prompt, logits.shape[-1]),
    )
    new = take_token(new, logits, how, mask)
    return _with(state, rows, dataclasses.replace(new, scores=None)), Burst.of_step(new)


@functools.cache
def runner(how: Way, batched: bool) -> Callable[..., tuple[DecodeState, Burst]]:
    """A burst of some rows: `numbers` is int32 `[b + 2]`, slots, how many of them run, how many steps."""

    def run(
        config: ModelConfig, params: Params, state: DecodeState, numbers: Array
    ) -> tuple[DecodeState, Burst]:
        rows, live, steps = numbers[:-2], numbers[-2], numbers[-1]
        burst = partial(decode_steps, config, params, steps=steps, how=how)
        return on_rows(state, rows, live, how, burst)

    return compiled(run, how.target, (STATE, WHOLE), options=how.target.step_options(1 + batched))


def on_rows(
    state: DecodeState, rows: Array, live: Array, how: Way, steps: Steps
) -> tuple[DecodeState, Burst]:
    """The whole state after `steps` of some rows, int32 `[b]`: all but the first `live` stay as they are."""
    some = some_rows(state, rows)
    fills = jnp.arange(rows.shape[0], dtype=jnp.int32) >= live
    scores = _no_scores(rows.shape[0], state.counts.answer.shape[1]) if how.scores else None
    new, burst = steps(dataclasses.replace(some, done=some.done | fills, scores=scores))
    new = dataclasses.replace(new, done=jnp.where(fills, some.done, new.done), scores=None)
    return _with_steps(state, rows, new, how.greedy), burst


def _no_scores(rows: int, vocab_size: int) -> Scores:
    k = min(LIKELIEST, vocab_size)
    return Scores(chosen=jnp.zeros((rows,)), ids=jnp.zeros((rows, k), jnp.int32), values=jnp.zeros((rows, k)))


@partial(jax.jit, donate_argnames="cache", static_argnames="target")
def clear(cache: KVCache, slot: Array, *, target: Target) -> KVCache:
    """Zeros in a slot, which holds nothing then."""
    cleared = kernels.copy_row(cache, -1, slot, cache.max_len, target)
    return dataclasses.replace(cleared, length=cache.length.at[slot].set(0))


@partial(jax.jit, donate_argnames="cache", static_argnames=("size", "target"))
def copy_prefix(cache: KVCache, numbers: Array, *, size: int, target: Target) -> KVCache:
    """The first `size` positions of row `numbers[0]` into row `numbers[1]`; `numbers[2]` of them count."""
    source, to, count = numbers
    copied = kernels.copy_row(cache, source, to, size, target)
    return dataclasses.replace(copied, length=cache.length.at[to].set(count))
