"""SentencePiece's compiled normalisation rules."""

import numpy as np

from jllama.errors import JllamaError
from jllama.text.vocabulary import ADVICE

MAX_REPLACEMENT = 256  # bytes; the longest that SentencePiece has known are 33
LEAF, HAS_LEAF = 1 << 31, 1 << 8


class CharsMap:
    """Replaces the longest known prefix at each place: a double-array trie over UTF-8 bytes.

    The layout is that of `precompiled_charsmap`: the trie's size in bytes, its 32-bit units
    (label, offset and leaf flag packed as in the Darts-clone library), then the replacements as
    null-terminated texts, which the trie's values point into.
    """

    def __init__(self, blob: bytes):
        """Raises: JllamaError: its sizes or offsets point outside of it, or a replacement is no text."""
        size = int.from_bytes(blob[:4], "little")
        if len(blob) < 8 or not 4 <= size <= len(blob) - 4 or size % 4:
            raise _damaged("its sizes do not fit")
        self._texts = blob[4 + size :]
        _check(np.frombuffer(blob, "<u4", size // 4, 4), np.frombuffer(self._texts, np.uint8))
        self._units = memoryview(blob)[4 : 4 + size].cast("I")
        self._cache: dict[int, str] = {}

    def __call__(self, text: str) -> str:
        data, at, parts = text.encode(), 0, []
        while at < len(data):
            size, replacement = self._longest(data, at)
            if not size:
                size = _utf8_length(data[at])
                replacement = data[at : at + size].decode()
            parts.append(replacement)
            at += size
        return "".join(parts)

    def _longest(self, data: bytes, start: int) -> tuple[int, str]:
        units, size, value = self._units, 0, 0
        node = _offset(units[0])
        for at in range(start, len(data)):
            node ^= data[at]
            if node >= len(units) or units[node] & (LEAF | 0xFF) != data[at]:
                break
            leaf = units[node] & HAS_LEAF
            node ^= _offset(units[node])
            if leaf:
                size, value = at + 1 - start, units[node] & ~LEAF
        # A rule that ends amid a character is none.
        if start + size < len(data) and data[start + size] & 0xC0 == 0x80:
            return 0, ""
        return size, self._text(value) if size else ""

    def _text(self, at: int) -> str:
        if at not in self._cache:
            self._cache[at] = self._texts[at : self._texts.index(0, at)].decode()
        return self._cache[at]


def _check(units: np.ndarray, texts: np.ndarray) -> None:
    """That every path through the trie ends at a text, and none of the texts is huge."""
    parents = np.flatnonzero((units & HAS_LEAF != 0) & (units < LEAF))
    offsets = (units[parents] >> 10) << ((units[parents] & 0x200) >> 6)
    leaves = parents ^ offsets.astype(np.int64)
    if (leaves >= len(units)).any() or (units[leaves[leaves < len(units)]] < LEAF).any():
        raise _damaged("its trie points outside of itself")
    values = units[leaves] & (LEAF - 1)
    ends = np.flatnonzero(texts == 0)
    if not len(values):
        return
    if not len(ends) or (values > ends[-1]).any() or (texts[values] & 0xC0 == 0x80).any():
        raise _damaged("its trie points outside of the replacements")
    if (ends[np.searchsorted(ends, values)] - values).max() > MAX_REPLACEMENT:
        raise _damaged("it replaces a character by a whole text")
    try:
        texts.tobytes().decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged("its replacements are no UTF-8") from None


def _damaged(why: str) -> JllamaError:
    return JllamaError(f"the tokenizer's precompiled_charsmap is damaged ({why}); {ADVICE}")


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _utf8_length(lead: int) -> int:
    return 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
