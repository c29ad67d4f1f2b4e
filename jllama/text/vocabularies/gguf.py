"""The tokenizer inside a GGUF file."""

import warnings
from collections.abc import Iterable, Mapping, Set
from functools import partial
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers

from jllama.errors import JllamaError
from jllama.text.detokenizer import byte_level, metaspace
from jllama.text.special_tokens import Special
from jllama.text.vocabularies.gguf_fields import (
    chat_templates,
    flag,
    given_types,
    token_id,
    token_types,
    wrong,
)
from jllama.text.vocabularies.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from jllama.text.vocabularies.spm import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    SpmModel,
)
from jllama.text.vocabulary import AtomEncoder, Settings, Vocabulary, ending_ids


def read_vocabulary(fields: Mapping[str, Any]) -> tuple[Vocabulary, Settings]:
    """The vocabulary and settings in a GGUF's metadata (`tokenizer.*`, plain Python values).

    Raises:
        JllamaError: there is no tokenizer, or one of a kind that is not supported.
    """
    kind = fields.get("tokenizer.ggml.model")
    readers = {"llama": _read_spm, "gpt2": _read_bpe, "gemma4": _read_bpe}
    if kind not in readers or not fields.get("tokenizer.ggml.tokens"):
        what = f"a tokenizer of kind {kind!r}" if kind else "no tokenizer"
        raise JllamaError(
            f"the GGUF file has {what}; jllama reads the kinds 'llama', 'gpt2' and 'gemma4'.",
            "Use the model's Hugging Face directory with its tokenizer.json instead.",
        )
    _warn_of_unknown_words(fields)
    vocabulary = readers[kind](fields)
    return vocabulary, _settings(fields, vocabulary)


def _read_spm(fields: Mapping[str, Any]) -> Vocabulary:
    tokens = list(fields["tokenizer.ggml.tokens"])
    scores = fields.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise JllamaError("the GGUF file has no score for each token; convert the model again")
    model = SpmModel(
        pieces=tokens,
        scores=list(scores),
        types=token_types(fields, tokens, metaspace),
        kind=BPE,
        unk_id=token_id(fields, "unknown") or 0,
        charsmap=_charsmap(fields),
        add_prefix=flag(fields, "add_space_prefix", True),
        squeeze=flag(fields, "remove_extra_whitespaces", False),
        symbols_first=True,
        rstrip=_swallowing(fields, tokens),
    )
    return model.vocabulary()


def _swallowing(fields: Mapping[str, Any], tokens: list[str]) -> frozenset[str]:
    """Special tokens that swallow the blanks behind them: GGUF has no place for that, and Phi-3 does it."""
    if fields.get("general.architecture") != "phi3":
        return frozenset()
    types = given_types(fields)
    marked = {token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)}
    return frozenset(marked - {"<unk>", "<s>", "<|endoftext|>"})


def _charsmap(fields: Mapping[str, Any]) -> bytes:
    given = fields.get("tokenizer.ggml.precompiled_charsmap", b"")
    if isinstance(given, bytes):
        return given
    numbers = np.asarray(given)
    if numbers.ndim != 1 or (numbers.size and (numbers.dtype.kind not in "iu" or np.ptp(numbers) > 255)):
        raise wrong("tokenizer.ggml.precompiled_charsmap", given, "not an array of bytes")
    return numbers.astype(np.uint8).tobytes()


def _read_bpe(fields: Mapping[str, Any], also: Iterable[str] = ()) -> Vocabulary:
    tokens = list(fields["tokenizer.ggml.tokens"])
    pre = _pre_tokenizer(fields)
    to_bytes, spelt = (byte_level, (NORMAL,)) if pre.byte_level else (metaspace, (NORMAL, BYTE))
    types = token_types(fields, tokens, to_bytes, also)
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    # Few tokens are not normal, and a start walks over all only once. Of a text's tokens, the last counts.
    unusual = {tokens[at]: at for at, kind in enumerate(types) if kind != NORMAL and ids[tokens[at]] == at}
    special = {token: at for token, at in unusual.items() if types[at] in (CONTROL, UNKNOWN)}
    atoms = {token: at for token, at in unusual.items() if types[at] == USER_DEFINED}
    plain = ids.copy()
    for token in special:
        del plain[token]
    encode = AtomEncoder(_bpe_model(fields, pre, plain, _learnt(fields, special)), atoms)

    def token_bytes(token: int) -> bytes:
        if token >= len(tokens):
            return b""
        # As in llama.cpp, only tokens of these types are in the alphabet that stands for bytes.
        text = tokens[token]
        return to_bytes(text) if types[token] in spelt else text.encode("utf-8", "replace")

    return Vocabulary(
        encode=lambda text, _first: encode(text),
        token_bytes=token_bytes,
        drop_blanks=0,
        size=len(tokens),
        base_size=len(tokens),
        ids=ids,
        specials={token: Special(text=token, id=at) for token, at in special.items()},
        added=atoms.keys(),
        remake=partial(_read_bpe, fields),
    )


