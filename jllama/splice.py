"""Generated answers inside a rendered conversation: their own token ids, never tokenised again.

The prompt is always what the template writes. Where an answer stands in it as the model wrote it, and
behind the words that asked for it, its ids go there; where the template drops thoughts or opens the answer
otherwise, its own text is read again.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jllama.errors import JllamaError
from jllama.special_tokens import Shield

Ids = Sequence[int]
Render = Callable[[list[dict[str, Any]], bool], str]


class Splices:
    """Marks that stand in the rendered text for the answers whose ids are known."""

    def __init__(self, shield: Shield, messages: Sequence[Mapping[str, Any]]):
        """Args: `messages` with hidden special tokens; those with `token_ids` are answers."""
        self._ids: dict[str, Ids] = {}
        self._texts: dict[str, str] = {}
        self._plain = [dict(message) for message in messages]
        self._marked = [self._mark(message, shield) for message in self._plain]

    def render(self, render: Render, asks: bool) -> str:
        """The conversation as the template writes it, marks in the stead of what the model wrote so.

        Args:
            render: the template, of messages and of whether the text asks for an answer.
            asks: whether it does.
        """
        plain = render(self._plain, asks)
        if not self._ids:
            return plain
        marked = render(self._marked, asks)
        if not asks:
            return self._fit(marked, plain, lambda head: head)
        rest = render(self._marked, False)
        opening = marked.removeprefix(rest) if marked.startswith(rest) else ""
        return self._fit(marked, plain, lambda head: _opened(head, opening, marked))

    def split(self, text: str) -> Iterator[str | Ids]:
        """`text` as plain stretches and the ids between them."""
        if not self._ids:
            yield text
            return
        for part in re.split(self._pattern, text):
            if part:
                yield self._ids.get(part, part)

    @property
    def _pattern(self) -> str:
        return f"([{''.join(self._ids)}])"

    def _mark(self, message: dict[str, Any], shield: Shield) -> dict[str, Any]:
        """The message with a mark as its content; takes `token_ids` out of `message`, too."""
        ids = message.pop("token_ids", None)
        if ids is None:
            return message
        if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
            raise JllamaError("token_ids of a message must be a list of token ids: whole numbers from 0 on")
        mark = shield.mark()
        self._ids[mark] = ids
        if not isinstance(message.get("content"), str):
            message["content"] = mark
        self._texts[mark] = message["content"]
        return {**message, "content": mark}

    def _fit(self, marked: str, plain: str, opened: Callable[[str], str | None]) -> str:
        """`plain` with marks where the answers of `marked` stand in it unchanged.

        Args:
            opened: what stands before an answer, made to end as the model saw it; None if it cannot.
        """
        out, *rest = re.split(self._pattern, marked)
        at = len(out) if plain.startswith(out) else -1
        for mark, following in zip(rest[::2], rest[1::2], strict=True):
            end = self._end_of_same(plain, at, mark, following)
            head = opened(out) if end >= 0 else None
            if end < 0:
                end = plain.find(following, at) if following else len(plain)
            if at < 0 or end < 0:
                return plain
            out = (out + plain[at:end] if head is None else head + mark) + following
            at = end + len(following)
        return out if at == len(plain) else plain

    def _end_of_same(self, plain: str, at: int, mark: str, following: str) -> int:
        """Where the answer ends that begins at `at`, blanks around it aside; -1 if it is another text."""
        text = self._texts[mark]
        for same in (text, text.rstrip(), text.lstrip(), text.strip()):
            if at >= 0 and plain.startswith(same + following, at):
                return at + len(same)
        return -1


def _opened(head: str, opening: str, asking: str) -> str | None:
    """`head`, which stands before an answer, ending as `asking` ends, which asks for the next one.

    Templates such as Llama-2's ask for an answer with `[/INST]` and write `[/INST] ` before one in the
    history. The model saw the former; the cache is reused only if the prompt says so too.
    """
    blanks = asking[len(asking.rstrip()) :]
    if opening.strip():
        return head.rstrip() + blanks if head.rstrip().endswith(opening.strip()) else None
    return head.rstrip() + blanks if _last_word(head) == _last_word(asking) else head


def _last_word(text: str) -> str:
    return (text.rsplit(None, 1) or [""])[-1]
