"""The tokenizer inside a GGUF file."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from jllama.errors import JllamaError
from jllama.text.detokenizer import byte_level, metaspace
from jllama.text.special_tokens import Special
from jllama.text.vocabularies.spm import BPE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, SpmModel, settle_types
from jllama.text.vocabulary import AtomEncoder, Settings, Vocabulary, ending_ids

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Each `tokenizer.ggml.pre` as the patterns that cut a text, one after the other.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais"), (GPT2,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        (r"\p{N}", GPT2),
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "dbrx", "smaug-bpe"), (LLAMA3,)
    ),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), (QWEN2,)),
    "tekken": (TEKKEN,),
}
# Those that take a whole word out of the vocabulary before merging, and begin with BOS unasked.
WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"}
# llama.cpp's ids of a `llama` vocabulary that does not name them.
SPM_IDS = {"bos": 1, "eos": 2, "unknown": 0}


def read_vocabulary(fields: Mapping[str, Any]) -> tuple[Vocabulary, Settings]:
    """The vocabulary and settings in a GGUF's metadata (`tokenizer.*`, plain Python values).

    Raises:
        JllamaError: there is no tokenizer, or one of a kind that is not supported.
    """
    kind = fields.get("tokenizer.ggml.model")
    readers = {"llama": _read_spm, "gpt2": _read_bpe}
    if kind not in readers or not fields.get("tokenizer.ggml.tokens"):
        what = f"a tokenizer of kind {kind!r}" if kind else "no tokenizer"
        raise JllamaError(
            f"the GGUF file has {what}; jllama reads the kinds 'llama' and 'gpt2'.",
            "Use the model's Hugging Face directory with its tokenizer.json instead.",
        )
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
        types=_types(fields, tokens, metaspace),
        kind=BPE,
        unk_id=_token_id(fields, "unknown") or 0,
        charsmap=_charsmap(fields),
        add_prefix=_flag(fields, "add_space_prefix", True),
        squeeze=_flag(fields, "remove_extra_whitespaces", False),
        symbols_first=True,
    )
    return model.vocabulary()


def _charsmap(fields: Mapping[str, Any]) -> bytes:
    given = fields.get("tokenizer.ggml.precompiled_charsmap", b"")
    if isinstance(given, bytes):
        return given
    numbers = np.asarray(given)
    if numbers.ndim != 1 or (numbers.size and (numbers.dtype.kind not in "iu" or np.ptp(numbers) > 255)):
        raise _wrong("tokenizer.ggml.precompiled_charsmap", given, "not an array of bytes")
    return numbers.astype(np.uint8).tobytes()


def _types(
    fields: Mapping[str, Any], tokens: list[str], to_bytes: Callable[[str], bytes], also: Iterable[str] = ()
) -> list[int]:
    """The type of each token, with CONTROL for all that is special; `also` names more of that."""
    ids = (_token_id(fields, name) for name in ("bos", "eos", "eot", "eom"))
    named = [tokens[token] for token in ids if token is not None]
    given = _given_types(fields)
    return settle_types(tokens, given, to_bytes, named=[*named, *also], templates=_templates(fields).values())


def _given_types(fields: Mapping[str, Any]) -> list[int]:
    types, count = fields.get("tokenizer.ggml.token_type", ()), len(fields["tokenizer.ggml.tokens"])
    return types if len(types) == count else [NORMAL] * count


def _wrong(key: str, value: Any, what: str) -> JllamaError:
    return JllamaError(f"the GGUF file's {key} is {value!r:.40}, {what}; convert the model again")


def _token_id(fields: Mapping[str, Any], name: str, warn: bool = False) -> int | None:
    """The token with this role; like llama.cpp, its default where the file's is outside the vocabulary."""
    default = SPM_IDS.get(name) if fields["tokenizer.ggml.model"] == "llama" else None
    key = f"tokenizer.ggml.{name}_token_id"
    given = fields.get(key, default)
    if given is None:
        return None
    if type(given) is not int:
        raise _wrong(key, given, "which is no token id")
    known = range(len(fields["tokenizer.ggml.tokens"]))
    if name == "unknown" and given not in known:
        raise IndexError(f"its unknown token is number {given}")
    if warn and key in fields and given not in known:
        outside = f"is outside its vocabulary of {len(known)} tokens"
        warnings.warn(f"the GGUF file's {key}={given} {outside}; it is ignored", stacklevel=2)
    return next((token for token in (given, default) if token in known), None)


