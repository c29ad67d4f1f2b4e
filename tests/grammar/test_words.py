"""A vocabulary as the library is given it, and texts that must come as tokens of it; the library plays."""

from types import SimpleNamespace

import pytest

from jllama.errors import JllamaError
from jllama.grammar import words as module
from jllama.grammar.words import Words, words_of


class Letters:
    """A tokenizer of these tokens. It writes a text as it is told to."""

    def __init__(self, *tokens, ends=(0,), special=(), writes=()):
        self._tokens, self._writes = tokens, dict(writes)
        self.eos_ids, self.special_ids = frozenset(ends), frozenset(special)

    def token_bytes(self, token, *, skip_special):
        assert not skip_special
        return self._tokens[token] if token < len(self._tokens) else b""

    def encode(self, text, *, add_special, begins):
        assert not add_special
        assert not begins
        return self._writes.get(text, [])


@pytest.fixture
def library(monkeypatch):
    played = SimpleNamespace(
        TokenizerWrapper=lambda source: source,
        LLTokenizer=lambda source, **given: SimpleNamespace(source=source, **given),
    )
    monkeypatch.setattr(module, "library", lambda: played)


def test_what_each_id_stands_for(library):
    """Nothing for ids without a token, and for what looks like the mark of a special one but is none."""
    tokens = (b"\xff<end>", b"a", b"ab", b"\xff", b"<sys>", b"b")
    made = Words(Letters(*tokens, ends=(0, 9, 300), special=(4, 301)), 10)
    source = made.trie.source
    assert source.tokens == [b"\xff<end>", b"a", b"ab", b"", b"<sys>", b"b", b"", b"", b"", b""]
    assert (source.special_token_ids, source.eos_token_id, source.bos_token_id) == ([0, 4, 9], 0, None)
    assert (made.ends, made.trie.n_vocab, made.trie.eos_token) == ((0, 9), 10, [0, 9])
    with pytest.raises(JllamaError, match="names no token that ends an answer"):
        Words(Letters(*tokens, ends=(10,)), 10)


TOKENS = (b"<end>", b"a", b"ab", b"abc", b"c", b" a", b"\xc3", b"\xa9")


@pytest.mark.parametrize(
    ("text", "writes", "ids"),
    [
        ("ab", {"ab": [1, 2]}, [2]),  # as it writes them, they are another text
        ("ab", {"ab": [2]}, [2]),
        ("aab", {"aab": [1, 2]}, [1, 2]),
        ("ab", {"ab": [5, 2]}, [2]),  # a blank before it
        ("ab", {"ab": [99]}, [2]),  # none of the model's
        ("abcab", {}, [3, 2]),
        ("abcc", {}, [3, 4]),
        ("é", {}, [6, 7]),
        (b"\xc3", {}, [6]),
        (b"a\xff", {}, [1]),
        ("<end>", {}, []),
        ("", {}, []),
        ("caxab", {}, [4, 1]),
    ],
)
def test_a_text_that_must_come_is_its_bytes_to_the_letter(library, text, writes, ids):
    """Else the longest tokens, as far as there are any; special ones are no text."""
    made = Words(Letters(*TOKENS, writes=writes.items()), len(TOKENS))
    assert made.trie.source(text) == ids


def test_the_tokens_of_a_short_text_are_remembered_and_those_of_a_long_one_are_not(library):
    asked, tokenizer = [], Letters(*TOKENS)
    tokenizer.encode = lambda text, **how: asked.append(text) or []
    source = Words(tokenizer, len(TOKENS)).trie.source
    short, long = "a" * module.SHORT, "a" * (module.SHORT + 1)
    for text in (short, long, short, long):
        source(text).append(99)  # what is handed out is the asker's own
        assert source(text) == [1] * len(text)
    assert asked == [short, long, long, long, long]


@pytest.mark.parametrize("lacking", [*'{}[]":,0123456789', "09"])
def test_json_needs_each_of_its_marks_as_a_token(library, lacking):
    marks = '{}[]":,0123456789'
    tokens = [mark.encode() for mark in marks if mark not in lacking]
    made = Words(Letters(b"<end>", *tokens, b"12"), 40)
    with pytest.raises(
        JllamaError, match=r"has no tokens for .: it can't|has no tokens for . .: it"
    ) as caught:
        made.check_json()
    assert f"for {' '.join(lacking)}:" in str(caught.value)
    Words(Letters(b"<end>", *(mark.encode() for mark in marks)), 40).check_json()
    with pytest.raises(JllamaError):
        Words(Letters(b"<end>", *(mark.encode() for mark in marks), special=(1,)), 40).check_json()


def test_a_vocabulary_is_made_once_for_each_tokenizer_and_size(library):
    one, other = Letters(*TOKENS), Letters(*TOKENS)
    made = [words_of(tokenizer, size) for tokenizer in (one, other) for size in (8, 9)]
    again = [words_of(tokenizer, size) for tokenizer in (one, other) for size in (8, 9)]
    assert all(first is second for first, second in zip(made, again, strict=True))
    assert len(set(map(id, made))) == 4
    assert [words.size for words in made] == [8, 9, 8, 9]
