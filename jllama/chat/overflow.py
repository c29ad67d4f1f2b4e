"""What happens when a conversation outgrows the context."""

import bisect
from collections.abc import Callable

from jllama.errors import JllamaError

POLICIES = ("drop_oldest", "stop")


def check_policy(text: str) -> str:
    """`text`, if it is what `on_overflow` may be; else a `JllamaError`."""
    if text not in POLICIES:
        raise JllamaError(f"on_overflow={text!r} must be one of {', '.join(POLICIES)}")
    return text


def fit(
    encode: Callable[[int], list[int]],
    *,
    turns: int,
    dropped: int,
    wanted: int,
    size: int,
    policy: str,
    what: str = "the message is",
    may_grow: bool = True,
) -> tuple[list[int], int]:
    """The prompt, and how many of the oldest turns it leaves out so that an answer has room.

    Once turns must go, enough of them go that the next few turns reuse the cache again.

    Args:
      encode: the prompt without that many of the oldest turns.
      turns: how many there are before the question.
      dropped: how many are left out already.
      wanted: the longest answer, in tokens.
      size: of the context.
      policy: `drop_oldest`, or `stop` to refuse instead.
      what: is said to be too long if it is.
      may_grow: whether the model takes a longer context.

    Raises:
      JllamaError: there is no room.
    """
    dropped = min(dropped, turns)
    prompt, reserve = encode(dropped), min(wanted, size // 4)
    if len(prompt) + reserve <= size:
        return prompt, dropped
    if policy == "stop":
        _check_room(len(prompt), size, what, has_history=dropped < turns, may_grow=may_grow)
        return prompt, dropped
    room = size - reserve - size // 4

    def fits(count: int) -> bool:
        return len(encode(count)) <= room

    dropped = min(bisect.bisect_left(range(turns), True, lo=dropped, key=fits), turns)
    prompt = encode(dropped)
    _check_room(len(prompt), size, what, has_history=False, may_grow=may_grow)
    return prompt, dropped


def _check_room(count: int, size: int, what: str, *, has_history: bool, may_grow: bool) -> None:
    if count < size:
        return
    if has_history:
        raise JllamaError(
            f"the context is full: the conversation would have {count} tokens of {size}; "
            "undo turns, clear it, or drop the oldest turns (on_overflow=drop_oldest)"
        )
    advice = "shorten it or raise max_seq_len" if may_grow else "shorten it"
    raise JllamaError(f"{what} too long: {count} tokens, the context has {size}: {advice}")
