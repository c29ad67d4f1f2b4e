"""The programs of a step in two halves: the model's logits, and the choice among those that a mask leaves.

Between them the host learns which token came and fills the masks, while the device computes what follows it.
Each program takes what it works on alone, since every array of a call costs the host time. `numbers`, int32
`[3, b]`, says of the b rows that it works on the slots, which of them run (1 or 0), and in which order their
tokens are told. Where these are all slots they stand in the slots' own order, and nothing is gathered.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import PyTreeDef

from jllama import kernels, sharding
from jllama.config import ModelConfig
from jllama.engine.state import Burst, DecodeState, Way, take_token
from jllama.kernels.target import Target
from jllama.layers.cache import KVCache
from jllama.model import Params
from jllama.sharding import CACHE, WHOLE

Changing = dict[str, Array]  # what a choice changes of a state


@functools.cache
def feeder(
    config: ModelConfig, weights: PyTreeDef, target: Target, batched: bool
) -> Callable[..., tuple[KVCache, Array]]:
    """Feeds the last tokens of some rows: `feed(leaves, cache, logits, token, done, numbers)` puts their
    logits into float32 `[slots, V]`, where rows that do not run keep theirs. `leaves` are the parameters',
    `weights` how they hang together: to take a tree apart is Python's work, some for each quantised leaf.
    """

    def feed(leaves: list[Array], cache: KVCache, logits: Array, *arrays: Array) -> tuple[KVCache, Array]:
        run = sharding.everywhere(functools.partial(_feed, config, target), target.mesh, (CACHE, WHOLE))
        return run(jax.tree.unflatten(weights, leaves), cache, logits, *arrays)

    return jax.jit(feed, donate_argnums=(1, 2), compiler_options=target.step_options(1 + batched))


def _feed(
    config: ModelConfig,
    target: Target,
    params: Params,
    cache: KVCache,
    logits: Array,
    token: Array,
    done: Array,
    numbers: Array,
) -> tuple[KVCache, Array]:
    rows, all_rows, alone = numbers[0], numbers.shape[1] == cache.batch, cache.batch == 1
    token, done, kept = (leaf if all_rows else leaf[rows] for leaf in (token, done, logits))
    active = ~done & (numbers[1] > 0)
    view = dataclasses.replace(cache, rows=None if alone else rows) if all_rows else cache.at(rows)
    n_valid = active.astype(jnp.int32)
    new, view = kernels.forward(config, params, token[:, None], view, n_valid=n_valid, target=target)
    new = target.whole(new, config.vocab_size)[:, 0]
    new = new if alone else jnp.where(active[:, None], new, kept)
    if all_rows:
        return dataclasses.replace(view, rows=None), new
    return cache.with_rows_of(view), logits.at[rows].set(new, unique_indices=True)


@functools.cache
def chooser(how: Way) -> Callable[..., tuple[Changing, Burst]]:
    """One more token of each row that runs, from `feeder`'s logits: `choose(changing, kept, logits, mask,
    numbers)` with the mask, int32 `[b, ceil(V/32)]`, as in `take_token`. What changes is donated.
    """

    def choose(
        changing: Changing, kept: DecodeState, logits: Array, mask: Array, numbers: Array
    ) -> tuple[Changing, Burst]:
        run = sharding.everywhere(functools.partial(_choose, how), how.target.mesh, (WHOLE, WHOLE))
        return run(changing, kept, logits, mask, numbers)

    return jax.jit(choose, donate_argnums=0)


@functools.cache
def accepter(target: Target) -> Callable[..., tuple[Changing, Array]]:
    """A row behind tokens that nothing chose: `accept(changing, logits, new, numbers)` with the logits behind
    them, float32 `[1, V]`, which it puts among all. `numbers`: int32 `[2 + n]`, the row's slot, how many
    of the tokens count, the tokens.
    """

    def accept(changing: Changing, logits: Array, new: Array, numbers: Array) -> tuple[Changing, Array]:
        run = sharding.everywhere(_accept, target.mesh, (WHOLE, WHOLE))
        return run(changing, logits, new, numbers)

    return jax.jit(accept, donate_argnums=(0, 1))


def _accept(changing: Changing, logits: Array, new: Array, numbers: Array) -> tuple[Changing, Array]:
    return taken(changing, numbers), logits.at[numbers[0]].set(new[0])


def taken(changing: Changing, numbers: Array) -> Changing:
    """With a row's tokens that nothing chose; `numbers` as of `accepter`."""
    slot, count, tokens = numbers[0], numbers[1], numbers[2:]
    V = changing["answer"].shape[1]
    places = jnp.where(jnp.arange(tokens.shape[0], dtype=jnp.int32) < count, tokens, V)
    changed = {
        "token": changing["token"].at[slot].set(tokens[count - 1]),
        "generated": changing["generated"].at[slot].add(count),
        "answer": changing["answer"].at[slot, places].add(1, mode="drop"),
    }
    return changing | changed


_NAMES = ("token", "generated", "done", "healthy")


def changing_of(state: DecodeState) -> Changing:
    """What a choice changes of a state."""
    return {name: getattr(state, name) for name in _NAMES} | {"answer": state.counts.answer}


def kept_of(state: DecodeState) -> DecodeState:
    """What a choice only reads of a state; not the cache."""
    counts = dataclasses.replace(state.counts, answer=None)  # type: ignore[arg-type]
    return dataclasses.replace(state, cache=None, counts=counts, **dict.fromkeys(_NAMES))  # type: ignore[arg-type]


def joined(kept: DecodeState, changing: Changing) -> DecodeState:
    """A state with what a choice changed."""
    counts = dataclasses.replace(kept.counts, answer=changing["answer"])
    named: Any = {name: leaf for name, leaf in changing.items() if name != "answer"}
    return dataclasses.replace(kept, counts=counts, **named)


def _choose(
    how: Way, changing: Changing, kept: DecodeState, logits: Array, mask: Array, numbers: Array
) -> tuple[Changing, Burst]:
    rows, runs, order = numbers[0], numbers[1] > 0, numbers[2]
    all_rows, state = len(rows) == len(logits), joined(kept, changing)
    some, own = (state, logits) if all_rows else jax.tree.map(lambda leaf: leaf[rows], (state, logits))
    paused = dataclasses.replace(some, done=some.done | ~runs)
    new = take_token(paused, own, how, mask)
    burst = Burst.of_step(new, ~paused.done)
    new = dataclasses.replace(new, done=jnp.where(runs, new.done, some.done))
    changed = changing_of(new)
    if all_rows:
        return changed, burst if len(rows) == 1 else jax.tree.map(lambda leaf: leaf[order], burst)
    put = {name: leaf.at[rows].set(changed[name], unique_indices=True) for name, leaf in changing.items()}
    return put, burst
