"""What the slots are given of a request, on the host: in which chunks, and how packed for one program."""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from jllama.errors import JllamaError
from jllama.grammar.constraint import Constraint
from jllama.layers.sampling import Sampling
from jllama.settings import CHOICES, GenerationSettings

# Programs that sample a first token count the prompt's tokens: few sizes, because each is compiled anew.
PROMPT_SIZES = tuple(512 * 8**n for n in range(8))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What a request brings along, as host arrays."""

    prompt: np.ndarray  # int32 [n]
    sampling: Sampling  # of one row
    key: np.ndarray  # uint32 [2]
    limit: int  # tokens that it may generate
    stop_ids: Sequence[int]
    floor: int = 0  # tokens before one of them may come
    scores: bool = False  # log-probabilities are told
    constraint: Constraint | None = None  # what the answer must match

    @classmethod
    def of(
        cls,
        prompt: Sequence[int],
        settings: GenerationSettings,
        *,
        ends: Iterable[int],
        vocab_size: int,
        max_len: int,
        scores: bool = False,
        constraint: Constraint | None = None,
    ) -> "Row":
        """Of a prompt's ids and the settings for its answer.

        Args:
          prompt: at most `max_len` ids.
          settings: with their seed.
          ends: ids that end the answer; those that the model can't say are left out.
          vocab_size: how many ids there are.
          max_len: positions that prompt and answer may fill.
          scores: tell the log-probabilities.
          constraint: what the answer must match.

        Raises:
          JllamaError: prompt or settings hold an id that is not in the vocabulary.
        """
        check_ids(prompt, settings, vocab_size)
        named = {name: getattr(settings, name) for name in (*CHOICES, "logit_bias")}
        return cls(
            prompt=np.asarray(prompt, np.int32),
            sampling=Sampling.build(batch=1, vocab_size=vocab_size, **named),
            key=key_of(settings),
            limit=min(settings.max_new_tokens, max_len - len(prompt)),
            stop_ids=[token for token in sorted(ends) if token in range(vocab_size)],
            floor=settings.min_new_tokens,
            scores=scores,
            constraint=constraint,
        )


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is read next of a prompt."""

    slot: int
    tokens: np.ndarray  # int32 [n]
    start: int  # positions of the slot that hold the tokens before
    context: int  # the length of the whole prompt


def key_of(settings: GenerationSettings) -> np.ndarray:
    """The randomness of a row, uint32 `[2]`, from its seed."""
    return np.array(divmod(settings.seed or 0, 2**32), np.uint32)


def check_ids(prompt: Sequence[int], settings: GenerationSettings, vocab_size: int) -> None:
    """Refuses ids that are not in the vocabulary."""
    given: dict[str, Iterable[int]] = {
        "the prompt": prompt,
        "logit_bias": settings.logit_bias,
        "stop_token_ids": settings.stop_token_ids,
    }
    for name, ids in given.items():
        foreign = [token for token in ids if not 0 <= token < vocab_size]
        if foreign:
            last = vocab_size - 1
            raise JllamaError(f"{name} holds token {foreign[0]}; the vocabulary goes from 0 to {last}")


def chunk_size(left: int, sizes: Sequence[int], *, pads_freely: bool = False) -> int:
    """Of the given sizes that of the chunk which begins a prompt's last `left` tokens; it may be padded.

    Padding up to twice the rest beats several small calls; beyond that the next smaller size goes first,
    where padding costs something.
    """
    above = [size for size in sizes if left <= size and (size <= 2 * left or pads_freely)]
    below = [size for size in sizes if size <= left]
    return min(above) if above else max(below) if below else min(sizes)


def prompt_places(count: int, max_len: int) -> int:
    """Of these sizes that for a prompt of `count` tokens."""
    return min(next(size for size in PROMPT_SIZES if size >= count), max_len)


def stacked(rows: Sequence[Sampling], size: int) -> Sampling:
    """The rows' settings as one of `size` rows; the last ones repeat the first."""
    filled = [*rows, *[rows[0]] * (size - len(rows))]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *filled) if size > 1 else rows[0]


def bucketed(slots: Sequence[int], buckets: Sequence[int]) -> np.ndarray:
    """int32 `[b]`: slots, and others that fill the program of the next size; the last size is all slots."""
    size = next(b for b in buckets if b >= len(slots))
    taken = frozenset(slots)
    others = (slot for slot in range(buckets[-1]) if slot not in taken)
    return np.array([*slots, *others][:size], np.int32)


def filled(masks: np.ndarray | None, size: int) -> np.ndarray | None:
    """Masks, int32 `[n, W]`, and for rows up to `size` some that allow all."""
    if masks is None:
        return None
    return np.concatenate([masks, np.full((size - len(masks), masks.shape[1]), -1, np.int32)])


def packed(pieces: Sequence[Piece], size: int, width: int, others: Sequence[int] = ()) -> np.ndarray:
    """The `chunk` of programs that read `size` tokens, with room for `width`; behind the pieces nothing for
    `others`, numbers of no slots.
    """
    chunk = np.zeros((len(pieces) + len(others), 4 + width), np.int32)
    chunk[len(pieces) :, 0] = others
    for row, piece in zip(chunk, pieces, strict=False):
        row[:4] = piece.slot, piece.start, min(len(piece.tokens), size), piece.context
        row[4 : 4 + len(piece.tokens)] = piece.tokens
    return chunk
