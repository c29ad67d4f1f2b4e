"""Vocabularies in which one entry begins another, lies at the very end, or is never to be used."""

import struct

import pytest

from jllama.text.special_tokens import Special, SpecialTokens
from jllama.text.template.traced_text import OWN, Traced, join_traced
from jllama.text.tokenizer import Tokenizer
from jllama.text.vocabularies.spm import BPE, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, SpmModel
from jllama.text.vocabularies.spm_charsmap import CharsMap
from tests.support.tokenizer_helpers import spm_directory
from tests.support.tokenizer_kinds import gguf_bpe, gguf_spm


def spm(pieces, types, **more):
    scores = [-float(at) for at in range(len(pieces))]
    model = SpmModel(pieces=pieces, scores=scores, types=types, add_prefix=False, byte_fallback=False, **more)
    return model.vocabulary()


def test_the_longest_special_token_wins():
    specials = SpecialTokens([Special(text="<a>", id=1), Special(text="<a>b", id=2)])
    assert specials.split("x<a>b<a>c") == ["x", 2, 1, "c"]


def test_the_longest_symbol_wins():
    vocabulary = spm(["<unk>", "ab", "abc", "c"], [UNKNOWN, USER_DEFINED, USER_DEFINED, NORMAL], kind=BPE)
    assert vocabulary.encode("abcabc", True) == [2, 2]


def test_an_unused_piece_still_leads_to_others():
    """As in llama.cpp, which merges by scores alone."""
    vocabulary = spm(["<unk>", "abc", "ab", "a", "b", "c"], [UNKNOWN, NORMAL, UNUSED, NORMAL, NORMAL, NORMAL])
    assert vocabulary.encode("abc", True) == [1]
    assert vocabulary.encode("ab", True) == [2]


def trie(units, texts):
    """A SentencePiece model's rules as bytes: the units of the trie by index, and the replacements."""
    table = [0] * 0x400
    for at, unit in units.items():
        table[at] = unit
    return struct.pack(f"<I{len(table)}I", 4 * len(table), *table) + texts


def test_the_longest_rule_wins():
    leaf, root, a, b, text = 0x100, 0x100, 0x161, 0x262, 1 << 31
    units = {0: root << 10, a: ord("a") | leaf | (a ^ 0x200) << 10, 0x200: text}
    units |= {b: ord("b") | leaf | (b ^ 0x300) << 10, 0x300: text | 2}
    rules = CharsMap(trie(units, b"x\0y\0"))
    assert [rules(text) for text in ("a", "ab", "aab", "ba")] == ["x", "y", "xy", "bx"]


def test_the_first_token_beside_a_sentencepiece_model_counts(tmp_path):
    tokenizer = Tokenizer.from_dir(
        spm_directory(tmp_path, "bpe", added_tokens={"<|x|>": 1500, "<|y|>": 1501})
    )
    ids = tokenizer.encode("<|x|><|y|>", add_special=False, parse_special=True)
    assert (ids, tokenizer.vocab_size) == ([1500, 1501], 1502)


@pytest.mark.parametrize(("pre", "begins"), [("llama-bpe", True), ("tekken", True), ("smollm", False)])
@pytest.mark.parametrize("said", [None, True, False])
def test_a_gguf_begins_with_bos_where_llama_cpp_begins_with_it(pre, begins, said):
    fields = gguf_bpe("control", pre) | {"tokenizer.ggml.bos_token_id": 0}
    if said is not None:
        fields["tokenizer.ggml.add_bos_token"] = said
    ids = Tokenizer.from_gguf(fields).encode("x")
    assert (ids[0] == 0) == (begins if said is None else said)


def test_ids_that_a_gguf_does_not_name_are_llama_cpps():
    fields = gguf_spm("control")
    del fields["tokenizer.ggml.eos_token_id"]
    tokenizer = Tokenizer.from_gguf(fields)
    assert (tokenizer.bos_id, 2 in tokenizer.eos_ids) == (1, True)


@pytest.mark.parametrize("far", [10**9, -1, 2**32 - 1])
@pytest.mark.parametrize("name", ["bos", "eos", "eot", "eom", "padding"])
@pytest.mark.parametrize("make", [gguf_spm, gguf_bpe])
def test_ids_outside_a_ggufs_vocabulary_are_ignored_as_in_llama_cpp(make, name, far):
    fields, key = make("control"), f"tokenizer.ggml.{name}_token_id"
    plain = Tokenizer.from_gguf({other: value for other, value in fields.items() if other != key})
    with pytest.warns(
        UserWarning, match=f"{key}={far} is outside its vocabulary of .* it is ignored$"
    ) as told:
        tokenizer = Tokenizer.from_gguf(fields | {key: far})
    assert len(told) == 1
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (plain.bos_id, plain.eos_ids)


def test_a_symbol_of_a_gguf_stands_before_the_blank_as_in_llama_cpp():
    """It is found in the text as it is, and a blank is put before what follows it."""
    fields = gguf_spm("control")
    tokens = fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "<tool>", "  "]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], USER_DEFINED, USER_DEFINED]
    fields["tokenizer.ggml.scores"] = [*fields["tokenizer.ggml.scores"], -1000.0, -1000.0]
    tokenizer = Tokenizer.from_gguf(fields)
    ids = tokenizer.encode("<tool>a  b", add_special=False)
    assert [tokens[token] for token in ids] == ["<tool>", "▁", "a", "  ", "▁", "b"]
    assert tokenizer.decode(ids) == "<tool> a   b"


@pytest.mark.parametrize("blank", [" ", "\n\t", ""])
def test_blanks_of_a_message_are_swallowed_beside_a_token_that_says_so(blank):
    specials = SpecialTokens([Special(text="<u>", id=1, rstrip=True), Special(text="<e>", id=2, lstrip=True)])
    text = join_traced([Traced("<u>", OWN), Traced(f"{blank}a <u> <e>{blank}"), Traced("<e>", OWN)])
    assert specials.split(text) == [1, "a <u> <e>", 2]


def test_a_token_of_a_single_word_does_not_cut_words():
    specials = SpecialTokens([Special(text="end", id=1, single_word=True)])
    assert specials.split("end the end.") == [1, " the ", 1, "."]
    assert specials.split("ends bend") == ["ends bend"]
    for text in ([Traced("end", OWN), Traced("s")], [Traced("b"), Traced("end", OWN)]):
        assert specials.split(join_traced(text)) == ["".join(text)]


def test_an_end_of_a_single_byte_is_still_text():
    """Nothing could be written without the alphabet, whatever ends an answer."""
    fields = gguf_bpe("control")
    newline = fields["tokenizer.ggml.tokens"].index("Ċ")
    tokenizer = Tokenizer.from_gguf(fields | {"tokenizer.ggml.eot_token_id": newline})
    assert newline in tokenizer.eos_ids
    assert tokenizer.encode("a\n")[-1] == newline
    assert tokenizer.decode(tokenizer.encode("a\nb")) == "a\nb"
