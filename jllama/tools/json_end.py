"""Where a JSON value ends, in text that comes in pieces."""


class JsonEnd:
    """Finds the end of an object or list: whether what is inside is sound is not asked here."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = False

    def feed(self, text: str, start: int = 0) -> int | None:
        """Takes text from `start` on, which goes on where the last one stopped.

        Returns:
          The place in `text` behind the value; None: it goes on.
        """
        for at in range(start, len(text)):
            if self._ends(text[at]):
                return at + 1
        return None

    def _ends(self, letter: str) -> bool:
        if self._quoted:
            self._quoted = self._escaped or letter != '"'
            self._escaped = letter == "\\" and not self._escaped
        elif letter == '"':
            self._quoted = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
            return self._depth == 0
        return False
