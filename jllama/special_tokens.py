"""Special tokens as text: finding them where they count, hiding them where they do not."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Special:
    """A control token: its text, its id, and whether it swallows the blanks beside it."""

    text: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    @property
    def pattern(self) -> str:
        edges = (r"(?<!\w)", r"(?!\w)") if self.single_word else ("", "")
        left, right = (r"\s*" if strip else "" for strip in (self.lstrip, self.rstrip))
        return left + edges[0] + re.escape(self.text) + edges[1] + right


class SpecialTokens:
    """Splits text at special tokens, and shields messages from being mistaken for them."""

    def __init__(self, specials: Iterable[Special]):
        self.by_text = {special.text: special for special in specials if special.text}
        # The longest first: an alternation takes the first branch that fits.
        ordered = sorted(self.by_text.values(), key=lambda special: -len(special.text))
        self._specials = ordered
        # A group of its own for each, since blanks may surround the text that matched.
        patterns = "|".join(f"({special.pattern})" for special in ordered)
        self._pattern = re.compile(patterns or r"(?!)")
        self._texts = re.compile("|".join(re.escape(s.text) for s in ordered) or r"(?!)")
        self._beginnings = {s.text[:size] for s in ordered for size in range(1, len(s.text))}
        self._longest = max((len(special.text) for special in ordered), default=0)

    def split(self, text: str) -> list[str | int]:
        """`text` as plain stretches (never empty) and the ids of the special tokens in it."""
        parts: list[str | int] = []
        at = 0
        for match in self._pattern.finditer(text):
            parts += [text[at : match.start()], self._specials[(match.lastindex or 1) - 1].id]
            at = match.end()
        return [part for part in (*parts, text[at:]) if part != ""]

    def shield(self, *values: Any, avoid: str = "") -> tuple["Shield", list[Any]]:
        """Copies of `values` (plain data) in which no text can become a special token.

        Each special token's text is swapped for one private character, and where a text ends in
        the beginning of one, an empty private character follows. The characters chosen occur
        neither in `values` nor in `avoid`.
        """
        texts = json.dumps(values, ensure_ascii=False)  # repr() would write private ones as escapes
        shield = Shield(self, _unused_characters(texts + avoid))
        return shield, [shield.hide(value) for value in values]

    def ends_in_a_beginning(self, text: str) -> bool:
        sizes = range(1, min(self._longest, len(text) + 1))
        return any(text[-size:] in self._beginnings for size in sizes)


class Shield:
    """One conversation's private characters."""

    def __init__(self, specials: SpecialTokens, characters: Iterable[str]):
        self._specials = specials
        self._characters = iter(characters)
        self._nothing = next(self._characters)
        self._by_text: dict[str, str] = {}

    def hide(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list | tuple) else value

    def mark(self) -> str:
        """A further private character, for the caller's own use."""
        return next(self._characters)

    def reveal(self, text: str) -> str:
        table = {ord(character): text for text, character in self._by_text.items()}
        return text.translate({**table, ord(self._nothing): ""})

    def _hide_text(self, text: str) -> str:
        hidden = self._specials._texts.sub(self._swap, text)
        return hidden + self._nothing if self._specials.ends_in_a_beginning(hidden) else hidden

    def _swap(self, match: re.Match[str]) -> str:
        text = match[0]
        if text not in self._by_text:
            self._by_text[text] = next(self._characters)
        return self._by_text[text]


def _unused_characters(text: str) -> Iterable[str]:
    taken = set(text)
    private = (chr(code) for code in (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)))
    return (character for character in private if character not in taken)
