"""What decoding depends on from token to token: the state, its beginning, and how the next token gets in."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jllama import kernels
from jllama.kernels.target import Target, target_of
from jllama.layers.cache import KVCache
from jllama.layers.sampling import Sampling, Scores, TokenCounts, largest_and_sum, sample

NO_TOKEN = -1
NEVER = -1e30  # a logit that nothing makes likely; finite, as a healthy row's are


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeState:
    """All that the next step depends on."""

    cache: KVCache
    token: Array  # int32 [B]: sampled last, not yet in the cache
    generated: Array  # int32 [B]: how many tokens were sampled
    limit: Array  # int32 [B]: how many may be
    floor: Array  # int32 [B]: how many there are before a stop id may come
    done: Array  # bool [B]
    healthy: Array  # bool [B]: all logits so far were finite
    keys: Array  # uint32 [B, 2]: the randomness of each row
    stop_ids: Array  # int32 [B, E]: tokens that end a row
    sampling: Sampling
    counts: TokenCounts
    scores: Scores | None = None  # of `token`, where `Way.scores` asks for them


@dataclasses.dataclass(frozen=True)
class Way:
    """How the steps of a state run: all that is decided before anything compiles."""

    target: Target
    greedy: bool = False  # every row takes the largest logit, with nothing added or taken away
    scores: bool = False  # log-probabilities are told
    floors: bool = False  # some row has a floor
    short: bool = False  # a loop of fixed length is a short one

    @classmethod
    def of(cls, tree: Any, sampling: Sampling, floor: ArrayLike = 0) -> "Way":
        """Of a state whose arrays lie where the tree's do. `sampling` and `floor`: as built on the host.

        On a GPU greedy rows get a loop of their own: XLA finds the largest logits of many rows sooner than
        our kernel, and without that a loop for all settings would branch. Elsewhere one serves them all.
        """
        target = target_of(tree)
        return cls(target, target.on_gpu and sampling.is_greedy(), floors=bool(np.any(floor)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Burst:
    """What a call of the loop hands out, apart from the state."""

    tokens: Array  # int32 [B, up to BURST]: in order, then NO_TOKEN
    done: Array  # bool [B]
    healthy: Array  # bool [B]
    scores: Scores | None = None  # of the tokens: each leaf with an axis for them behind B


def start_decode(
    cache: KVCache,
    logits: ArrayLike,
    sampling: Sampling,
    prompt: ArrayLike,
    n_prompt: ArrayLike,
    keys: ArrayLike,
    limit: ArrayLike,
    stop_ids: ArrayLike,
    floor: ArrayLike | None = None,
) -> tuple[DecodeState, Burst, Way]:
    """Samples the first token from the prompt's last logits.

    Args:
      cache: what `prefill` gave; donated.
      logits: float32 `[B, V]`, likewise.
      sampling: the settings of each row, as host arrays.
      prompt: int32 `[B, S]`, right-padded, and its lengths `n_prompt`, int32 `[B]`: for the penalties.
      n_prompt: see `prompt`.
      keys: uint32 `[B, 2]`, the randomness of each row.
      limit: int32 `[B]`, how many tokens a row may generate.
      stop_ids: int32 `[B, E]`, tokens that end each row; `NO_TOKEN` where there are fewer.
      floor: int32 `[B]`, how many tokens a row generates before one of those may come; None: 0.

    Returns:
      The state, the first token, and how the next ones are to be computed.
    """
    floor = np.zeros_like(limit) if floor is None else floor
    how = Way.of(cache, sampling, floor)
    state, first = _start_decode(
        cache, logits, sampling, prompt, n_prompt, keys, limit, stop_ids, floor, how=how
    )
    return state, first, how


@partial(jax.jit, donate_argnames=("cache",), static_argnames=("how",))
def _start_decode(
    cache: KVCache,
    logits: Array,
    sampling: Sampling,
    prompt: Array,
    n_prompt: Array,
    keys: Array,
    limit: Array,
    stop_ids: Array,
    floor: Array,
    *,
    how: Way,
) -> tuple[DecodeState, Burst]:
    B, V = logits.shape
    state = DecodeState(
        cache=cache,
        token=jnp.zeros((B,), jnp.int32),
        generated=jnp.zeros((B,), jnp.int32),
        limit=limit,
        floor=floor,
        done=jnp.zeros((B,), bool),
        healthy=jnp.ones((B,), bool),
        keys=keys,
        stop_ids=stop_ids,
        sampling=sampling,
        counts=TokenCounts.of_prompt(prompt, n_prompt, V),
    )
    state = take_token(state, logits, how)
    return state, Burst(tokens=state.token[:, None], done=state.done, healthy=state.healthy)


def take_token(state: DecodeState, logits: Array, how: Way) -> DecodeState:
    """Samples the next token of each row that is not done, by the target's kernel where there is one."""
    state = _with_token(state, _without_ends(state, logits) if how.floors else logits, how)
    return dataclasses.replace(state, scores=Scores.of(logits, state.token)) if how.scores else state


def _without_ends(state: DecodeState, logits: Array) -> Array:
    """Logits `[B, V]` in which rows below their floor can't choose what would end them."""
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    barred = (state.stop_ids != NO_TOKEN) & (state.generated < state.floor)[:, None]
    places = jnp.where(barred, state.stop_ids, logits.shape[1])  # past the end: dropped
    return logits.at[rows, places].set(NEVER, mode="drop")


def _with_token(state: DecodeState, logits: Array, how: Way) -> DecodeState:
    if not how.greedy and kernels.chooses_tokens(logits.shape[-1], how.target):
        return _take_by_kernel(state, logits)
    active = ~state.done
    if how.greedy:
        token, total = largest_and_sum(logits)
    else:
        token = sample(logits, state.sampling, state.counts, _uniform(state.keys, state.generated))
        total = jnp.sum(logits, axis=-1)
    token = jnp.where(active, token, state.token)
    generated = state.generated + active.astype(jnp.int32)
    ended = jnp.any(token[:, None] == state.stop_ids, axis=-1) | (generated >= state.limit)
    # A sum, not a maximum: XLA on a CPU passes over a NaN when it takes the largest.
    finite = jnp.isfinite(total) | state.done
    return dataclasses.replace(
        state,
        token=token,
        generated=generated,
        done=state.done | (ended & active) | ~finite,
        healthy=state.healthy & finite,
        counts=state.counts if how.greedy else state.counts.add(token, active),
    )


def _take_by_kernel(state: DecodeState, logits: Array) -> DecodeState:
    rows = kernels.gpu.Rows(
        token=state.token, generated=state.generated, done=state.done, healthy=state.healthy
    )
    rows, counts = kernels.gpu.sample_rows(
        logits,
        state.sampling,
        state.counts,
        rows,
        keys=state.keys,
        limit=state.limit,
        stop_ids=state.stop_ids,
    )
    return dataclasses.replace(state, **vars(rows), counts=counts)


def _uniform(keys: Array, position: Array) -> Array:
    """Counter-based: the draw of a row depends on its key and position alone, never on its neighbours."""

    def draw(key: Array, position: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key), position))

    return jax.vmap(draw)(keys, position)
