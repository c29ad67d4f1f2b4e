"""Generated answers inside a rendered conversation: their own token ids, never tokenised again.

The prompt is always what the template writes. Where an answer stands in it as the model wrote it, and
behind the words that asked for it, its ids go there; where the template drops thoughts or opens the answer
otherwise, its own text is read again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jllama.errors import JllamaError
from jllama.text.surrogates import without_surrogates
from jllama.text.template.traced_text import GIVEN, Traced, join_traced, runs

Ids = Sequence[int]
Render = Callable[[list[dict[str, Any]], bool], Traced]
NOTHING = "\ufffc"  # the content of an answer without any: its place is to be found, too


class Splices:
    """The answers whose ids are known: each text has an origin of its own, by which it is found again."""

    def __init__(self, messages: Sequence[Mapping[str, Any]]):
        """Args: `messages`; those with `token_ids` are answers."""
        self._ids: dict[str, Ids] = {}
        self._texts: dict[str, str] = {}
        self._messages = [self._mark(dict(message)) for message in messages]

    def render(self, render: Render, asks: bool) -> list[Traced | Ids]:
        """The conversation as the template writes it, ids in the stead of what the model wrote so.

        Args:
            render: the template, of messages and of whether the text asks for an answer.
            asks: whether it does.
        """
        text = render(self._messages, asks)
        if not self._ids:
            return [text]
        if not asks:
            return list(self._spliced(text, lambda head: head))
        rest = render(self._messages, False)
        opening = text.removeprefix(rest) if text.startswith(rest) else ""
        return list(self._spliced(text, lambda head: _opened(head, opening, text)))

    def _mark(self, message: dict[str, Any]) -> dict[str, Any]:
        ids = message.pop("token_ids", None)
        if ids is None:
            return message
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < 1 << 31 for token in ids):
            raise JllamaError("token_ids of a message must be a list of token ids: whole numbers from 0 on")
        content = message.get("content")
        text = without_surrogates(content) if isinstance(content, str) and content.strip() else NOTHING
        origin = chr(ord("\u0100") + len(self._ids))
        self._ids[origin], self._texts[origin] = ids, text.strip()
        return {**message, "content": Traced(text, origin)}

    def _spliced(self, text: Traced, opened: Callable[[Traced], Traced | None]) -> Iterator[Traced | Ids]:
        """`text` in stretches, ids where an answer stands in it unchanged, blanks around it aside.

        Args:
            opened: what stands before an answer, made to end as the model saw it; None if it cannot.
        """
        before: list[Traced] = []
        for start, end, origin in runs(text):
            piece = text[start:end]
            is_answer = origin in self._ids and piece.strip() == self._texts[origin]
            head = opened(join_traced(before)) if is_answer else None
            if head is None:
                before.append(self._read_again(piece, origin))
                continue
            yield from (head, self._ids[origin])
            before = []
        yield join_traced(before)

    def _read_again(self, piece: Traced, origin: str) -> Traced:
        """A stretch of the prompt that is no answer, or none that the model would know again."""
        if origin not in self._ids:
            return piece
        return Traced("" if self._texts[origin] == NOTHING else piece, GIVEN)


def _opened(head: Traced, opening: str, asking: Traced) -> Traced | None:
    """`head`, which stands before an answer, ending as `asking` ends, which asks for the next one.

    Templates such as Llama-2's ask for an answer with `[/INST]` and write `[/INST] ` before one in the
    history. The model saw the former; the cache is reused only if the prompt says so too.
    """
    blanks = asking[len(asking.rstrip()) :]
    if opening.strip():
        return join_traced([head.rstrip(), blanks]) if head.rstrip().endswith(opening.strip()) else None
    return join_traced([head.rstrip(), blanks]) if _last_word(head) == _last_word(asking) else head


def _last_word(text: str) -> str:
    return (text.rsplit(None, 1) or [""])[-1]
