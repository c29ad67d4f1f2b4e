"""Generated answers inside a rendered conversation: their own token ids, never tokenised again."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jllama.special_tokens import Shield

Ids = Sequence[int]


class Splices:
    """Marks that stand in the rendered text for the answers whose ids are known.

    A message with `token_ids` is rendered with one private character as its content; where the
    template wrote that character, the ids go.
    """

    def __init__(self, shield: Shield):
        self._shield = shield
        self._ids: dict[str, Ids] = {}

    def take_out(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages for the template: without `token_ids`, marks in their stead."""
        return [self._take_out(dict(message)) for message in messages]

    def align(self, text: str) -> str:
        """Writes before each answer the blanks that the text ends with, where it ends the same way.

        Templates such as Llama-2's ask for an answer with `[/INST]` and write `[/INST] ` before one
        in the history. The model saw the former; the cache is reused only if the prompt says so too.
        """
        end = text.rstrip()
        blanks = text[len(end) :]
        for mark in self._ids:
            head, found, tail = text.partition(mark)
            if found and _last_word(head) == _last_word(end):
                text = head.rstrip() + blanks + mark + tail
        return text

    def split(self, text: str) -> Iterator[str | Ids]:
        """`text` as plain stretches and the ids between them."""
        if not self._ids:
            yield text
            return
        for part in re.split(f"([{''.join(self._ids)}])", text):
            if part:
                yield self._ids.get(part, part)

    def _take_out(self, message: dict[str, Any]) -> dict[str, Any]:
        ids = message.pop("token_ids", None)
        if ids is not None:
            message["content"] = mark = self._shield.mark()
            self._ids[mark] = ids
        return message


def _last_word(text: str) -> str:
    return (text.rsplit(None, 1) or [""])[-1]
