"""How GGUF's `tokenizer.ggml.pre` cuts words, and vocabularies that hang on it."""

import os
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from jllama.errors import JllamaError
from jllama.text.tokenizer import Tokenizer
from jllama.text.vocabularies.pre_tokenizers import PRE_TOKENIZERS
from tests.support.tokenizer_helpers import gguf_tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"  # of llama.cpp's `.gguf.inp` files; a line of `.gguf.out` has the ids
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6


def cut(pre, text):
    cuts = PRE_TOKENIZERS[pre].build().pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in cuts]


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("default", "it's 12345 <|a|>", ["it", "'", "s", " ", "123", "45", " ", "<|", "a", "|>"]),
        ("falcon", "x=12345 `a", ["x", "=", "123", "45", " ", "`", "a"]),
        ("falcon", "a 12 4567", ["a", " 12", " ", "456", "7"]),
        ("mellum2", "ab 123", ["ab", " ", "1", "2", "3"]),
        ("glm4", "we'LL  go 1234", ["we", "'LL", " ", " go", " ", "123", "4"]),
        ("jais-2", "a" + " " * 7 + "b", ["a", " " * 4, "  ", " b"]),
        ("minicpm5", "no 12345", ["no", " ", "123", "45"]),
        ("qwen2", "hi\n\n 12", ["hi", "\n\n", " ", "1", "2"]),
        ("qwen2", "नमस्ते", ["नमस", "्त", "े"]),
        ("qwen35", "नमस्ते", ["नमस्ते"]),
        ("laguna", "a!\n\nb", ["a", "!", "\n\n", "b"]),
        ("qwen2", "a!\n\nb", ["a", "!\n\n", "b"]),
        ("seed-coder", "a!\n\nb", ["a", "!", "\n\n", "b"]),
        ("ufakzeka", "Ankara'dan", ["Ankara", "'dan"]),
        ("qwen2", "Ankara'dan", ["Ankara", "'d", "an"]),
        ("bailingmoe", "a\n\n\nb", ["a", "\n\n\n", "b"]),
        ("exaone-moe", "to be or", ["to be or"]),
        ("tekken", "aBcDE's", ["a", "Bc", "DE", "'s"]),
        ("gpt-4o", "aBcDE's 1234", ["a", "Bc", "DE's", " ", "123", "4"]),
        ("gpt-4o", "a//\n/b", ["a", "//\n/", "b"]),
        ("youtu", "한국어 ok 12", ["한국어", " ok", " ", "1", "2"]),
        ("tiny_aya", "1234567", ["1", "234", "567"]),
        ("afmoe", "1234567 ab-cd", ["1", "234", "567", " ab", "-cd"]),
        ("superbpe", "by 1234567", ["by ", "1", "234", "567"]),
        ("kimi-k2", "Hi中文Ok12", ["Hi", "中文", "Ok", "12"]),
        ("deepseek-llm", "Ab12 中文!\n", ["Ab", "12", " ", "中文", "!", "\n"]),
        ("deepseek-coder", "x = (12\n", ["x", " =", " (", "1", "2", "\n"]),
        ("deepseek-v3", "x.yz 1234日本\n", ["x", ".yz", " ", "123", "4", "日本", "\n"]),
        ("spark2_5", "a\n\n1", ["a", "\n", "\n", "1"]),
        ("bloom", "a, b.c", ["a", ",", " b", ".", "c"]),
        ("viking", "ab 12", ["ab", " ", "1", "2"]),
        ("chameleon", "IMGIMGABZ hi!", ["IMGIMGABZ", " hi", "!"]),
        ("gemma4", "one two\n\nthree", ["one two", "\n\n", "three"]),
    ],
)
def test_words(pre, text, words):
    assert cut(pre, text) == words


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_way_to_cut_keeps_the_text(pre):
    text = "It's   ÉTÉ ǅ 12345 ½٣\r\n\n\tनमस्ते 中文。かな한국 <|x|> ```a_b```  \u00a0 'LL'll 𐐀😀 \n"
    assert "".join(cut(pre, text)) == text


def bpe_fields(tokens, types, merges=(), **more):
    fields = {"model": "gpt2", "tokens": tokens, "token_type": types, "merges": list(merges)} | more
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}


def letters(*more, pre, merges=(), **fields):
    """A byte-level vocabulary: `<s>`, the alphabet, then `more`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", *alphabet, *more]
    types = [CONTROL] + [NORMAL] * (len(tokens) - 1)
    return Tokenizer.from_gguf(bpe_fields(tokens, types, merges, pre=pre, bos_token_id=0, **fields))


@pytest.mark.parametrize(
    ("pre", "whole"), [("glm4", True), ("lfm2", True), ("qwen2", False), ("dbrx", False)]
)
def test_a_word_that_is_a_token_stays_whole_without_merges(pre, whole):
    tokenizer = letters("Ġabc", pre=pre)
    assert (len(tokenizer.encode(" abc", add_special=False)) == 1) is whole


@pytest.mark.parametrize(
    ("pre", "given", "begins"),
    [
        ("lfm2", {}, True),
        ("lfm2", {"add_bos_token": False}, False),
        ("tekken", {}, True),
        ("chameleon", {}, True),
        ("glm4", {}, False),
        ("qwen35", {}, False),
        ("qwen35", {"add_bos_token": True}, True),
    ],
)
def test_which_texts_begin_with_bos_unasked(pre, given, begins):
    assert (letters(pre=pre, **given).encode("a")[0] == 0) is begins


HANDS_OVER = "<|tool_response>"


def gemma4_fields(**fields):
    """`▁` for blanks, merges on plain text, a byte for what no token spells."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    learnt = ["▁", "a", "b", "\n", "\n\n", "▁a", "▁ab", "▁▁", "</s>"]
    tokens = ["<pad>", "<eos>", "<bos>", *bytes_, *learnt, "<|turn>", "<turn|>", "<|tool_call>", HANDS_OVER]
    types = [CONTROL] * 3 + [BYTE] * 256 + [NORMAL] * len(learnt) + [CONTROL] * 2 + [USER_DEFINED] * 2
    merges = ["▁ ▁", "▁ a", "▁a b", "\n \n"]
    more = {"model": "gemma4", "bos_token_id": 2, "eos_token_id": 1} | fields
    return bpe_fields(tokens, types, merges, **more)


