"""Log-probabilities of an answer's tokens, told with the text that they belong to."""

import collections
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from jllama.answer import TokenScore
from jllama.text.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no infinity


@dataclasses.dataclass(frozen=True)
class Placed:
    """A token's score, and the character of the text at which it begins."""

    start: int
    score: TokenScore


class Placing:
    """Takes the tokens of a text; gives those that begin within what is shown."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        hidden: Collection[int],
        shown: Collection[int] = (),
    ) -> None:
        """Args: `hidden`: ids that end the text and are no part of it; `shown`: special but text."""
        self._decoder, self._bytes = tokenizer.stream(prompt, shown), tokenizer.token_bytes
        self._hidden = hidden
        self._chars = 0
        self._waiting: collections.deque[Placed] = collections.deque()

    def push(self, scores: Sequence[TokenScore]) -> None:
        """The next tokens."""
        for score in scores:
            if score.token not in self._hidden:
                self._waiting.append(Placed(self._start(score.token), score))
                self._chars += len(self._decoder.push(score.token))

    def _start(self, token: int) -> int:
        """A token that does not go on with a character which was begun leaves it as U+FFFD before itself."""
        goes_on = b"\x80" <= self._bytes(token)[:1] < b"\xc0"
        return self._chars + (0 if goes_on else len(self._decoder.pending()))

    def within(self, shown: int | None) -> Iterator[Placed]:
        """Tokens that begin before character `shown`, or all that are left, each once."""
        while self._waiting and (shown is None or self._waiting[0].start < shown):
            yield self._waiting.popleft()


def as_chat(tokenizer: Tokenizer, placed: Sequence[Placed], with_ids: bool) -> dict[str, Any]:
    """As `/v1/chat/completions` tells them; `with_ids`: with the tokens' ids, which that does not know."""
    return {"content": [_chat_entry(tokenizer, one.score, with_ids) for one in placed], "refusal": None}


def _chat_entry(tokenizer: Tokenizer, score: TokenScore, with_ids: bool) -> dict[str, Any]:
    likeliest = [_told(tokenizer, token, value, with_ids) for token, value in score.likeliest.items()]
    return {**_told(tokenizer, score.token, score.logprob, with_ids), "top_logprobs": likeliest}


def _told(tokenizer: Tokenizer, token: int, logprob: float, with_id: bool) -> dict[str, Any]:
    """Bytes are those of the text: none of a special token, which is spelled out all the same."""
    shown = tokenizer.token_bytes(token)
    told = {
        "token": spelled(tokenizer, token),
        "logprob": max(logprob, LOWEST),
        "bytes": list(shown) if shown else None,
    }
    return {**told, "token_id": token} if with_id else told


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token as text; a part of a character shows as U+FFFD."""
    return tokenizer.token_bytes(token, skip_special=False).decode("utf-8", "replace")


def as_completion(tokenizer: Tokenizer, placed: Sequence[Placed], offset: int = 0) -> dict[str, list[Any]]:
    """As `/v1/completions` tells them; `offset`: characters that stand before."""
    return {
        "tokens": [spelled(tokenizer, one.score.token) for one in placed],
        "token_logprobs": [max(one.score.logprob, LOWEST) for one in placed],
        "top_logprobs": [_by_text(tokenizer, one.score) for one in placed],
        "text_offset": [offset + one.start for one in placed],
    }


def prompt_as_completion(
    tokenizer: Tokenizer, ids: Sequence[int], scores: Sequence[TokenScore | None]
) -> dict[str, list[Any]]:
    """A prompt's tokens likewise, of which the first one has no score."""
    placing = Placing(tokenizer, (), ())
    placing.push([score or TokenScore(token, 0.0, {}) for token, score in zip(ids, scores, strict=True)])
    told = as_completion(tokenizer, [*placing.within(None)])
    told["token_logprobs"][0] = told["top_logprobs"][0] = None
    return told


def joined(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Two stretches of a text."""
    return {name: first[name] + second[name] for name in first}


def _by_text(tokenizer: Tokenizer, score: TokenScore) -> dict[str, float]:
    """Of tokens that are spelled alike the likelier one."""
    told: dict[str, float] = {}
    for token, value in score.likeliest.items():
        told.setdefault(spelled(tokenizer, token), max(value, LOWEST))
    return told
