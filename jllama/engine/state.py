"""What decoding depends on from token to token: the state, and how the next token gets in."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama import kernels
from jllama.errors import JllamaError
from jllama.kernels.target import Target
from jllama.layers.cache import KVCache
from jllama.layers.sampling import Sampling, Scores, TokenCounts, largest_and_sum, sample
from jllama.layers.shards import Shards

NO_TOKEN = -1
NEVER = -1e30  # a logit that nothing makes likely; finite, as a healthy row's are
# Minus infinity in effect: no bias or penalty brings it near `NEVER`, so an end that must come does.
BARRED = -3e38


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

    @classmethod
    def of_one(cls, cache: KVCache) -> "DecodeState":
        """Of a single row that has not begun: its beginning brings all but the cache."""
        nothing: Any = dict.fromkeys(field.name for field in dataclasses.fields(cls))
        return cls(**nothing | {"cache": cache})


@dataclasses.dataclass(frozen=True)
class Way:
    """How the steps of a state run: all that is decided before anything compiles."""

    target: Target
    greedy: bool = False  # every row takes the largest logit, with nothing added or taken away
    scores: bool = False  # log-probabilities are told
    floors: bool = False  # some row has a floor
    short: bool = False  # a loop of fixed length is a short one


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Burst:
    """What a call of the loop hands out, apart from the state."""

    # int32 [B, up to BURST + 2]: tokens in order, then NO_TOKEN; whether a row is done; whether it's healthy.
    # One array, since the host fetches each for itself.
    told: Array
    scores: Scores | None = None  # of the tokens: each leaf with an axis for them behind B

    @classmethod
    def of_step(cls, state: DecodeState, active: Array | None = None) -> "Burst":
        """Of the step that led to a state; `active`, bool `[B]`: the rows that took a token; None: all."""
        tokens = state.token if active is None else jnp.where(active, state.token, NO_TOKEN)
        scores = jax.tree.map(lambda leaf: leaf[:, None], state.scores)
        return cls.of(tokens[:, None], state.done, state.healthy, scores)

    @classmethod
    def of(cls, tokens: Array, done: Array, healthy: Array, scores: Scores | None = None) -> "Burst":
        """From int32 `[B, up to BURST]` and bool `[B]`."""
        ends = (flags.astype(jnp.int32)[:, None] for flags in (done, healthy))
        return cls(told=jnp.concatenate([tokens, *ends], axis=1), scores=scores)

    @property
    def tokens(self) -> np.ndarray:
        """int32 `[B, up to BURST]`, on the host; waits for them."""
        return np.asarray(self.told)[:, :-2]

    @property
    def done(self) -> np.ndarray:
        """bool `[B]`, likewise."""
        return np.asarray(self.told)[:, -2] > 0

    @property
    def healthy(self) -> np.ndarray:
        """bool `[B]`, likewise."""
        return np.asarray(self.told)[:, -1] > 0

    @property
    def arrived(self) -> bool:
        """Whether the device has it, or it never will."""
        return self.told.is_ready()  # type: ignore[attr-defined]

    def underway(self) -> "Burst":
        """Itself, on its way to the host as soon as the device has it."""
        for leaf in jax.tree.leaves(self):
            leaf.copy_to_host_async()
        return self


def not_finite(dtype: jnp.dtype) -> JllamaError:
    """What a reader is told of a row that ended because its logits were no numbers, in a cache of `dtype`."""
    advice = "use --dtype=bfloat16" if dtype == jnp.float16 else "is the checkpoint damaged?"
    return JllamaError(f"the model's logits are not finite in {dtype}: {advice}")


def reopened(state: DecodeState, numbers: np.ndarray) -> DecodeState:
    """The state in which row `numbers[0]` is not done, and has the limit `numbers[1]`."""
    limit, done = _reopened(state.limit, state.done, numbers)
    return dataclasses.replace(state, limit=limit, done=done)


@jax.jit
def _reopened(limit: Array, done: Array, numbers: Array) -> tuple[Array, Array]:
    return limit.at[numbers[0]].set(numbers[1]), done.at[numbers[0]].set(False)


def take_token(
    state: DecodeState,
    logits: Array,
    how: Way,
    mask: Array | None = None,
    *,
    shards: Shards | None = None,
) -> DecodeState:
    """Samples the next token of each row that is not done, by the target's kernel where there is one.

    Args:
      state: before it.
      logits: float32 `[B, V]`, or on several devices each one's own; whether a row is healthy and its scores
        are of these.
      how: not `greedy` with a mask.
      mask: int32 `[B, ceil(V/32)]`, a bit for each token that may come, the lowest first; None: any may.
      shards: of the model, where it has better than the target's.
    """
    only_largest = how.greedy and not how.scores and not how.floors
    logits = logits if only_largest else how.target.whole(logits, state.counts.answer.shape[1])
    open_logits = _without_ends(state, logits) if how.floors else logits
    shaped = open_logits if mask is None else _barred(open_logits, mask)
    state = _with_token(state, shaped, logits, how, shards or how.target.shards)
    return dataclasses.replace(state, scores=Scores.of(logits, state.token)) if how.scores else state


def _without_ends(state: DecodeState, logits: Array) -> Array:
    """Logits `[B, V]` in which rows below their floor can't choose what would end them."""
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    barred = (state.stop_ids != NO_TOKEN) & (state.generated < state.floor)[:, None]
    places = jnp.where(barred, state.stop_ids, logits.shape[1])  # past the end: dropped
    return logits.at[rows, places].set(NEVER, mode="drop")


def _barred(logits: Array, mask: Array) -> Array:
    """Logits `[B, V]` in which only tokens with a bit can be chosen. What is no number stays, to be seen."""
    V = logits.shape[1]
    bits = (mask[:, :, None] >> jnp.arange(32, dtype=jnp.int32)[None, None, :]) & 1
    allowed = bits.reshape(mask.shape[0], -1)[:, :V] > 0
    return jnp.where(allowed | ~jnp.isfinite(logits), logits, BARRED)


def _with_token(
    state: DecodeState, logits: Array, raw: Array, how: Way, shards: Shards | None
) -> DecodeState:
    """`take_token` from logits that were changed; `raw` are the model's own."""
    if not how.greedy and kernels.chooses_tokens(logits.shape[-1], how.target):
        return _take_by_kernel(state, logits)
    active = ~state.done
    if how.greedy:
        token, total = largest_of_all(logits, state.counts.answer.shape[1], shards)
    else:
        token = sample(logits, state.sampling, state.counts, _uniform(state.keys, state.generated))
        total = jnp.sum(raw, axis=-1)
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


def largest_of_all(logits: Array, vocab_size: int, shards: Shards | None) -> tuple[Array, Array]:
    """Of all logits, whether they are here or on several devices."""
    token, total = largest_and_sum(logits)
    each = logits.shape[-1]
    if shards is None or each == vocab_size:
        return token, total
    values = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    device, token, total = shards.largest_and_sum(values, token, total)
    return device * each + token, total


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
