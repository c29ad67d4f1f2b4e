"""Tokenizers that several test files share."""

import functools
import json
import shutil
from pathlib import Path

import gguf
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from jllama.text.tokenizer import Tokenizer
from jllama.text.vocabularies.spm_file import read_model

GOLDENS = Path(__file__).parents[1] / "goldens" / "tokenizers"
TEXT = json.loads((GOLDENS / "text.json").read_text(encoding="utf-8"))
SPM = ("bpe", "bpe_symbols", "unigram", "unigram_bytes")


@functools.cache
def gguf_tokenizer_fields(path: Path) -> dict:
    fields = gguf.GGUFReader(path).fields
    return {key: fields[key].contents() for key in fields if key.startswith("tokenizer.")}


@functools.cache
def gguf_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(gguf_tokenizer_fields(path))


def spm_as_gguf(name: str) -> dict:
    """A GGUF's `llama` vocabulary with the pieces of a golden SentencePiece model."""
    model = read_model(GOLDENS / f"{name}.model")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": model.pieces,
        "tokenizer.ggml.scores": model.scores,
        "tokenizer.ggml.token_type": model.types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@functools.cache
def spm_charsmap() -> bytes:
    return read_model(GOLDENS / "unigram.model").charsmap


def expected_ids(name):
    return json.loads((GOLDENS / f"{name}.json").read_text())


def write_directory(path, **files):
    """Each keyword is a file: `config={...}` is config.json; text goes in as it is."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        if isinstance(content, str):
            (path / name.replace("__", ".")).write_text(content, encoding="utf-8")
        else:
            (path / f"{name}.json").write_text(json.dumps(content))
    return path


def spm_directory(path, name, **files):
    write_directory(path, **files)
    shutil.copy(GOLDENS / f"{name}.model", path / "tokenizer.model")
    return path


def byte_level_json(*, added=(), bos=None, unknown=None):
    """A byte-level tokenizer of single bytes, its added tokens after them.

    It puts `bos` before a text, by a rule that names the token `unknown` instead if there is one.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_tokens([tokenizers.AddedToken(text, special=special) for text, special in added])
    if bos:
        pair = (bos, inner.token_to_id(bos))
        inner.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[pair])
    text = inner.to_str()
    if unknown is None:
        return text
    rule = '{"SpecialToken":{"id":"'
    return text.replace(f'{rule}{bos}"', f'{rule}{unknown}"')