def _learnt(fields: Mapping[str, Any], special: Mapping[str, int]) -> set[str]:
    """Those special tokens that the file has as ordinary ones: merges may lead to them."""
    types = given_types(fields)
    return {token for token, at in special.items() if types[at] not in (CONTROL, UNKNOWN)}


def _bpe_model(
    fields: Mapping[str, Any], pre: PreTokenizer, vocab: dict[str, int], unwanted: Set[str]
) -> tokenizers.Tokenizer:
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges", ())]
    if unwanted:
        merges = [merge for merge in merges if unwanted.isdisjoint((*merge, "".join(merge)))]
    try:
        model = models.BPE(
            vocab=vocab, merges=merges, ignore_merges=pre.whole_words, byte_fallback=not pre.byte_level
        )
    except Exception as error:  # the library raises nothing narrower
        raise JllamaError(f"the GGUF file's merges do not fit its tokens: {error}") from error
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre.build()
    if not pre.byte_level:
        inner.normalizer = normalizers.Replace(" ", "▁")
    return inner


def _pre_tokenizer(fields: Mapping[str, Any]) -> PreTokenizer:
    """How a vocabulary with merges cuts words; `gemma4` is a kind and a way in one."""
    kind, name = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    name = name if kind == "gpt2" else kind
    if name is not None and name not in PRE_TOKENIZERS:
        raise JllamaError(
            f"the GGUF file cuts words in the way {name!r}, which is not supported "
            f"(supported: {', '.join(PRE_TOKENIZERS)}).",
            "Use the model's Hugging Face directory with its tokenizer.json instead.",
        )
    return PRE_TOKENIZERS[name or "default"]


def _warn_of_unknown_words(fields: Mapping[str, Any]) -> None:
    if fields["tokenizer.ggml.model"] == "gpt2" and fields.get("tokenizer.ggml.pre") is None:
        warnings.warn(
            "the GGUF file does not say how it cuts words (tokenizer.ggml.pre); llama.cpp's default way is "
            "assumed, and answers may be worse. Convert the model again to mend it.",
            stacklevel=2,
        )


def _settings(fields: Mapping[str, Any], vocabulary: Vocabulary) -> Settings:
    def token(name: str) -> int | None:
        return token_id(fields, name, warn=True)

    bos, eos = token("bos"), token("eos")
    add_bos = _adds_bos(fields)
    add_eos = flag(fields, "add_eos_token", False)
    templates = chat_templates(fields)
    ends = {eos, token("eot"), token("eom")} - {None} | ending_ids(vocabulary, templates)
    texts = fields["tokenizer.ggml.tokens"]
    names = {"bos": bos, "eos": eos, "unk": token("unknown"), "pad": token("padding")}
    return Settings(
        bos_id=bos,
        eos_ids=frozenset(end for end in ends if end is not None),
        prefix=(bos,) if add_bos and bos is not None else (),
        suffix=(eos,) if add_eos and eos is not None else (),
        templates=templates,
        variables={f"{name}_token": texts[at] for name, at in names.items() if at is not None},
    )


def _adds_bos(fields: Mapping[str, Any]) -> bool:
    if fields["tokenizer.ggml.model"] == "llama":
        return flag(fields, "add_bos_token", True)
    pre = _pre_tokenizer(fields)
    return flag(fields, "add_bos_token", pre.add_bos) or pre.insists_on_bos
