"""Token ids back to text, whole or as they come."""

import codecs
import json
from collections.abc import Callable, Collection, Iterable

from jllama.errors import JllamaError


class Detokenizer:
    """Turns ids into bytes one by one, and the bytes into text.

    Every decoder that Llama-family tokenizers use is a map from token to bytes, but for the one
    blank that some drop at the start of a text; so a stream and a whole text cannot differ. Bytes
    that are no UTF-8 show as U+FFFD, as Python's `errors="replace"` has it (the `tokenizers`
    library blots out a whole run of byte tokens for one bad byte; it agrees on valid UTF-8).
    Ids that name no token are empty.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        *,
        skipped: Collection[int] = (),
        drop_blanks: int = 0,
    ):
        self._token_bytes = token_bytes
        self._cache: dict[int, bytes] = {}
        self._skipped = frozenset(skipped)
        self.drop_blanks = drop_blanks

    def bytes_of(self, token: int, skip_special: bool = True) -> bytes:
        if skip_special and token in self._skipped:
            return b""
        found = self._cache.get(token)
        if found is None:
            found = self._cache[token] = self._token_bytes(token) if token >= 0 else b""
        return found

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        stream = StreamDecoder(self, skip_special=skip_special)
        return stream.push_bytes(b"".join(self.bytes_of(i, skip_special) for i in ids), final=True)


class StreamDecoder:
    """Text as soon as its bytes are complete; the pieces and the flushed tail make up the whole.

    With the ids of a prompt, the pieces continue its text: a blank that the tokenizer drops at
    the start of a text is kept.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        prompt_ids: Iterable[int] = (),
        *,
        skip_special: bool = True,
        shown: Collection[int] = (),
    ):
        """Args: `shown`: special tokens that are spelt out all the same."""
        self._detokenizer = detokenizer
        self._skip_special = skip_special
        self._shown = frozenset(shown)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._blanks = detokenizer.drop_blanks
        if any(detokenizer.bytes_of(token, skip_special) for token in prompt_ids):
            self._blanks = 0

    def keep_blanks(self) -> None:
        """Shows a blank at the start of the text too, whatever the tokenizer drops."""
        self._blanks = 0

    def push(self, token: int) -> str:
        """Take one id and return the text that is now certain."""
        return self.push_bytes(self._bytes_of(token))

    def _bytes_of(self, token: int) -> bytes:
        return self._detokenizer.bytes_of(token, self._skip_special and token not in self._shown)

    def push_unless(self, ids: Iterable[int], refused: Callable[[str], bool]) -> str | None:
        """Takes several ids and returns the text that is now certain; None, and nothing changes, if that is
        refused."""
        state, blanks = self._utf8.getstate(), self._blanks
        text = self.push_bytes(b"".join(map(self._bytes_of, ids)))
        if not refused(text):
            return text
        self._utf8.setstate(state)
        self._blanks = blanks
        return None

    def flush(self) -> str:
        """The ids end here: what a truncated character leaves, or ""."""
        return self.push_bytes(b"", final=True)

    def pending(self) -> str:
        """What `flush` would return; nothing changes."""
        state = self._utf8.getstate()
        tail = self._utf8.decode(b"", True)
        self._utf8.setstate(state)
        return tail

    def push_bytes(self, data: bytes, *, final: bool = False) -> str:
        while self._blanks and data:
            if not data.startswith(b" "):
                self._blanks = 0
                break
            data, self._blanks = data[1:], self._blanks - 1
        return self._utf8.decode(data, final)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(byte): byte for byte in printable}
    return stand_ins | {chr(256 + at): byte for at, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()
_LETTERS = {byte: letter for letter, byte in _ALPHABET.items()}


def byte_level(token: str) -> bytes:
    """The bytes of a byte-level token; one with other characters stands for itself."""
    try:
        return bytes(_ALPHABET[character] for character in token)
    except KeyError:
        return token.encode("utf-8", "replace")


def to_byte_level(data: bytes) -> str:
    """Bytes in the byte-level alphabet."""
    return "".join(_LETTERS[byte] for byte in data)


def metaspace(token: str) -> bytes:
    """The bytes of a SentencePiece token: `▁` is a blank, `<0x0A>` a byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            pass
    return token.replace("▁", " ").encode("utf-8", "replace")


def from_decoder_json(state: str | None) -> tuple[Callable[[str], bytes], int]:
    """What a tokenizer.json's decoder does: token text to bytes, and blanks dropped at the start.

    Raises:
        JllamaError: a decoder that no Llama-family tokenizer uses.
    """
    decoder = json.loads(state or "null")
    parts = _flat(decoder)
    kinds = [part.get("type") for part in parts]
    if "ByteLevel" in kinds:
        return byte_level, 0
    if kinds == ["Metaspace"]:
        return metaspace, int(parts[0].get("prepend_scheme", "always") != "never")
    blank = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    known = {"Replace", "ByteFallback", "Fuse", "Strip"}
    if blank in parts and set(kinds) <= known and kinds.count("Replace") == 1:
        return metaspace, sum(part["start"] for part in parts if part["type"] == "Strip")
    raise JllamaError(
        f"tokenizer.json: a decoder of {kinds or 'no kind'} is not supported; "
        "ByteLevel, Metaspace and the SentencePiece sequence are"
    )


def _flat(decoder: dict | None) -> list[dict]:
    if not decoder:
        return []
    if decoder.get("type") == "Sequence":
        return [part for inner in decoder["decoders"] for part in _flat(inner)]
    return [decoder]
