"""A model's vocabulary as `llguidance` wants it: the bytes of every id."""

import collections
import functools
import threading
import weakref
from collections.abc import Collection
from typing import Any

from jllama.errors import JllamaError
from jllama.grammar.library import library
from jllama.text.tokenizer import Tokenizer

MARK = 0xFF  # the library's own mark of a special token; no UTF-8 text has this byte
# Texts that must come, and the length of those, whose tokens are remembered: a grammar asks for few of them,
# again and again, and each costs 30 µs and Python's lock.
KEPT, SHORT = 4096, 256
JSON_BYTES = b'{}[]":,0123456789'


class Words:
    """The vocabulary, and what was compiled for it.

    Attributes:
      trie: the library's `LLTokenizer` of V ids.
      ends: ids that end an answer; they may come where what it must match is complete.
      compiled: matchers by what they match, the one used last at the end; under `lock`.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Reads all tokens: 1.4 s for 262,144.

        Raises:
          JllamaError: no token ends an answer.
        """
        self.size = vocab_size
        self.ends = tuple(sorted(id_ for id_ in tokenizer.eos_ids if id_ < vocab_size))
        if not self.ends:
            raise JllamaError(
                "the model's tokenizer names no token that ends an answer, and one that must match could not "
                "end: leave out what it must match"
            )
        special = {*self.ends, *(id_ for id_ in tokenizer.special_ids if id_ < vocab_size)}
        tokens = [_bytes(tokenizer, id_, id_ in special) for id_ in range(vocab_size)]
        self._single = {
            token[0] for id_, token in enumerate(tokens) if len(token) == 1 and id_ not in special
        }
        source = _Source(tokenizer, tokens, sorted(special), self.ends[0])
        llguidance = library()
        wrapped = llguidance.TokenizerWrapper(source)
        self.trie: Any = llguidance.LLTokenizer(wrapped, n_vocab=vocab_size, eos_token=list(self.ends))
        self.compiled: collections.OrderedDict[tuple[str, str], Any] = collections.OrderedDict()
        self.lock = threading.Lock()

    def check_json(self) -> None:
        """Refuses a vocabulary that can't write JSON.

        Raises:
          JllamaError: names what it lacks.
        """
        lacking = [chr(byte) for byte in JSON_BYTES if byte not in self._single]
        if lacking:
            shown = " ".join(lacking)
            raise JllamaError(f"the model's vocabulary has no tokens for {shown}: it can't write JSON")


def _bytes(tokenizer: Tokenizer, token: int, special: bool) -> bytes:
    """What an id stands for; nothing for one that is none, or no part of a text."""
    found = tokenizer.token_bytes(token, skip_special=False)
    return b"" if not special and MARK in found else found


class _Source:
    """What the library's `TokenizerWrapper` asks for."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], special: Collection[int], end: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, list(special), end
        self._tokenizer = tokenizer
        self._ids_of = functools.lru_cache(KEPT)(self._written)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens of a text that must come: the library believes them, so they are its bytes to the letter.

        Some tokenizers put a blank before a text; others know no token for a character.
        """
        data = text.encode() if isinstance(text, str) else text
        return list(self._ids_of(data)) if len(data) <= SHORT else self._written(data)

    def _written(self, data: bytes) -> list[int]:
        ids = self._tokenizer.encode(data.decode("utf-8", "replace"), add_special=False, begins=False)
        known = all(token < len(self.tokens) for token in ids)
        return ids if known and b"".join(self.tokens[token] for token in ids) == data else self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        """The longest token each time, up to a byte that none begins with."""
        ids, at = [], 0
        while at < len(data):
            ends = range(min(at + self._longest, len(data)), at, -1)
            end = next((end for end in ends if data[at:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[data[at:end]])
            at = end
        return ids

    @functools.cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {token: id_ for id_, token in enumerate(self.tokens) if token and id_ not in special}

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)


_known: weakref.WeakKeyDictionary[Tokenizer, dict[int, Words]] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def words_of(tokenizer: Tokenizer, vocab_size: int) -> Words:
    """The vocabulary of a model with V ids, made once.

    Args:
      tokenizer: the model's.
      vocab_size: V; ids that the tokenizer does not know never may come.

    Raises:
      JllamaError: see `Words`; or the library is not installed.
    """
    with _making:
        made = _known.setdefault(tokenizer, {})
        if vocab_size not in made:
            made[vocab_size] = Words(tokenizer, vocab_size)
        return made[vocab_size]
