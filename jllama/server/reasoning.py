"""Thoughts apart from answers, where a chat template marks them with tags."""

OPEN, CLOSE = "<think>", "</think>"


def marks_thoughts(template: str) -> bool:
    """Whether a template's model puts thoughts between tags."""
    return CLOSE in template


class Split:
    """Takes an answer in pieces, however they are cut; gives the thoughts and the rest apart.

    Thoughts begin the answer or come not at all. Blanks around them, and before the rest, belong to neither.
    """

    def __init__(self, before: str = "") -> None:
        """Args: `before`: how the prompt ends; it may open the thoughts itself, and close them again."""
        self._state = "start"
        self._held = ""
        if before.rstrip().endswith(OPEN):
            self._state = "opened"

    @property
    def inside(self) -> bool:
        """Whether thoughts come for sure."""
        return self._state in ("opened", "thinking")

    @property
    def past(self) -> bool:
        """Whether no more thoughts can come."""
        return self._state in ("behind", "answer")

    def push(self, text: str, *, final: bool = False) -> tuple[str, str]:
        """The text that is certain now, as thoughts and rest; `final`: nothing follows."""
        self._held += text
        thoughts = rest = ""
        if self._state == "start":
            self._begin(final)
        if self._state in ("opened", "thinking"):
            thoughts = self._think(final)
        if self._state == "behind":
            self._held = self._held.lstrip()
            self._state = "answer" if self._held else "behind"
        if self._state == "answer":
            rest, self._held = self._held, ""
        return thoughts, rest

    def _begin(self, final: bool) -> None:
        begun = self._held.lstrip()
        if begun.startswith(OPEN):
            self._held, self._state = begun[len(OPEN) :], "opened"
        elif final or not OPEN.startswith(begun):
            self._state = "answer"

    def _think(self, final: bool) -> str:
        if self._state == "opened":
            self._held = self._held.lstrip()
            self._state = "thinking" if self._held else "opened"
        thoughts, closed, rest = self._held.partition(CLOSE)
        if closed:
            self._held, self._state = rest, "behind"
            return thoughts.rstrip()
        sure = thoughts.rstrip() if final else thoughts[: len(thoughts) - _ambiguous(thoughts)].rstrip()
        self._held = "" if final else thoughts[len(sure) :]
        return sure


def _ambiguous(text: str) -> int:
    """How much of its end may be the beginning of the closing tag."""
    sizes = range(min(len(CLOSE) - 1, len(text)), 0, -1)
    return next((size for size in sizes if CLOSE.startswith(text[-size:])), 0)
