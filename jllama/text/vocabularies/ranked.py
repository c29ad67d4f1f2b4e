"""Vocabularies of byte strings with ranks: tiktoken's table, as Meta's Llama 3 has it, and tekken.json.

Two neighbours are merged if what they make is in the vocabulary, what has the lowest rank first. The merges
of a `tokenizers` model say the same, made as transformers makes them of such a file, so that a model has
the ids of its tokenizer.json.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from jllama.errors import JllamaError
from jllama.files.errors import file_errors, refuse_stand_in
from jllama.files.json_files import read_object
from jllama.text.detokenizer import to_byte_level
from jllama.text.vocabularies.pre_tokenizers import PRE_TOKENIZERS
from jllama.text.vocabulary import ADVICE

TIKTOKEN, TEKKEN = "tokenizer.model", "tekken.json"
MAX_BYTES = 1 << 25  # of a table; the largest known has 4 MB
MAX_TOKENS = 1 << 20
MAX_PIECE = 512  # bytes of a token, whose every cut is looked at; the longest known have 128
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]+)\r?\n")
_LLAMA3_RANKS = 128_000
_LLAMA3_NAMES = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *(
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
    *(f"<|reserved_special_token_{at}|>" for at in range(3, 248)),
)
# Of a tekken.json that does not list them.
_TEKKEN_NAMES = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] "
    "[TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] "
    "[/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()


def is_tiktoken(path: Path) -> bool:
    """Whether a tokenizer.model is tiktoken's table."""
    with file_errors(path), path.open("rb") as file:
        return bool(_LINE.match(file.read(4096)))


def read_tiktoken(path: Path, config: Mapping[str, Any], added: Mapping[int, str]) -> tokenizers.Tokenizer:
    """The tokenizer of Llama 3, of its table of ranks.

    Args:
        path: the table. It says neither how words are cut nor which special tokens there are.
        config: config.json's, which says of which model it is.
        added: the special tokens, where files beside it name them; empty: those of Llama 3.1 at their places,
            of which Llama 3 has a few under other names.

    Raises:
        JllamaError: it is broken, or another model's.
    """
    ranks = _table(path)
    if config.get("model_type") != "llama" or len(ranks) != _LLAMA3_RANKS:
        raise JllamaError(
            f"{path} is a tiktoken table of {len(ranks)} tokens, and not Llama 3's, the only one whose words "
            "jllama knows to cut.",
            "Use the model's Hugging Face directory with its tokenizer.json.",
        )
    specials = added or dict(enumerate(_LLAMA3_NAMES, _LLAMA3_RANKS))
    (pattern,) = PRE_TOKENIZERS["llama-bpe"].patterns
    return _build(ranks, pattern, specials, path)


def _table(path: Path) -> dict[bytes, int]:
    with file_errors(path, ADVICE), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
        refuse_stand_in(path, data)
        lines = [_LINE.fullmatch(line) for line in data.splitlines(keepends=True)]
        if len(data) > MAX_BYTES or None in lines:
            raise JllamaError(f"{path} is no table of ranks (truncated?); {ADVICE}")
        return {_bytes(line[1]): int(line[2]) for line in lines if line}


def read_tekken(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer in a tekken.json: special tokens first, then those with ranks.

    Raises:
        JllamaError: it is broken.
    """
    state = read_object(path)
    with file_errors(path, ADVICE):
        config = state["config"]
        first, size = config["default_num_special_tokens"], config["default_vocab_size"]
        if not 0 <= first <= size <= MAX_TOKENS:
            raise ValueError(f"{first} special tokens of {size}")
        ranks = {_bytes(entry["token_bytes"]): first + entry["rank"] for entry in state["vocab"]}
        kept = {piece: at for piece, at in ranks.items() if at < size}
        given = {entry["rank"]: entry["token_str"] for entry in state.get("special_tokens") or ()}
        names = given or dict(enumerate(_TEKKEN_NAMES))
        specials = {at: names.get(at, f"<SPECIAL_{at}>") for at in range(min(first, size))}
        return _build(kept, config["pattern"], specials, path)


def _bytes(text: str | bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{text!r:.40} is no base64") from error


def _build(
    ranks: Mapping[bytes, int], pattern: str, specials: Mapping[int, str], path: Path
) -> tokenizers.Tokenizer:
    """Both kinds as a model of the `tokenizers` library; `ranks` and `specials` have ids."""
    longest = max(map(len, ranks), default=0)
    if longest > MAX_PIECE:
        raise JllamaError(f"{path}: a token of {longest} bytes is none of a model's; {ADVICE}")
    spelt = {piece: to_byte_level(piece) for piece in ranks}
    vocab = {spelt[piece]: at for piece, at in ranks.items()}
    # Those that follow the vocabulary the library numbers itself, and no text reaches them.
    if sorted(specials) != [*range(len(vocab), len(vocab) + len(specials))]:
        vocab |= {text: at for at, text in specials.items()}
    merges = [(spelt[left], spelt[right]) for left, right in _merges(ranks)]
    with file_errors(path, ADVICE):
        inner = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens([AddedToken(specials[at], normalized=False) for at in sorted(specials)])
    return inner


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The cuts of each token into two others, tokens and cuts in the order of ranks."""
    for piece in sorted(ranks, key=ranks.__getitem__):
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        known = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        yield from sorted(known, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
