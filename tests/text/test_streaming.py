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


def of_bytes(**how):
    return Detokenizer(lambda token: bytes([token]), skipped=[1], **how)


@pytest.mark.parametrize("blanks", [0, 1])
@pytest.mark.parametrize("refused", [True, False])
def test_what_is_refused_leaves_the_stream_as_it_was(blanks, refused):
    """A character may lie on the border, and so may a blank that is dropped."""
    stream, asked = StreamDecoder(of_bytes(drop_blanks=blanks)), []
    for token in " "[: 1 - blanks].encode() + b"\xc3":
        stream.push(token)
    found = stream.push_unless([0xA9, 1, 65], lambda text: asked.append(text) or refused)
    assert (asked, found) == (["éA"], None if refused else "éA")
    assert stream.pending() == ("\ufffd" if refused else "")
    rest = [0xA9, 65, 66] if refused else [66]
    assert "".join(map(stream.push, rest)) == ("éAB" if refused else "B")
    fresh = StreamDecoder(of_bytes(drop_blanks=1))
    assert fresh.push_unless(b" a", lambda text: text == "a") is None
    assert fresh.push_unless(b"  ", lambda text: False) == " "
    assert fresh.push_unless(b" ", lambda text: False) == " "


def test_a_blank_at_the_start_may_be_kept():
    kept, dropped = (StreamDecoder(of_bytes(drop_blanks=1)) for _ in range(2))
    kept.keep_blanks()
    assert [stream.push_bytes(b" a") for stream in (kept, dropped)] == [" a", "a"]
    kept.keep_blanks()
    assert kept.push_bytes(b" b") == " b"


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({}, "AB"),
        ({"shown": [1]}, "A\1B"),
        ({"shown": [2]}, "AB"),
        ({"skip_special": False}, "A\1B"),
        ({"skip_special": False, "shown": [2]}, "A\1B"),
    ],
)
def test_special_tokens_are_no_text_but_for_those_that_are_shown(how, text):
    for prompt in ((), [65], [1]):
        stream = StreamDecoder(of_bytes(), prompt, **how)
        assert "".join(map(stream.push, [65, 1, 66])) == text
        whole = StreamDecoder(of_bytes(), prompt, **how)
        assert whole.push_unless([65, 1, 66], lambda made: False) == text


@pytest.mark.parametrize(
    ("data", "pieces", "tail"),
    [
        (b"a", ["a"], ""),
        (b"\xc3\xa9", ["", "é"], ""),
        (b"\xc3", [""], "\ufffd"),
        (b"\xe2\x82", ["", ""], "\ufffd"),
        (b"\xe2\x82a", ["", "", "\ufffda"], ""),
        (b"\xff\xfe", ["\ufffd", "\ufffd"], ""),
        (b"\xf0\x9f\x98\x80!", ["", "", "", "😀", "!"], ""),
        (b"\xf0\x9f\x98", ["", "", ""], "\ufffd"),
        ("\ufeff".encode(), ["", "", "\ufeff"], ""),
    ],
)
def test_bytes_are_text_as_soon_as_they_can_be(data, pieces, tail):
    stream = StreamDecoder(of_bytes())
    assert [stream.push(byte) for byte in data] == pieces
    assert stream.pending() == stream.flush() == tail
    assert stream.flush() == ""
    assert "".join(pieces) + tail == of_bytes().decode(data) == data.decode(errors="replace")
