"""Text from ids that come one by one: exactly the text of them all, as early as certain."""

import random

import pytest
import tokenizers
from tokenizers import models

from jllama.text.detokenizer import Detokenizer, StreamDecoder
from jllama.text.tokenizer import Tokenizer
from tests.support.tokenizer_helpers import SPM, TEXT, gguf_tokenizer_fields, spm_as_gguf

FULL = "\N{REPLACEMENT CHARACTER}"
EMOJI = "👩‍👩‍👧‍👦🇫🇷 e\u0301 \u1112\u1161\u11ab 你好 नमस्ते ½ 👍🏽"


def load(name, request):
    if name in SPM:
        return Tokenizer.from_gguf(spm_as_gguf(name))
    return request.getfixturevalue(name)


def streamed(tokenizer, ids, prompt=()):
    stream = tokenizer.stream(prompt)
    pieces = [stream.push(token) for token in ids]
    return pieces, stream.flush()


@pytest.mark.parametrize("name", ["smollm2", "story", "bpe", "unigram_bytes"])
def test_pieces_joined_equal_the_full_decode(name, request):
    tokenizer = load(name, request)
    draw = random.Random(7)
    few = [token for token in range(tokenizer.vocab_size) if len(tokenizer.decode([token])) < 2]
    for turn in range(3000):
        pool = few if turn % 3 == 0 else range(tokenizer.vocab_size)
        ids = draw.choices(pool, k=draw.randrange(1, 40))
        pieces, tail = streamed(tokenizer, ids)
        assert "".join(pieces) + tail == tokenizer.decode(ids)
        cut = draw.randrange(len(ids))
        pieces, tail = streamed(tokenizer, ids[cut:], ids[:cut])
        whole, begun = tokenizer.decode(ids), tokenizer.decode(ids[:cut])
        if not begun.endswith(FULL):
            assert begun + "".join(pieces) + tail == whole


def test_byte_level_decode_equals_the_library_on_any_ids(smollm2, smollm2_gguf):
    tokens = gguf_tokenizer_fields(smollm2_gguf)["tokenizer.ggml.tokens"]
    inner = tokenizers.Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, []))
    inner.decoder = tokenizers.decoders.ByteLevel()
    draw = random.Random(3)
    for _ in range(2000):
        ids = draw.choices(range(17, 400), k=30)
        assert smollm2.decode(ids) == inner.decode(ids)


@pytest.mark.parametrize("name", ["smollm2", "bpe"])
def test_no_replacement_character_and_no_delay(name, request):
    tokenizer = load(name, request)
    lines = [EMOJI, *TEXT]
    encoded = [tokenizer.encode(line, add_special=False) for line in lines]
    # SmolLM2 has no token for some control characters, and SentencePiece reads "▁" as a blank.
    pairs = zip(lines, encoded, strict=True)
    kept = [(line, ids) for line, ids in pairs if tokenizer.decode(ids) == line]
    assert len(kept) > 300
    for line, ids in kept:
        pieces, tail = streamed(tokenizer, ids)
        assert ("".join(pieces), tail) == (line, "")
        for at in range(len(ids)):
            whole = tokenizer.decode(ids[: at + 1])
            assert "".join(pieces[: at + 1]) == whole.rstrip(FULL)


def test_each_character_comes_with_its_last_byte(smollm2):
    ids = smollm2.encode("\N{PENGUIN}a")
    pieces, _ = streamed(smollm2, ids)
    last = max(at for at, token in enumerate(ids[:-1]))
    assert pieces[last] == "\N{PENGUIN}"
    assert pieces[-1] == "a"
    assert set(pieces[:last]) == {""}


def test_half_a_character_shows_only_at_the_end(smollm2):
    ids = smollm2.encode("\N{PENGUIN}")[:-1]
    pieces, tail = streamed(smollm2, ids)
    assert ("".join(pieces), tail) == ("", FULL)
    assert smollm2.decode(ids) == FULL


def test_leading_space(story):
    text = "Once upon a time there was a cat"
    ids = story.encode(text)
    for cut in range(len(ids) + 1):
        pieces, tail = streamed(story, ids[cut:], ids[:cut])
        begun = story.decode(ids[:cut])
        assert begun + "".join(pieces) + tail == text
    assert story.decode(ids[1:]) == text
    blank = story.encode(" ", add_special=False)[0]
    assert streamed(story, [blank, blank], ids[:2])[0] == [" ", " "]
    assert streamed(story, [blank, blank], ids[:1])[0] == ["", " "]


def test_as_many_blanks_are_dropped_as_the_decoder_strips():
    """Of the start of a text alone, however its blanks are cut into tokens."""
    stream = StreamDecoder(Detokenizer([b" ", b"  ", b"  a"].__getitem__, drop_blanks=2))
    assert [stream.push(token) for token in (0, 2, 1)] == ["", " a", "  "]


def test_ids_beyond_the_vocabulary_are_silent(smollm2, story):
    for tokenizer in (smollm2, story):
        ids = [*tokenizer.encode("a", add_special=False), tokenizer.vocab_size + 5, 10**9]
        assert tokenizer.decode(ids) == "a"