def gemma4(**fields):
    return Tokenizer.from_gguf(gemma4_fields(**fields))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a ab", ["a", " ab"]),
        (" ab", [" ab"]),
        ("a\n\n\n  b", ["a", "\n\n", "\n", "  ", "b"]),
        ("bé", ["b", b"\xc3", b"\xa9"]),
        ("b<|tool_call>a", ["b", "<|tool_call>", "a"]),
        ("<eos>", [*(b"%c" % byte for byte in b"<eos>")]),
    ],
)
def test_gemma4_on_plain_text(text, tokens):
    tokenizer = gemma4()
    ids = tokenizer.encode(text, add_special=False)
    wanted = [token if isinstance(token, bytes) else token.encode() for token in tokens]
    assert [tokenizer.token_bytes(token) for token in ids] == wanted
    assert tokenizer.decode(ids) == text


def test_gemma4_begins_with_bos_whatever_the_file_says():
    assert gemma4(add_bos_token=False).encode("a")[0] == gemma4().encode("a")[0] == 2


def test_gemma4_turns():
    tokenizer = gemma4(add_bos_token=True)
    ids = tokenizer.encode("<|turn>a<turn|>", add_special=False, parse_special=True)
    assert [tokenizer.decode([token], skip_special=False) for token in ids] == ["<|turn>", "a", "<turn|>"]
    assert tokenizer.decode(ids) == "a"


def test_gemma4_hands_over_behind_a_call():
    template = (
        "{% for m in messages %}<|turn>{{ m.content }}<|tool_call>a<|tool_response>b<turn|>{% endfor %}"
    )
    tokenizer = Tokenizer.from_gguf(gemma4_fields() | {"tokenizer.chat_template": template})
    ends = {tokenizer.special_id(text) for text in ("<eos>", "<turn|>", HANDS_OVER)}
    assert tokenizer.eos_ids == ends
    assert None not in ends
    assert tokenizer.special_id("<|tool_call>") is None


@pytest.mark.parametrize("given", ["no-such-way", 5])
def test_an_unknown_way_names_those_that_are_known(given):
    with pytest.raises(JllamaError, match=rf"in the way {given!r}.*gpt-2.*qwen35.*deepseek-v3"):
        letters(pre=given)


def test_phi3s_marks_swallow_the_blanks_behind_them():
    tokens = ["<unk>", "<s>", "<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a"]
    types = [2, CONTROL, CONTROL, *[BYTE] * 256, NORMAL, NORMAL, CONTROL, CONTROL]
    tokens += ["<|user|>", "<|end|>"]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
    }
    text = "<|user|>\n a<|end|>\n<s>\na"
    plain = Tokenizer.from_gguf(fields).encode(text, add_special=False, parse_special=True)
    phi3 = Tokenizer.from_gguf(fields | {"general.architecture": "phi3"})
    user, end, start, blank, a = (tokens.index(name) for name in ("<|user|>", "<|end|>", "<s>", "▁", "a"))
    newline = tokens.index("<0x0A>")
    assert phi3.encode(text, add_special=False, parse_special=True) == [
        user,
        blank,
        a,
        end,
        start,
        blank,
        newline,
        a,
    ]
    assert plain == [user, blank, newline, blank, a, end, blank, newline, start, blank, newline, a]


VOCABULARIES = os.environ.get("JLLAMA_GGUF_VOCABULARIES")


def published():
    """llama.cpp's vocabularies that come with texts; of `bert` models there are none here."""
    files = sorted(Path(VOCABULARIES).glob("ggml-vocab-*.gguf")) if VOCABULARIES else []
    return [file for file in files if file.with_suffix(".gguf.inp").exists() and "bert" not in file.name]


@pytest.mark.skipif(not VOCABULARIES, reason="JLLAMA_GGUF_VOCABULARIES=llama.cpp's models/ is not given")
def test_llama_cpps_own_vocabularies():
    files = published()
    assert len(files) >= 14
    for file in files:
        tokenizer = gguf_tokenizer(file)
        texts = file.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
        lines = file.with_suffix(".gguf.out").read_text().split("\n")
        for text, line in zip(texts, lines, strict=False):
            ids = tokenizer.encode(text, add_special=False)
            assert ids == [int(token) for token in line.split()], (file.name, text)
            assert tokenizer.decode(ids) == text
