"""One choice of an answer as it grows: thoughts, text and scores, the same whether it is streamed or not."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from jllama.batching.stream import Stream
from jllama.server.calling import Calling
from jllama.server.reading import Piece
from jllama.server.reasoning import CLOSE, Split
from jllama.server.scores import Placed, Placing
from jllama.text.tokenizer import Tokenizer
from jllama.tools.events import Arguments, Begin, End

CallEvent = Begin | Arguments | End


@dataclasses.dataclass(frozen=True)
class Delta:
    """What has become certain since the last one."""

    text: str = ""
    thoughts: str = ""
    scores: tuple[Placed, ...] = ()
    calls: tuple[CallEvent, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.thoughts or self.scores or self.calls)


class Choice:
    """Turns an engine's pieces into deltas."""

    def __init__(
        self,
        index: int,
        stream: Stream,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        split: Split | None = None,
        stop_ids: Collection[int] = (),
        silent: bool = False,
        calling: Calling | None = None,
    ) -> None:
        """Before its first piece.

        Args:
          index: its place in the answer.
          stream: of the engine.
          tokenizer: the model's.
          prompt: token ids.
          split: takes thoughts apart, where the model has them.
          stop_ids: those that the request gave itself.
          silent: it says nothing: the prompt is all that is wanted.
          calling: takes calls apart.
        """
        self.index, self.stream, self._split = index, stream, split
        self.tokens, self._stop_ids, self._silent = 0, stop_ids, silent
        self._tokenizer, self._prompt = tokenizer, prompt
        self._thinks = split is not None and not split.past
        self._shown = self._scored = 0
        told = stream.answer.result.logprobs is not None
        self._calls, self._marks = (calling.parser(), calling.shown) if calling else (None, ())
        hidden = set(stream.row.stop_ids)
        self._placing = Placing(tokenizer, prompt, hidden, self._marks) if told else None

    def push(self, piece: Piece) -> Delta:
        """The next piece of text."""
        if self._silent:
            return Delta()
        self.tokens = piece.tokens
        self._shown += len(piece.text)
        return self._delta(piece.text, self._scores(piece.scored, self._shown), final=False)

    def end(self) -> Delta:
        """The answer has ended: what was held back."""
        if self._silent:
            return Delta()
        result = self.stream.answer.result
        self.tokens = len(result.token_ids)
        cut = result.finish_reason == "stop" and result.stop_string is not None
        scores = self._scores(len(result.logprobs or ()), self._shown if cut else None)
        return self._delta("", scores, final=True)

    @property
    def ending(self) -> dict[str, Any]:
        """Why it ended, and what a client needs to have it again."""
        result = self.stream.answer.result
        if self._silent:
            return {"finish_reason": "length", "stop_reason": None, "seed": result.seed}
        asked = result.stop_token in self._stop_ids  # else it is the model's own end of a text
        reason = result.stop_string or (result.stop_token if asked else None)
        # A stop string may end a call in the middle; then there is none to answer.
        called = self._calls is not None and self._calls.count > 0 and not self._calls.is_amid
        finish = "tool_calls" if called and result.finish_reason == "stop" else result.finish_reason
        return {"finish_reason": finish, "stop_reason": reason, "seed": result.seed}

    @property
    def thought_tokens(self) -> int:
        """Tokens of the thoughts, up to the tag that closes them, once the answer has ended."""
        text = self.stream.answer.result.text
        if not self._thinks or (CLOSE not in text and self._split is not None and self._split.past):
            return 0
        end = text.find(CLOSE) + len(CLOSE) if CLOSE in text else len(text) + 1
        decoder, chars = self._tokenizer.stream(self._prompt, self._marks), 0
        for count, token in enumerate(self.stream.answer.result.token_ids):
            if chars >= end:
                return count
            chars += len(decoder.push(token))
        return self.tokens

    def _scores(self, known: int, shown: int | None) -> tuple[Placed, ...]:
        if self._placing is None:
            return ()
        self._placing.push((self.stream.answer.result.logprobs or [])[self._scored : known])
        self._scored = known
        return tuple(self._placing.within(shown))

    def _delta(self, text: str, scores: tuple[Placed, ...], final: bool) -> Delta:
        thoughts = ""
        if self._split is not None:
            thoughts, text = self._split.push(text, final=final)
        if self._calls is None:
            return Delta(text, thoughts, scores)
        events = self._calls.push(text, final=final)
        said = "".join(event for event in events if isinstance(event, str))
        return Delta(said, thoughts, scores, tuple(each for each in events if not isinstance(each, str)))