def _flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    given = fields.get(f"tokenizer.ggml.{name}", default)
    if given not in (True, False):
        raise _wrong(f"tokenizer.ggml.{name}", given, "neither true nor false")
    return bool(given)


def _read_bpe(fields: Mapping[str, Any], also: Iterable[str] = ()) -> Vocabulary:
    tokens = list(fields["tokenizer.ggml.tokens"])
    types = _types(fields, tokens, byte_level, also)
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    # Few tokens are not normal, and a start walks over all only once. Of a text's tokens, the last counts.
    unusual = {tokens[at]: at for at, kind in enumerate(types) if kind != NORMAL and ids[tokens[at]] == at}
    special = {token: at for token, at in unusual.items() if types[at] in (CONTROL, UNKNOWN)}
    atoms = {token: at for token, at in unusual.items() if types[at] == USER_DEFINED}
    plain = ids.copy()
    for token in special:
        del plain[token]
    encode = AtomEncoder(_bpe_model(fields, plain, _learnt(fields, special)), atoms)

    def token_bytes(token: int) -> bytes:
        if token >= len(tokens):
            return b""
        # As in llama.cpp, only ordinary tokens are in the alphabet that stands for bytes.
        text = tokens[token]
        return byte_level(text) if types[token] == NORMAL else text.encode("utf-8", "replace")

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
    types = _given_types(fields)
    return {token for token, at in special.items() if types[at] not in (CONTROL, UNKNOWN)}


def _bpe_model(fields: Mapping[str, Any], vocab: dict[str, int], unwanted: Set[str]) -> tokenizers.Tokenizer:
    pre = _pre_tokenizer_name(fields)
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges", ())]
    if unwanted:
        merges = [merge for merge in merges if unwanted.isdisjoint((*merge, "".join(merge)))]
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in WHOLE_WORDS)
    except Exception as error:  # the library raises nothing narrower
        raise JllamaError(f"the GGUF file's merges do not fit its tokens: {error}") from error
    inner = tokenizers.Tokenizer(model)
    cuts = [pre_tokenizers.Split(Regex(part), "isolated") for part in PRE_TOKENIZERS[pre]]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*cuts, letters])
    return inner


def _pre_tokenizer_name(fields: Mapping[str, Any]) -> str:
    pre = fields.get("tokenizer.ggml.pre")
    if pre is None:
        warnings.warn(
            "the GGUF file does not say how it cuts words (tokenizer.ggml.pre); GPT-2's way is "
            "assumed, and answers may be worse. Convert the model again to mend it.",
            stacklevel=2,
        )
        return "default"
    if pre not in PRE_TOKENIZERS:
        raise JllamaError(
            f"the GGUF file cuts words in the way {pre!r}, which is not supported "
            f"(supported: {', '.join(PRE_TOKENIZERS)}).",
            "Use the model's Hugging Face directory with its tokenizer.json instead.",
        )
    return pre


def _settings(fields: Mapping[str, Any], vocabulary: Vocabulary) -> Settings:
    def token(name: str) -> int | None:
        return _token_id(fields, name, warn=True)

    bos, eos = token("bos"), token("eos")
    spm = fields["tokenizer.ggml.model"] == "llama"
    add_bos = _flag(fields, "add_bos_token", spm or fields.get("tokenizer.ggml.pre") in WHOLE_WORDS)
    add_eos = _flag(fields, "add_eos_token", False)
    templates = _templates(fields)
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


def _templates(fields: Mapping[str, Any]) -> dict[str, str]:
    main = "tokenizer.chat_template"
    found = {key: value for key, value in fields.items() if key == main or key.startswith(main + ".")}
    for key, value in found.items():
        if not isinstance(value, str):
            raise _wrong(key, value, "not a text")
    default = found.pop(main, "")
    named = {key.removeprefix(main + "."): value for key, value in found.items()}
    return ({"default": default} if default else {}) | named
