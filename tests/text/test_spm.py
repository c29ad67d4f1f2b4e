"""SentencePiece: its rules of normalisation, and files that are damaged."""

import struct

import numpy as np
import pytest

from jllama.errors import JllamaError
from jllama.text.tokenizer import Tokenizer
from jllama.text.vocabularies.spm import NORMAL, UNKNOWN, UNUSED, SpmModel
from jllama.text.vocabularies.spm_charsmap import CharsMap
from jllama.text.vocabularies.spm_file import _fields, read_model
from tests.support.tokenizer_helpers import GOLDENS, spm_as_gguf

CHARSMAP = read_model(GOLDENS / "unigram.model").charsmap


def test_a_token_of_number_minus_one_is_none(tmp_path):
    """Written as an unsigned number of 64 bits, behind what the settings were."""
    data = (GOLDENS / "bpe.model").read_bytes()
    trainer = dict(_fields(data))[2] + b"\xc8\x02" + b"\xff" * 9 + b"\x01"  # field 41: bos_id
    size = bytes([len(trainer) & 0x7F | 0x80, len(trainer) >> 7])
    (tmp_path / "x.model").write_bytes(data + b"\x12" + size + trainer)
    model = read_model(tmp_path / "x.model")
    assert (model.bos_id, model.eos_id) == (None, 2)


def test_merges_go_through_unused_pieces():
    pieces = ["<unk>", "a", "b", "c", "ab", "abc"]
    types = [UNKNOWN, NORMAL, NORMAL, NORMAL, UNUSED, NORMAL]
    model = SpmModel(pieces=pieces, types=types, scores=[0.0, -4, -4, -4, -1, -2], add_prefix=False)
    assert model.vocabulary().encode("abc", True) == [5]


def charsmap(rules):
    """A compiled map: each node of the trie has 256 units of its own for its children."""
    prefixes = sorted({key[:size] for key in rules for size in range(len(key) + 1)})
    bases = {prefix: 256 * (at + 1) for at, prefix in enumerate(prefixes)}
    units, texts = [0] * 256 * (len(prefixes) + 1), b""
    for prefix in prefixes:
        at = bases[prefix[:-1]] ^ prefix[-1] if prefix else 0
        units[at] = (at ^ bases[prefix]) << 10 | (prefix[-1] if prefix else 0)
        if prefix in rules:
            units[at] |= 0x100
            units[bases[prefix]] = 1 << 31 | len(texts)
            texts += rules[prefix] + b"\0"
    return struct.pack(f"<{len(units) + 1}I", 4 * len(units), *units) + texts


def test_the_longest_rule_of_a_charsmap_counts():
    normalise = CharsMap(charsmap({b"a": b"1", b"abc": b"3", b"\xc3": b"-", "é".encode(): b"e"}))
    assert [normalise(text) for text in ("a", "ab", "abc", "aabcab", "éà")] == ["1", "1b", "3", "131b", "eà"]
    assert CharsMap(CHARSMAP)("ﬁé") == "fié"


TRIE = CHARSMAP[: 4 + int.from_bytes(CHARSMAP[:4], "little")]
UNITS = np.frombuffer(TRIE, "<u4")
PARENT = int(np.flatnonzero((UNITS[1:] & 0x100 != 0) & (UNITS[1:] < 1 << 31))[0]) + 1


def _patched(at, value):
    units = UNITS.copy()
    units[at] = value
    return units.tobytes() + CHARSMAP[len(TRIE) :]


@pytest.mark.parametrize(
    "blob",
    [
        b"\x00",
        bytes(4),
        bytes(5),
        struct.pack("<I", 3) + bytes(9),
        struct.pack("<I", 1 << 30) + bytes(9),
        CHARSMAP[:-1],
        CHARSMAP[:-1] + b"\xff",
        CHARSMAP[:-4] + "é".encode() * 2,
        TRIE,
        _patched(PARENT, 0x1FFFFF << 10 | 0x300 | CHARSMAP[4 * PARENT]),
        _patched(PARENT, 0x100 | CHARSMAP[4 * PARENT]),
    ],
)
def test_damaged_charsmaps(blob):
    with pytest.raises(JllamaError, match="charsmap is damaged"):
        CharsMap(blob)


def test_a_charsmap_replaces_no_letter_by_a_whole_text():
    assert CharsMap(charsmap({b"a": b"x" * 3}))("ab") == "xxxb"
    with pytest.raises(JllamaError, match="charsmap is damaged"):
        CharsMap(charsmap({b"a": b"x" * 300}))


@pytest.mark.parametrize("given", [3, "ab", 1 << 40, [1 << 20, 0], ["a"], [[1]], 1.5, [1.5], None, {}])
def test_charsmaps_of_other_kinds(given):
    with pytest.raises(JllamaError, match="charsmap"):
        Tokenizer.from_gguf(spm_as_gguf("bpe") | {"tokenizer.ggml.precompiled_charsmap": given})


def test_a_charsmap_may_be_bytes_or_numbers():
    fields = spm_as_gguf("bpe")
    for given in (
        CHARSMAP,
        list(CHARSMAP),
        np.frombuffer(CHARSMAP, np.uint8),
        np.frombuffer(CHARSMAP, np.int8),
    ):
        tokenizer = Tokenizer.from_gguf(fields | {"tokenizer.ggml.precompiled_charsmap": given})
        assert tokenizer.encode("ﬁ", add_special=False) == tokenizer.encode("fi", add_special=False)


def _varint(number):
    return bytes([*(number >> at & 127 | 128 for at in range(0, 63, 7)), 0])


def _field(number, data):
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _spm(*pieces, trainer=b"", normalizer=b""):
    return (
        b"".join(_field(1, _field(1, piece)) for piece in pieces) + _field(2, trainer) + _field(3, normalizer)
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_spm(b"<unk>", b"a" * 2000), "a piece of 2000 characters"),
        (_spm(b"<unk>", trainer=_varint(40 << 3) + _varint(9)), "no piece 9"),
        (_spm(b"<unk>", trainer=_varint(40 << 3) + _varint(2**62)), "no piece 4611686018427387904"),
        (_spm(b"<unk>", trainer=_field(40, b"x")), "damaged|SentencePiece|no piece"),
        (_spm(b"<unk>", trainer=_field(3, b"x")), "kind b'x'"),
        (_spm(b"<unk>", normalizer=_varint(2 << 3) + _varint(1 << 40)), "SentencePiece"),
        (_spm(b"<unk>", normalizer=_field(2, b"x")), "charsmap is damaged"),
        (_spm(b"\xff"), "SentencePiece"),
        (b"\xff" * (1 << 20), "SentencePiece"),
        (_spm(), "SentencePiece"),
    ],
)
def test_damaged_sentencepiece_models(tmp_path, data, message):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(JllamaError, match=message):
        Tokenizer.from_dir(tmp_path)
