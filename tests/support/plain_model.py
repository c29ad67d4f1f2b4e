"""A small base model: a tokenizer as TinyStories-656K has it, no template, random weights."""

import collections
import itertools
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from tests.support.checkpoint_files import write_directory
from tests.support.checkpoint_generator import random_tensors
from tests.support.small_models import BASE

TEXT = (Path(__file__).parents[1] / "goldens" / "story.txt").read_text(encoding="utf-8")
SPECIAL = ("<unk>", "<|start_story|>", "<|end_story|>")
SIZE = 512  # tokens
KEYS: dict[str, Any] = BASE | dict(
    vocab_size=SIZE, hidden_size=64, intermediate_size=96, max_position_embeddings=512
)
_SETTINGS = dict(bos_token=SPECIAL[1], eos_token=SPECIAL[2], unk_token=SPECIAL[0], add_bos_token=True)


def write_plain_model(directory: Path) -> Path:
    """A directory in Hugging Face's layout."""
    write_directory(directory, KEYS, random_tensors(KEYS))
    tokenizer = Tokenizer(_pairs())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[1]} $A", special_tokens=[(SPECIAL[1], 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=True) for text in SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(_SETTINGS))
    return directory


def _pairs() -> models.BPE:
    """Byte pair encoding of the text; the pair decides between equal counts, the same way each time."""
    letters = sorted({*map(chr, range(32, 127)), "\n", "▁", *TEXT} - {" "})
    tokens = [*SPECIAL, *letters]
    words = [list(word) for word in TEXT.replace(" ", " ▁").split(" ")]
    merges = []
    while len(tokens) < SIZE:
        counts = collections.Counter(pair for word in words for pair in itertools.pairwise(word))
        pair = max(counts, key=lambda pair: (counts[pair], pair))
        words = [_merged(word, pair) for word in words]
        merges.append(pair)
        tokens.append("".join(pair))
    return models.BPE({token: at for at, token in enumerate(tokens)}, merges, unk_token=SPECIAL[0])


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out
