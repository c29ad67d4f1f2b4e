"""From logits to the next token. Settings are data, not code: a new temperature never recompiles."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Candidates looked at before the whole vocabulary is sorted: a full sort of 32,000 costs 9 ms on a CPU.
WINDOW = 128
LIKELIEST = 20  # tokens whose log-probabilities are told, at most


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of each row, applied in this order.

    1. `logit_bias` is added.
    2. `repetition_penalty` r (Keskar et al. 2019, https://arxiv.org/abs/1909.05858): logits of tokens in the
       prompt or the answer are divided by r if positive, multiplied by r if not.
    3. `presence_penalty` is subtracted once from tokens in the answer, `frequency_penalty` once for each
       time they occur there (the OpenAI API's definitions).
    4. Division by `temperature`; 0 takes the largest logit and skips what follows.
    5. `top_k` keeps the k largest (0: all; equal logits: lower ids first).
    6. `top_p` keeps the smallest set of the most probable tokens whose probability, of what step 5 left,
       reaches p (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751); always the first one.
    7. `min_p` keeps tokens at least p times as probable as the most probable one.
    """

    temperature: Array  # float32 [B], >= 0
    top_k: Array  # int32 [B], >= 0
    top_p: Array  # float32 [B], (0, 1]
    min_p: Array  # float32 [B], [0, 1]
    repetition_penalty: Array  # float32 [B], > 0
    presence_penalty: Array  # float32 [B]
    frequency_penalty: Array  # float32 [B]
    logit_bias: Array  # float32 [B, V]
    biased: Array  # bool [B]: whether a row's `logit_bias` holds anything

    @classmethod
    def build(
        cls,
        *,
        batch: int,
        vocab_size: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: dict[int, float] | None = None,
    ) -> "Sampling":
        """The same settings for every row, as host arrays: building them compiles nothing."""
        bias = _no_bias(batch, vocab_size)
        if logit_bias:
            bias = bias.copy()
            bias[:, list(logit_bias)] = list(logit_bias.values())
        numbers = {
            "temperature": temperature,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
        }
        rows: dict[str, Any] = {name: np.full((batch,), value, np.float32) for name, value in numbers.items()}
        rows["top_k"] = np.full((batch,), top_k, np.int32)
        biased = any((logit_bias or {}).values())
        rows |= {"biased": np.full((batch,), biased), "logit_bias": bias}
        return cls(**rows)

    def is_greedy(self) -> bool:
        """Whether every row takes the largest logit, with nothing added or taken away. Asks host arrays."""
        return bool(np.all((self.temperature == 0) & self.plain))

    @property
    def plain(self) -> Array:
        """Of each row whether nothing is added to its logits or taken away, bool `[B]`."""
        unpenalised = (self.presence_penalty == 0) & (self.frequency_penalty == 0)
        return unpenalised & (self.repetition_penalty == 1) & ~self.biased


