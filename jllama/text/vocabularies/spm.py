"""SentencePiece vocabularies (a `tokenizer.model`, or a GGUF's `llama` tokens) made to encode."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import tokenizers
from tokenizers import models

from jllama.errors import JllamaError
from jllama.text.detokenizer import metaspace
from jllama.text.special_tokens import Special, special_texts
from jllama.text.vocabularies.spm_charsmap import CharsMap
from jllama.text.vocabulary import ADVICE, AtomEncoder, Vocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
# Below any real score, so that text which spells out "<0x41>" is never taken for that byte.
UNREACHABLE = -1e6
# Characters. The longest known are some hundred blanks; the work on a piece grows with its square.
MAX_PIECE = 1024


@dataclass(frozen=True, kw_only=True)
class SpmModel:
    """The fields of a SentencePiece model that decide how text is cut."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    kind: int = BPE
    byte_fallback: bool = True
    unk_id: int = 0
    bos_id: int | None = 1
    eos_id: int | None = 2
    charsmap: bytes = b""
    add_prefix: bool = True
    squeeze: bool = False  # remove_extra_whitespaces
    every_stretch: bool = True  # the prefix also after a special token
    symbols_first: bool = False  # user-defined symbols are found before blanks are put into the text
    rstrip: Set[str] = frozenset()  # special tokens that swallow the blanks behind them

    def vocabulary(self, extra: Mapping[str, Special] | None = None) -> Vocabulary:
        """Ready to encode; `extra` are tokens that files beside the model add.

        Raises:
            JllamaError: the model is neither BPE nor unigram.
        """
        extra = extra or {}
        special = {
            piece: Special(text=piece, id=at, rstrip=piece in self.rstrip)
            for at, piece in enumerate(self.pieces)
            if self.types[at] in (CONTROL, UNKNOWN)
        }
        ids = {piece: at for at, piece in enumerate(self.pieces)}
        ids |= {text: token.id for text, token in extra.items()}
        pieces = dict(enumerate(self.pieces)) | {token.id: text for text, token in extra.items()}
        return Vocabulary(
            encode=SpmEncoder(self),
            token_bytes=lambda token: metaspace(pieces.get(token, "")),
            drop_blanks=int(self.add_prefix),
            size=max(pieces, default=-1) + 1,
            base_size=len(self.pieces),
            ids=ids,
            specials=special | dict(extra),
            added=[piece for _, piece in _of(self, USER_DEFINED)],
            remake=lambda also: self._with_special(also).vocabulary(extra),
        )

    def _with_special(self, also: Set[str]) -> "SpmModel":
        return replace(self, types=settle_types(self.pieces, self.types, named=also, by_name=False))


class SpmEncoder:
    """SentencePiece's normalisation in Python, its segmentation by the `tokenizers` library."""

    def __init__(self, model: SpmModel):
        self._model = model
        _check(model)
        self._charsmap = CharsMap(model.charsmap) if model.charsmap else None
        builders = {BPE: _bpe, UNIGRAM: _unigram}
        if model.kind not in builders:
            raise JllamaError(
                f"a SentencePiece model of kind {model.kind} is not supported; "
                "BPE and unigram are. Convert it to a tokenizer.json."
            )
        inner = tokenizers.Tokenizer(builders[model.kind](model))
        atoms = {piece: at for at, piece in _of(model, USER_DEFINED)}
        self._encode = AtomEncoder(inner, atoms)

    def __call__(self, text: str, first: bool) -> list[int]:
        if not self._model.symbols_first:
            return self._encode(self.normalise(text, first))
        ids: list[int] = []
        for at, part in enumerate(self._encode.split(text)):
            is_symbol = part in self._encode.atoms
            ids += self._encode(part if is_symbol else self.normalise(part, first or at > 0))
        return ids

    def normalise(self, text: str, first: bool) -> str:
        if self._charsmap:
            # A user's own symbol is spared, even where a rule would change it.
            parts = self._encode.split(text)
            text = "".join(p if p in self._encode.atoms else self._charsmap(p) for p in parts)
        if self._model.squeeze:
            text = re.sub(" {2,}", " ", text.strip(" "))
        if text and self._model.add_prefix and (first or self._model.every_stretch):
            text = " " + text
        return text.replace(" ", "▁")


def _check(model: SpmModel) -> None:
    """Refuses what the library answers by an error in use, or by the end of the process."""
    longest = max(map(len, model.pieces), default=0)
    if longest > MAX_PIECE:
        raise JllamaError(f"the vocabulary is damaged: a piece of {longest} characters; {ADVICE}")
    if model.unk_id not in range(len(model.pieces)):
        raise JllamaError(f"the vocabulary is damaged: no piece {model.unk_id}, its unknown token; {ADVICE}")


def settle_types(
    pieces: Sequence[str],
    types: Sequence[int],
    to_bytes: Callable[[str], bytes] = metaspace,
    **hints: Any,
) -> list[int]:
    """`types` with CONTROL for every piece that is special, whatever its file says; see `special_texts`."""
    symbols = [pieces[at] for at, kind in enumerate(types) if kind == USER_DEFINED]
    special = special_texts(frozenset(pieces), to_bytes, added=symbols, **hints)
    settled = list(types)
    for at in compress(range(len(pieces)), map(special.__contains__, pieces)):
        settled[at] = UNKNOWN if types[at] == UNKNOWN else CONTROL
    return settled


def _of(model: SpmModel, *types: int) -> Iterator[tuple[int, str]]:
    return ((at, p) for at, p in enumerate(model.pieces) if model.types[at] in types)


def _bpe(model: SpmModel) -> models.BPE:
    """Merges from scores: every split of a piece into two others, the best piece first."""
    whole = {piece: at for at, piece in _of(model, NORMAL, USER_DEFINED, UNUSED)}
    order = sorted(whole, key=lambda piece: (-model.scores[whole[piece]], whole[piece]))
    merges = [
        (piece[:cut], piece[cut:])
        for piece in order
        for cut in range(1, len(piece))
        if piece[:cut] in whole and piece[cut:] in whole
    ]
    vocab = whole | {piece: at for at, piece in _of(model, BYTE, UNKNOWN)}
    return models.BPE(
        vocab=vocab,
        merges=merges,
        unk_token=model.pieces[model.unk_id],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: SpmModel) -> models.Unigram:
    # A normalised text has no blanks, so that none of it is ever taken for one of these.
    scored = [(f" {at}", UNREACHABLE) for at in range(len(model.pieces))]
    for at, piece in _of(model, NORMAL, USER_DEFINED):
        scored[at] = (piece, model.scores[at])
    for at, piece in _of(model, BYTE):
        scored[at] = (piece, UNREACHABLE)
    return models.Unigram(scored, unk_id=model.unk_id, byte_fallback=model.byte_fallback)
