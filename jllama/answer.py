"""One answer as it grows: ids in, text out, and what became of the request."""

import contextlib
import dataclasses
import inspect
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any

from jllama.errors import JllamaError
from jllama.settings import GenerationSettings
from jllama.text.stop import StopMatcher
from jllama.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TokenScore:
    """How likely a token was to the model: natural logarithms, before bias, mask, penalties, temperature."""

    token: int
    logprob: float
    likeliest: dict[int, float]  # token ids and theirs, falling


@dataclasses.dataclass(kw_only=True)
class Result:
    """What became of one request. Rates are tokens per second; the first token belongs to the prefill."""

    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    begun_tokens: int = 0  # of `token_ids`: those that stood there before
    finish_reason: str = "interrupted"  # "stop", "length" or "interrupted"
    stop_string: str | None = None  # the one that fired
    stop_token: int | None = None  # the token that ended it
    stop_reason: str | int | None = None  # the stop string, or which of `stop_token_ids`; None: neither
    seed: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt: already in the cache
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    logprobs: list[TokenScore] | None = None  # of each generated token, where they were asked for
    prompt_logprobs: list[TokenScore | None] | None = None  # of the prompt's; None: the first one's

    @property
    def generated_tokens(self) -> int:
        return len(self.token_ids) - self.begun_tokens

    @property
    def usage(self) -> dict[str, int]:
        """Tokens: of the prompt, those of them that a slot held already, and of the answer."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.reused_tokens,
            "completion_tokens": self.generated_tokens,
        }

    @property
    def prefill_tokens_per_second(self) -> float:
        return (self.prompt_tokens - self.reused_tokens) / max(self.prefill_seconds, 1e-9)

    @property
    def decode_tokens_per_second(self) -> float:
        return max(self.generated_tokens - 1, 0) / max(self.decode_seconds, 1e-9)

    def summary(self) -> dict[str, Any]:
        """Everything as plain values: what the scripts print with `--json`."""
        derived = ("generated_tokens", "prefill_tokens_per_second", "decode_tokens_per_second")
        values = {**dataclasses.asdict(self), **{name: getattr(self, name) for name in derived}}
        del values["begun_tokens"]  # only a conversation goes on with an answer
        unasked = [name for name in ("logprobs", "prompt_logprobs") if values[name] is None]
        return {name: value for name, value in values.items() if name not in unasked}


class OneAtATime:
    """Streams that share a state: the next one ends the last one before it begins.

    Who reads on in a stream that was ended finds nothing more, and closing it does nothing.
    """

    def __init__(self) -> None:
        self._last: Generator[str, None, None] | None = None

    def run(self, pieces: Generator[str, None, None]) -> Generator[str, None, None]:
        """The pieces of a new stream."""
        self.end()
        self._last = pieces
        yield from pieces

    def end(self) -> None:
        """Closes the stream that runs, if one does: what came is kept."""
        if self._last is None:
            return
        if inspect.getgeneratorstate(self._last) == inspect.GEN_RUNNING:
            raise JllamaError("another thread is reading an answer: give each thread a session of its own")
        self._last.close()
        self._last = None


def ending_ids(tokenizer: Tokenizer, settings: GenerationSettings) -> dict[int, str | None]:
    """The ids that end an answer, each with the stop string that it is: special tokens never show as text."""
    found = ((tokenizer.special_id(text), text) for text in settings.stop)
    stops: dict[int, str | None] = dict.fromkeys(settings.stop_token_ids)
    stops |= {token: text for token, text in found if token is not None}
    return stops if settings.ignore_eos else stops | dict.fromkeys(tokenizer.eos_ids)


class Answer:
    """Turns generated ids into text, up to the end-of-text token or a stop string."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        settings: GenerationSettings,
        begun: Sequence[int] = (),
        shown: Collection[int] = (),
    ) -> None:
        """The clock of the prefill starts here.

        Args:
          tokenizer: the model's.
          prompt: what is answered.
          settings: carry their seed.
          begun: ids of the answer that were written and shown before.
          shown: special tokens that are text here.
        """
        self.result = Result(seed=settings.seed or 0, prompt_tokens=len(prompt) + len(begun))
        self._ends = ending_ids(tokenizer, settings)
        self._detokenizer = tokenizer.stream(prompt, shown)
        if settings.constraint is not None:
            self._detokenizer.keep_blanks()  # what must match is each byte
        self._matcher = StopMatcher(settings.stop)
        self._floor, self._asked_ends = settings.min_new_tokens, settings.stop_token_ids
        self.result.token_ids, self.result.begun_tokens = list(begun), len(begun)
        text = "".join(map(self._detokenizer.push, begun))
        self.result.text = self._matcher.follow(text)
        self._shown = len(text) + len(self._detokenizer.pending())
        self._started = time.perf_counter()

    @property
    def finished(self) -> bool:
        """A stop string fired."""
        return self._matcher.matched is not None

    @property
    def elapsed(self) -> float:
        """Seconds since it was asked for."""
        return time.perf_counter() - self._started

    def push(self, ids: Sequence[int]) -> Iterator[str]:
        """Takes the next ids; yields the text that has become certain, if any."""
        self._take_time()
        shown = self._push_together(ids)
        yield from self._show(self._push_singly(ids) if shown is None else shown)

    def _push_together(self, ids: Sequence[int]) -> str | None:
        """The text of all ids; None if something in them ends the answer, or must not."""
        if self.result.generated_tokens < self._floor or not self._ends.keys().isdisjoint(ids):
            return None
        text = self._detokenizer.push_unless(ids, self._matcher.matches)
        if text is None:
            return None
        self.result.token_ids += ids
        return self._matcher.push(text)

    def _push_singly(self, ids: Sequence[int]) -> str:
        shown = ""
        for token in ids:
            self.result.token_ids.append(token)
            if token not in self._ends:
                early = self.result.generated_tokens <= self._floor  # a stop string may stand in it
                match = self._matcher.follow if early else self._matcher.push
                shown += match(self._detokenizer.push(token))
            if self.finished:
                break
        return shown

    def end(self) -> Iterator[str]:
        """No more ids come: yields what was held back and settles why."""
        tail = self._matcher.push(self._detokenizer.flush())
        if not self.finished:
            tail += self._matcher.flush()
            last = self.result.token_ids[-1]
            ended = last in self._ends
            self.result.finish_reason, self.result.stop_token = ("stop", last) if ended else ("length", None)
            self.result.stop_string = self._ends.get(last)
            self.result.stop_reason = self.result.stop_string or (last if last in self._asked_ends else None)
        yield from self._show(tail)

    def _take_time(self) -> None:
        elapsed = self.elapsed
        self.result.prefill_seconds = self.result.prefill_seconds or elapsed
        self.result.decode_seconds = elapsed - self.result.prefill_seconds

    def _show(self, text: str) -> Iterator[str]:
        if self.finished:
            self.result.finish_reason = "stop"
            self.result.stop_string = self.result.stop_reason = self._matcher.matched
        new = text[max(self._shown - len(self.result.text), 0) :]
        self.result.text += text
        if new:
            yield new


def from_first_word(pieces: Generator[str, None, None], begun: str = "") -> Generator[str, None, None]:
    """The pieces without the blanks that some models put before an answer; `begun`: what it has already."""
    started = bool(begun)
    # Closed now, and not when the collector comes: the session must take its cache back.
    with contextlib.closing(pieces):
        for piece in pieces:
            shown = piece if started else piece.lstrip()
            started = started or bool(shown)
            if shown:
                yield shown