@functools.lru_cache(maxsize=8)
def _no_bias(batch: int, vocab_size: int) -> np.ndarray:
    """Zeros for all who ask for no bias: half a megabyte of them each time costs more than all else here."""
    zeros = np.zeros((batch, vocab_size), np.float32)
    zeros.setflags(write=False)
    return zeros


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Log-probabilities of the model's own distribution: no bias, penalty, temperature or mask in it."""

    chosen: Array  # float32 [B]: of the token that was taken
    ids: Array  # int32 [B, k]: the likeliest tokens, falling
    values: Array  # float32 [B, k]: theirs

    @classmethod
    def of(cls, logits: Array, token: Array) -> "Scores":
        """From logits, float32 `[B, V]`, and the tokens that were taken, int32 `[B]`."""
        logs = jax.nn.log_softmax(logits, axis=-1)
        values, ids = jax.lax.top_k(logs, min(LIKELIEST, logits.shape[-1]))
        chosen = jnp.take_along_axis(logs, token[:, None], axis=-1)[:, 0]
        return cls(chosen=chosen, ids=ids.astype(jnp.int32), values=values)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Which tokens a row has seen, for the penalties."""

    prompt: Array  # bool [B, V]: occurs in the prompt
    answer: Array  # int32 [B, V]: how often it occurs in the answer

    @classmethod
    def of_prompt(cls, tokens: Array, n_valid: Array, vocab_size: int) -> "TokenCounts":
        """Counts of right-padded prompts, int32 `[B, T]`, of which the first `n_valid` (`[B]`) count."""
        B, T = tokens.shape
        valid = jnp.arange(T, dtype=jnp.int32)[None, :] < n_valid[:, None]
        rows = jnp.arange(B, dtype=jnp.int32)[:, None]
        places = jnp.where(valid, tokens, vocab_size)
        prompt = jnp.zeros((B, vocab_size), bool).at[rows, places].set(True, mode="drop")
        return cls(prompt=prompt, answer=jnp.zeros((B, vocab_size), jnp.int32))

    def add(self, tokens: Array, active: Array) -> "TokenCounts":
        """Counts one more token of each row that is `active` (bool `[B]`)."""
        rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        answer = self.answer.at[rows, tokens].add(active.astype(jnp.int32), mode="drop")
        return dataclasses.replace(self, answer=answer)


def sample(logits: Array, sampling: Sampling, counts: TokenCounts, uniform: Array) -> Array:
    """The next token of each row.

    Args:
      logits: float32 `[B, V]`.
      sampling: the settings of each row.
      counts: what each row has seen.
      uniform: float32 `[B]` in [0, 1): all the randomness there is. Candidates stand in order of falling
        probability, and the one in whose share of the total `uniform` falls is taken.

    Returns:
      int32 `[B]`.
    """
    with jax.named_scope("sample"):
        is_greedy = sampling.temperature == 0

        def shaped() -> Array:
            penalised = penalize(logits + sampling.logit_bias, sampling, counts)
            greedy = largest(penalised)
            draw = functools.partial(_draw, penalised, sampling, uniform, is_greedy)
            return jnp.where(is_greedy, greedy, jax.lax.cond(jnp.all(is_greedy), lambda: greedy, draw))

        return jax.lax.cond(jnp.all(is_greedy & sampling.plain), lambda: largest(logits), shaped)


def largest(logits: Array) -> Array:
    """The first of the largest logits of each row, int32 `[B]`.

    In two stages: on a CPU that takes 8 µs for 49,152 logits where `jnp.argmax` takes 226.
    """
    B, V = logits.shape
    groups = jnp.pad(logits, ((0, 0), (0, -V % 256)), constant_values=-jnp.inf).reshape(B, -1, 256)
    group = jnp.argmax(jnp.max(groups, axis=-1), axis=-1)
    inside = jnp.take_along_axis(groups, group[:, None, None], axis=1)[:, 0]
    return (group * 256 + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def largest_and_sum(logits: Array) -> tuple[Array, Array]:
    """`largest`, int32 `[B]`, and the sum of each row, float32 `[B]`, in one pass: for a GPU.

    There each reduction of its own is two kernels, and at batch 1 they take longer than what they read.
    """

    def join(
        left: tuple[Array, Array, Array], right: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        (x, i, s), (y, j, t) = left, right
        take_left = (x > y) | ((x == y) & (i < j))
        return jnp.where(take_left, x, y), jnp.where(take_left, i, j), s + t

    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    nothing = (jnp.float32(-jnp.inf), jnp.int32(0), jnp.float32(0))
    _, token, total = jax.lax.reduce((logits, ids, logits), nothing, join, (1,))
    return token, total


def penalize(logits: Array, sampling: Sampling, counts: TokenCounts) -> Array:
    """Repetition, presence and frequency penalties on float32 `[B, V]`."""
    times = counts.answer.astype(jnp.float32)
    seen = counts.prompt | (counts.answer > 0)
    factor = jnp.where(seen, sampling.repetition_penalty[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / factor, logits * factor)
    present = sampling.presence_penalty[:, None] * (times > 0).astype(jnp.float32)
    return logits - present - sampling.frequency_penalty[:, None] * times


def _draw(logits: Array, sampling: Sampling, uniform: Array, is_greedy: Array) -> Array:
    """Looks at a window of the largest logits first, at all of them only if a row needs it."""
    # From the largest logit down, so that rounding stays small beside 1 however small the temperature is.
    below = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled = below / jnp.where(is_greedy, 1.0, sampling.temperature)[:, None]
    log_total = jnp.log(jnp.sum(jnp.exp(scaled), axis=-1))

    def pick(width: int) -> tuple[Array, Array]:
        return _pick_among(scaled, log_total, sampling, uniform, width)

    V = logits.shape[-1]
    if V <= WINDOW:
        return pick(V)[0]
    token, certain = pick(WINDOW)
    return jax.lax.cond(jnp.all(certain | is_greedy), lambda: token, lambda: pick(V)[0])


def _pick_among(
    scaled: Array, log_total: Array, sampling: Sampling, uniform: Array, width: int
) -> tuple[Array, Array]:
    """Picks among the `width` largest logits; also says for which rows that is the exact answer."""
    values, ids = jax.lax.top_k(scaled, width)  # [B, W], falling
    rank = jnp.arange(width, dtype=jnp.int32)[None, :]
    k = jnp.where(sampling.top_k > 0, sampling.top_k, scaled.shape[-1])[:, None]
    shares = jnp.where(rank < k, jnp.exp(values - log_total[:, None]), 0.0)  # of the whole vocabulary
    k_inside = k[:, 0] <= width
    whole = jnp.where(k_inside, jnp.sum(shares, axis=-1), 1.0)  # what top_k left
    before = jnp.cumsum(shares, axis=-1) - shares
    by_p = (before < sampling.top_p[:, None] * whole[:, None]) | (sampling.top_p[:, None] >= 1.0)
    kept = (rank < k) & by_p & (shares >= sampling.min_p[:, None] * shares[:, :1])
    kept = kept | (rank == 0)
    cumulative = jnp.cumsum(jnp.where(kept, shares, 0.0), axis=-1)
    # The last candidate is out, so every later one is: the kept set lies inside the window.
    complete = k_inside | ~kept[:, -1] | (width == scaled.shape[-1])
    target = uniform * jnp.where(complete, cumulative[:, -1], 1.0)
    # Sums that round differently never choose what has no share.
    last_kept = jnp.maximum(jnp.sum(kept & (shares > 0.0), axis=-1) - 1, 0)
    choice = jnp.minimum(jnp.sum(cumulative <= target[:, None], axis=-1), last_kept)
    # Nothing cut anywhere: a draw that falls inside the window needs no more than the window.
    uncut = (sampling.top_p >= 1.0) & (sampling.min_p <= 0.0) & (sampling.top_k == 0)
    certain = complete | (uncut & (target < cumulative[:, -1]))
    token = jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), certain
