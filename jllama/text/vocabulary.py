"""What every kind of tokenizer file boils down to."""

import re
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field

import tokenizers

from jllama.files.errors import file_errors
from jllama.text.special_tokens import END_OF_TEXT, END_OF_TURN, Special

ADVICE = "fetch the model's tokenizer files again"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Text to ids and ids to bytes, without special tokens."""

    encode: Callable[[str, bool], list[int]]  # plain text; is it the first stretch of its text?
    token_bytes: Callable[[int], bytes]
    drop_blanks: int  # blanks that decoding drops at the start of a text
    size: int  # the highest id plus one
    base_size: int  # without tokens that were added to the finished vocabulary
    ids: Mapping[str, int]
    specials: Mapping[str, Special]
    added: Collection[str]  # ordinary tokens that are found in any text before it is cut
    remake: Callable[[Set[str]], "Vocabulary"]  # the same, with these tokens special, too


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the files beside the vocabulary say about its use."""

    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    prefix: tuple[int, ...] = ()  # what encoding puts before a text
    suffix: tuple[int, ...] = ()
    templates: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token, …


class AtomEncoder:
    """A `tokenizers` model over text in which some tokens ("atoms") are matched before it."""

    def __init__(self, model: tokenizers.Tokenizer, atoms: Mapping[str, int]):
        self._model = model
        self.atoms = atoms
        ordered = sorted(filter(None, atoms), key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, ordered)) + ")")

    def split(self, text: str) -> list[str]:
        """`text` in stretches, none empty: the atoms in it and what lies between."""
        return [part for part in self._pattern.split(text) if part] if self.atoms else [text]

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self.split(text):
            atom = self.atoms.get(part)
            ids += self._encode(part) if atom is None else [atom]
        return ids

    def _encode(self, text: str) -> list[int]:
        with file_errors("the model's vocabulary", ADVICE):
            return self._model.encode(text).ids


def ending_ids(vocabulary: Vocabulary, templates: Mapping[str, str]) -> set[int]:
    """Special tokens that end a text, and those that end a turn where a template writes them."""
    written = "".join(templates.values())
    names = [*END_OF_TEXT, *(name for name in END_OF_TURN if name in written)]
    return {vocabulary.specials[name].id for name in names if name in vocabulary.specials}
