"""The vocabulary in a tokenizer.json."""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from jllama.errors import JllamaError
from jllama.files.errors import file_errors
from jllama.text.detokenizer import byte_level, from_decoder_json
from jllama.text.special_tokens import Special, special_texts
from jllama.text.vocabularies.tokenizer_checks import check_tokenizer_json
from jllama.text.vocabulary import ADVICE, Vocabulary

Ids = tuple[int, ...]


def read_json_vocabulary(
    file: Path, named_texts: set[str], named_ids: set[int], templates: Iterable[str]
) -> tuple[Vocabulary, tuple[Ids, Ids]]:
    """What a tokenizer.json holds, and the ids that it puts before and after a text.

    Args:
        file: the tokenizer.json.
        named_texts, named_ids: tokens that are special even if the file does not say so.
        templates: the sources of the model's chat templates.

    Raises:
        JllamaError: it is broken or of a kind not supported.
    """
    with file_errors(file, ADVICE):
        inner = tokenizers.Tokenizer.from_buffer(check_tokenizer_json(file))
    _check_post_processor(inner, file)
    inner.no_truncation()
    inner.no_padding()
    return vocabulary_of(inner, named_texts, named_ids, templates), _affixes(inner)


def vocabulary_of(
    inner: tokenizers.Tokenizer, named_texts: Set[str], named_ids: Set[int], templates: Iterable[str]
) -> Vocabulary:
    """What a tokenizer of the `tokenizers` library holds; arguments as of `read_json_vocabulary`.

    Raises:
        JllamaError: its decoder is of a kind not supported.
    """
    templates = tuple(templates)
    state = inner.decoder.__getstate__() if inner.decoder else None
    to_bytes, drop_blanks = from_decoder_json(state and state.decode())
    added = inner.get_added_tokens_decoder()
    # Of an added token the library may tell a normalised name, "▁<s>".
    texts = {at: token.content for at, token in added.items()}

    def text_of(token: int) -> str:
        return texts.get(token) or (inner.id_to_token(token) if 0 <= token < 1 << 32 else None) or ""

    def token_bytes(token: int) -> bytes:
        # An added token is plain text, not in the alphabet that stands for bytes.
        if token in texts and to_bytes is byte_level:
            return texts[token].encode("utf-8", "replace")
        return to_bytes(text_of(token))

    ids = _Lookup(inner)
    contents = [token.content for token in added.values()]
    named = {*named_texts, *map(text_of, named_ids)}
    also = special_texts(ids, to_bytes, added=contents, named=named, templates=templates)
    specials = _specials(ids, added, also)

    def remake(also: Set[str]) -> Vocabulary:
        copy = tokenizers.Tokenizer.from_str(inner.to_str())
        return vocabulary_of(copy, named_texts | also, named_ids, templates)

    return Vocabulary(
        encode=JsonEncoder(inner, specials),
        token_bytes=token_bytes,
        drop_blanks=drop_blanks,
        size=max([inner.get_vocab_size(), *(token + 1 for token in added)]),
        base_size=inner.get_vocab_size(with_added_tokens=False),
        ids=ids,
        specials=specials,
        added=[content for content in contents if content not in specials],
        remake=remake,
    )


class JsonEncoder:
    """A tokenizer.json on plain text: what its special tokens spell stays text."""

    def __init__(self, inner: tokenizers.Tokenizer, specials: Mapping[str, Special]):
        self._inner = inner
        self._specials = specials
        inner.encode_special_tokens = True
        added = inner.get_added_tokens_decoder().values()
        inner.add_special_tokens([t for t in added if t.content in specials and not t.special])
        self._in_model = {text for text, token in specials.items() if _is_reachable(inner.model, token.id)}
        self._first = self._without_specials() if self._in_model else inner

    def __call__(self, text: str, first: bool) -> list[int]:
        inner = self._first if first else self._later
        with file_errors("the model's tokenizer.json", ADVICE):
            return inner.encode(text, add_special_tokens=False).ids

    @cached_property
    def _later(self) -> tokenizers.Tokenizer:
        """For stretches after a special token, where `prepend_scheme: first` puts no blank."""
        pre = self._inner.pre_tokenizer
        if pre is None or b'"first"' not in pre.__getstate__():
            return self._first
        return self._without_specials(prepend_scheme="never")

    def _without_specials(self, **first: str) -> tokenizers.Tokenizer:
        """The tokenizer anew, special tokens out of its reach; `first` for pre-tokenizers of that scheme."""
        state = json.loads(self._inner.to_str())
        for part in _parts(state["pre_tokenizer"] or {}, "pretokenizers"):
            if part.get("prepend_scheme") == "first":
                part |= first
        _rename(state, self._in_model)
        made = tokenizers.Tokenizer.from_str(json.dumps(state))
        made.encode_special_tokens = True
        return made


def _is_reachable(model: tokenizers.models.Model, token: int) -> bool:
    """Whether the model itself finds this token in a text that spells it."""
    text = model.id_to_token(token)
    if text is None:
        return False
    try:
        return any(found.id == token for found in model.tokenize(text))
    except Exception:  # the library raises nothing narrower
        return True


def _rename(state: dict[str, Any], texts: set[str]) -> None:
    """Gives these tokens names that no text contains, since nobody can know them; all ids stay."""
    secret = secrets.token_hex(8)
    names = {text: f"{secret} {at}" for at, text in enumerate(sorted(texts))}
    model = state["model"]
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    else:
        model["vocab"] = {names.get(piece, piece): token for piece, token in vocab.items()}
    if "merges" in model:
        model["merges"] = [m for m in model["merges"] if texts.isdisjoint((*m, "".join(m)))]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])


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


def _specials(
    ids: Mapping[str, int], added: Mapping[int, tokenizers.AddedToken], also: set[str]
) -> dict[str, Special]:
    return {text: Special(text=text, id=ids[text]) for text in also} | {
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
