"""Special tokens: which tokens are special, and where they stand in a text."""

import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from jllama.text.template.traced_text import OWN, runs

# Tokens that end any text, and those that end a turn for the templates that write them.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>")
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",  # Gemma 4 hands over with it, behind a call
    "<|end|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|return|>",
    "[EOT]",
)
BEGIN_OF_TURN = ("<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>")
# Added tokens that a template writes are control tokens if they look so; `<think>` is text for the reader.
CONTROL_LIKE = re.compile(r"<\|.*\|>|<｜.*｜>", re.DOTALL)


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
        return edges[0] + re.escape(self.text) + edges[1]


def special_texts(
    known: Container[str],
    to_bytes: Callable[[str], bytes],
    *,
    added: Iterable[str] = (),
    named: Iterable[str | None] = (),
    templates: Iterable[str] = (),
    by_name: bool = True,
) -> set[str]:
    """The tokens that are special whatever type their file gives them. All of jllama decides it here.

    They are what begins and ends a text or a turn. A token of a single byte never is one: no text could be
    spelt without it.

    Args:
        known: the texts of all tokens.
        to_bytes: what a token stands for.
        added: tokens that were added to the vocabulary ("user-defined").
        named: bos, eos, eot, eom and whatever else the files say ends an answer.
        templates: the sources of the model's chat templates.
        by_name: a well-known name is enough, as for llama.cpp; otherwise the templates must write it, too.
    """
    written = "\n".join(templates)
    marks = {text for text in added if CONTROL_LIKE.fullmatch(text) and text in written}
    turns = {text for text in (*BEGIN_OF_TURN, *END_OF_TURN) if by_name or text in written}
    found = {*named, *marks, *turns, *END_OF_TEXT}
    return {text for text in found if text and text in known and len(to_bytes(text)) > 1}


class SpecialTokens:
    """Finds special tokens in text."""

    def __init__(self, specials: Iterable[Special]):
        self.by_text = {special.text: special for special in specials if special.text}
        # The longest first: an alternation takes the first branch that fits.
        ordered = sorted(self.by_text.values(), key=lambda special: -len(special.text))
        self._pattern = re.compile("|".join(special.pattern for special in ordered) or r"(?!)")

    def split(self, text: str) -> list[str | int]:
        """`text` as plain stretches (never empty) and the ids of the special tokens in it.

        Of a `Traced` text, only what the template wrote itself can be a special token.
        """
        parts = self._split(text)
        for at, part in enumerate(parts):
            if isinstance(part, Special):
                _swallow_blanks(parts, at, part)
        return [part.id if isinstance(part, Special) else part for part in parts if part != ""]

    def leading(self, text: str) -> Special | None:
        """The special token that `text` begins with, blanks aside."""
        first = (part for part in self._split(text) if isinstance(part, Special) or part.strip())
        found = next(first, None)
        return found if isinstance(found, Special) else None

    def _split(self, text: str) -> list[str | Special]:
        """Plain stretches and special tokens by turns."""
        plain = str.__str__(text)
        parts: list[str | Special] = []
        at = 0
        for start, end, origin in runs(text):
            for match in self._pattern.finditer(plain, start, end) if origin == OWN else ():
                special = self.by_text[match[0]]
                # The pattern sees what stands before its stretch, not what stands behind.
                if special.single_word and re.match(r"\w", plain[match.end() : match.end() + 1]):
                    continue
                parts += [plain[at : match.start()], special]
                at = match.end()
        return [*parts, plain[at:]]


def _swallow_blanks(parts: list[str | Special], at: int, special: Special) -> None:
    before, after = parts[at - 1], parts[at + 1]
    if special.lstrip and isinstance(before, str):
        parts[at - 1] = before.rstrip()
    if special.rstrip and isinstance(after, str):
        parts[at + 1] = after.lstrip()
