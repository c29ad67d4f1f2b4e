"""Stop strings found in text that arrives in pieces."""

from collections.abc import Iterable

from jllama.errors import JllamaError


class StopMatcher:
    """Passes text through until a stop string appears, and never shows a character of that string.

    The stop that wins is the one whose last character comes first in the whole text, as if the text
    arrived one character at a time; of several that end on the same character the longest wins. So
    of `"ab"` and `"abc"` it is always `"ab"`. What was shown is the text before the winner's first
    character, however the text was cut into pieces. Matching is by code point, without
    normalisation or case folding.

    Raises:
        JllamaError: a stop string is empty or is not a string.
    """

    def __init__(self, stops: str | Iterable[str] | None = ()):
        given = [stops] if isinstance(stops, str) else list(stops or ())
        if not all(isinstance(stop, str) and stop for stop in given):
            raise JllamaError("a stop string must be a non-empty string; leave it out to have none")
        self._stops = tuple(dict.fromkeys(given))
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take the next piece and return what is certain to precede any stop; "" after a match."""
        if self.matched is not None:
            return ""
        text = self._held + text
        found = self._first_match(text)
        if found is None:
            cut = len(text) - self._ambiguous_tail(text)
        else:
            cut, self.matched = found
        self._held = "" if found else text[cut:]
        return text[:cut]

    def matches(self, text: str) -> bool:
        """Whether a stop would appear with the next piece; nothing changes."""
        return bool(self._stops) and self._first_match(self._held + text) is not None

    def follow(self, text: str) -> str:
        """Take a piece in which no stop counts but one that ends beyond it; returns what precedes any."""
        text, self._held = self._held + text, ""
        passed = 0
        while True:
            passed += len(self.push(text[passed:]))
            if self.matched is None:
                return text[:passed]
            passed += len(self.matched)
            self.matched = None

    def flush(self) -> str:
        """The text ends here: return the held back tail, which is no stop string after all."""
        tail, self._held = self._held, ""
        return tail

    def _first_match(self, text: str) -> tuple[int, str] | None:
        starts = ((text.find(stop), stop) for stop in self._stops)
        matches = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        return min(matches)[1:] if matches else None

    def _ambiguous_tail(self, text: str) -> int:
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-size:]
            if any(len(stop) > size and stop.startswith(tail) for stop in self._stops):
                return size
        return 0
