"""SentencePiece's compiled normalisation rules."""

import struct


class CharsMap:
    """Replaces the longest known prefix at each place: a double-array trie over UTF-8 bytes.

    The layout is that of `precompiled_charsmap`: the trie's size in bytes, its 32-bit units
    (label, offset and leaf flag packed as in the Darts-clone library), then the replacements as
    null-terminated texts, which the trie's values point into.
    """

    def __init__(self, blob: bytes):
        (size,) = struct.unpack_from("<I", blob)
        self._units = struct.unpack_from(f"<{size // 4}I", blob, 4)
        self._texts = blob[4 + size :]
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
            if node >= len(units) or units[node] & 0x800000FF != data[at]:
                break
            leaf = units[node] & 0x100
            node ^= _offset(units[node])
            if leaf:
                size, value = at + 1 - start, units[node] & 0x7FFFFFFF
        return size, self._text(value) if size else ""

    def _text(self, at: int) -> str:
        if at not in self._cache:
            self._cache[at] = self._texts[at : self._texts.index(0, at)].decode()
        return self._cache[at]


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _utf8_length(lead: int) -> int:
    return 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
