"""Whether a schema lets a JSON value come: asked byte by byte, with a vocabulary of all bytes."""

import functools
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jllama.grammar.compiler import compiled
from jllama.grammar.words import Words, words_of
from jllama.text.tokenizer import Tokenizer
from tests.support.tiny_checkpoint import KEYS, write_tiny_model

ORDERS = 120  # of keys that are tried, at most


@functools.cache
def byte_words() -> tuple[Tokenizer, Words]:
    """The tiny model's vocabulary: a token for each byte, and an end."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.from_dir(write_tiny_model(Path(folder) / "tiny"))
    return tokenizer, words_of(tokenizer, KEYS["vocab_size"])


def matcher_of(schema: Any) -> Any:
    """What the mask is made by.

    Raises:
      JllamaError: the schema is refused.
    """
    return compiled(byte_words()[1], "json_schema", json.dumps(schema, ensure_ascii=False))


def takes(matcher: Any, text: str) -> bool:
    """Whether an answer may be this text, and may end behind it."""
    ids = byte_words()[0].encode(text, add_special=False)
    copy = matcher.deep_copy()
    if copy.try_consume_tokens(ids) != len(ids):
        return False
    copy.compute_bitmask()
    return copy.is_accepting()


def takes_value(matcher: Any, value: Any) -> bool:
    """Whether it may be this value, its keys in some order: a schema decides which."""
    return any(takes(matcher, text) for text in itertools.islice(spellings(value), ORDERS))


def spellings(value: Any) -> Iterator[str]:
    """A value as JSON, with its keys in every order; 2.0 as 2 too."""
    for each in _orders(value):
        yield json.dumps(each, ensure_ascii=False)


def _orders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for keys in itertools.permutations(value):
            for values in itertools.product(
                *(list(itertools.islice(_orders(value[key]), 24)) for key in keys)
            ):
                yield dict(zip(keys, values, strict=True))
    elif isinstance(value, list):
        yield from map(
            list, itertools.product(*(list(itertools.islice(_orders(item), 24)) for item in value))
        )
    elif isinstance(value, float) and value.is_integer():
        yield from (int(value), value)
    else:
        yield value
