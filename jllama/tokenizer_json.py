"""The vocabulary in a tokenizer.json."""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from jllama.detokenizer import byte_level, from_decoder_json
from jllama.errors import JllamaError
from jllama.file_errors import file_errors
from jllama.special_tokens import Special
from jllama.tokenizer_checks import check_tokenizer_json
from jllama.vocabulary import ADVICE, Vocabulary

Ids = tuple[int, ...]


def read_json_vocabulary(file: Path, special_texts: set[str]) -> tuple[Vocabulary, tuple[Ids, Ids]]:
    """What a tokenizer.json holds, and the ids that it puts before and after a text.

    Args:
        file: the tokenizer.json.
        special_texts: added tokens that are special even if the file does not say so.

    Raises:
        JllamaError: it is broken or of a kind not supported.
    """
    with file_errors(file, ADVICE):
        inner = tokenizers.Tokenizer.from_buffer(check_tokenizer_json(file))
    _check_post_processor(inner, file)
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
    state = inner.decoder.__getstate__() if inner.decoder else None
    to_bytes, drop_blanks = from_decoder_json(state and state.decode())
    added = inner.get_added_tokens_decoder()
    # Of an added token the library may tell a normalised name, "▁<s>".
    texts = {at: token.content for at, token in added.items()}

    def token_bytes(token: int) -> bytes:
        # An added token is plain text, not in the alphabet that stands for bytes.
        if token in texts and to_bytes is byte_level:
            return texts[token].encode("utf-8", "replace")
        return to_bytes(texts.get(token) or inner.id_to_token(token) or "")

    vocabulary = Vocabulary(
        encode=JsonEncoder(inner),
        token_bytes=token_bytes,
        drop_blanks=drop_blanks,
        size=max([inner.get_vocab_size(), *(token + 1 for token in added)]),
        base_size=inner.get_vocab_size(with_added_tokens=False),
        ids=_Lookup(inner),
        specials=_specials(added, special_texts),
    )
    demoted = [t for t in added.values() if t.content in vocabulary.specials and not t.special]
    inner.add_special_tokens(demoted)
    return vocabulary, _affixes(inner)


class JsonEncoder:
    """A tokenizer.json on plain text: what its special tokens spell stays text."""

    def __init__(self, inner: tokenizers.Tokenizer):
        self._inner = inner

    def __call__(self, text: str, first: bool) -> list[int]:
        inner = self._inner if first else self._later
        with file_errors("the model's tokenizer.json", ADVICE):
            return inner.encode(text, add_special_tokens=False).ids

    @cached_property
    def _later(self) -> tokenizers.Tokenizer:
        """For stretches after a special token, where `prepend_scheme: first` puts no blank."""
        inner = self._inner
        if inner.pre_tokenizer is None or b'"first"' not in inner.pre_tokenizer.__getstate__():
            return inner
        state = json.loads(inner.to_str())
        for part in _parts(state["pre_tokenizer"], "pretokenizers"):
            if part.get("prepend_scheme") == "first":
                part["prepend_scheme"] = "never"
        later = tokenizers.Tokenizer.from_str(json.dumps(state))
        later.encode_special_tokens = True
        return later


def _parts(step: dict[str, Any], inner: str) -> Iterator[dict[str, Any]]:
    """A step of the tokenizer, and those that it is made of: the key `inner` of a sequence lists them."""
    yield step
    for part in step.get(inner, ()):
        yield from _parts(part, inner)


class _Lookup(Mapping[str, int]):
    """Text to id without copying a vocabulary of a hundred thousand entries."""

    def __init__(self, inner: tokenizers.Tokenizer):
        self._inner = inner

    def __getitem__(self, text: str) -> int:
        token = self._inner.token_to_id(text)
        if token is None:
            raise KeyError(text)
        return token

    def __iter__(self) -> Iterator[str]:
        return iter(self._inner.get_vocab())

    def __len__(self) -> int:
        return self._inner.get_vocab_size()


def _specials(added: Mapping[int, tokenizers.AddedToken], also: set[str]) -> dict[str, Special]:
    return {
        token.content: Special(
            text=token.content,
            id=at,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
        )
        for at, token in added.items()
        if token.special or token.content in also
    }


def _check_post_processor(inner: tokenizers.Tokenizer, file: Path) -> None:
    """Refuses what the library would only notice in use, by a panic that no `except Exception` catches."""
    state = json.loads(inner.post_processor.__getstate__()) if inner.post_processor else {}
    for part in _parts(state, "processors"):
        named = [piece["SpecialToken"]["id"] for piece in part.get("single", ()) if "SpecialToken" in piece]
        unknown = [text for text in named if text not in part["special_tokens"]]
        if unknown:
            raise JllamaError(
                f"{file}: its post_processor names {unknown[0]!r}, which is none of its special tokens; "
                "fetch the model's tokenizer files again"
            )


def _affixes(inner: tokenizers.Tokenizer) -> tuple[Ids, Ids]:
    """What the post-processor puts before and after a text."""
    plain = inner.encode("a", add_special_tokens=False).ids
    whole = inner.encode("a", add_special_tokens=True).ids
    for at in range(len(whole) - len(plain) + 1):
        if whole[at : at + len(plain)] == plain:
            return tuple(whole[:at]), tuple(whole[at + len(plain) :])
    return (), ()
