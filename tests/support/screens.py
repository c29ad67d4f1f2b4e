"""What stands for the chat's screen, and how pieces of an answer come to it."""

import random
from collections.abc import Iterator


class PlainScreen:
    """Remembers what is said and shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.begun: list[str] = []
        self.markdown = True

    def say(self, text, style="dim"):
        self.lines.append(text)

    def error(self, text):
        self.lines.append(f"error: {text}")

    def raw(self, sequence):
        self.lines.append(sequence)

    def stream(self, pieces, begun=""):
        self.begun.append(begun)
        self.lines.append("".join(pieces))


def cut(text: str, seed: int) -> Iterator[str]:
    """The text in pieces of drawn sizes."""
    draw = random.Random(seed)
    while text:
        size = draw.choice((1, 1, 2, 3, 5, 8, 30))
        yield text[:size]
        text = text[size:]
