"""Tokenizers: ids equal to the original libraries', and clear words for what is broken."""

import re
import sys

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from jllama.errors import JllamaError
from jllama.text.tokenizer import Tokenizer
from tests.support.tokenizer_helpers import (
    GOLDENS,
    SPM,
    TEXT,
    byte_level_json,
    expected_ids,
    spm_as_gguf,
    spm_directory,
    write_directory,
)


@pytest.mark.parametrize("name", SPM)
def test_sentencepiece_model_alone_gives_the_librarys_ids(tmp_path, name):
    tokenizer = Tokenizer.from_dir(spm_directory(tmp_path, name))
    assert [tokenizer.encode(line, add_special=False) for line in TEXT] == expected_ids(name)


def test_gguf_llama_vocabulary_gives_the_librarys_ids():
    tokenizer = Tokenizer.from_gguf(spm_as_gguf("bpe"))
    assert [tokenizer.encode(line, add_special=False) for line in TEXT] == expected_ids("bpe")
    assert tokenizer.encode("a")[0] == tokenizer.bos_id == 1


def test_gguf_gpt2_vocabulary_gives_the_original_tokenizers_ids(smollm2):
    assert [smollm2.encode(line) for line in TEXT] == expected_ids("smollm2")


def test_smollm2_ids_as_published(smollm2):
    assert smollm2.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert smollm2.encode("Café déjà vu.") == [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["I", "'m", " 1234", " é", "  ", " x", "\n", "\n", "YOU", "'", "RE"]),
        (
            "smollm",
            ["I", "'m", " ", "1", "2", "3", "4", " é", "  ", " x", "\n", "\n", "YOU", "'", "RE"],
        ),
        ("llama-bpe", ["I", "'m", " ", "123", "4", " é", "  ", " x", "\n\n", "YOU", "'RE"]),
        ("qwen2", ["I", "'m", " ", "1", "2", "3", "4", " é", "  ", " x", "\n\n", "YOU", "'RE"]),
        ("tekken", ["I", "'m", " ", "1", "2", "3", "4", " é", "  ", " x", "\n\n", "YOU", "'RE"]),
    ],
)
def test_how_each_pre_tokenizer_cuts_words(pre, pieces):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [to_letters.pre_tokenize_str(piece)[0][0] for piece in dict.fromkeys(pieces)]
    vocab = dict.fromkeys([*letters, *words])
    merges = []
    for word in words:
        for cut in range(2, len(word) + 1):
            vocab[word[:cut]] = None
            merges.append(f"{word[: cut - 1]} {word[cut - 1]}")
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(vocab),
        "tokenizer.ggml.merges": list(dict.fromkeys(merges)),
    }
    tokenizer = Tokenizer.from_gguf(fields)
    ids = tokenizer.encode("I'm 1234 é   x\n\nYOU'RE", add_special=False)
    assert [tokenizer.decode([token]) for token in ids] == pieces


def test_tokenizer_json_gives_the_librarys_ids_and_text(story, plain_dir):
    inner = tokenizers.Tokenizer.from_file(str(plain_dir / "tokenizer.json"))
    inner.encode_special_tokens = True
    for line in TEXT:
        ids = inner.encode(line, add_special_tokens=False).ids
        assert story.encode(line, add_special=False) == ids
        known = [token for token in ids if token > 2]
        assert story.decode(ids) == inner.decode(known)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither tokenizer.json nor tokenizer.model"),
        ({"tokenizer__json": "{"}, "tokenizer.json"),
        ({"tokenizer__json": "{}"}, "tokenizer.json"),
        ({"tokenizer__model": "hello, world"}, "SentencePiece"),
        ({"tokenizer__model": ""}, "SentencePiece"),
        ({"tokenizer__json": byte_level_json(), "tokenizer_config__json": "]"}, "is not JSON"),
        ({"tokenizer__json": byte_level_json(), "tokenizer_config": []}, "no JSON object"),
        ({"tokenizer__json": byte_level_json(), "config": [1]}, "config.json holds no JSON object"),
        (
            {"tokenizer__json": byte_level_json(), "generation_config": [1]},
            "^[^ ]*generation_config.json holds no JSON object",
        ),
        *[
            (
                {"tokenizer__json": byte_level_json(), f"{name}__json": "[" * 200_000},
                f"{name}.json .*too deep",
            )
            for name in ("config", "generation_config", "tokenizer_config")
        ],
        *[
            (
                {"tokenizer__json": byte_level_json(), "generation_config": {"eos_token_id": given}},
                "generation_config.json: eos_token_id=.* must be a token id",
            )
            for given in ([2, "x"], 2.5, [[1]], True)
        ],
        ({"tokenizer__json": byte_level_json(added=[("<s>", True)], bos="<s>", unknown="8")}, "names '8'"),
        *[
            (
                {"tokenizer__json": byte_level_json(), "tokenizer_config": {"chat_template": given}},
                "tokenizer_config.json: chat_template is .*, not a text .*; correct it there$",
            )
            for given in (5, False, [1], [{"name": "x"}], [{"name": "x", "template": 5}], {"x": 5})
        ],
    ],
)
def test_broken_directories(tmp_path, files, message):
    with pytest.raises(JllamaError, match=message):
        Tokenizer.from_dir(write_directory(tmp_path, **files))


def test_truncated_sentencepiece_models(tmp_path):
    data = (GOLDENS / "bpe.model").read_bytes()
    for size in range(1, len(data), 997):
        (tmp_path / "tokenizer.model").write_bytes(data[:size])
        with pytest.raises(JllamaError, match="SentencePiece"):
            Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.tokens": []}, "kind 'llama'"),
        ({"tokenizer.ggml.scores": [1.0]}, "score"),
        ({"tokenizer.ggml.unknown_token_id": 10**6}, "damaged"),
        ({"tokenizer.ggml.tokens": 7}, "damaged"),
        *[
            ({key: given}, f"{re.escape(f'{key} is {given}')}, not a text; convert the model again$")
            for key in ("tokenizer.chat_template", "tokenizer.chat_template.rag")
            for given in (5, 0, False, True, [], ["a"])
        ],
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "nonsense"}, "'nonsense'"),
        (
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "smollm",
                "tokenizer.ggml.merges": ["zz qq"],
            },
            "merges",
        ),
    ],
)
def test_broken_gguf_fields(change, message):
    with pytest.raises(JllamaError, match=message):
        Tokenizer.from_gguf({**spm_as_gguf("bpe"), **change})


def test_a_gguf_that_does_not_say_how_it_cuts_words_warns():
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"]}
    with pytest.warns(UserWarning, match=r"tokenizer\.ggml\.pre"):
        assert Tokenizer.from_gguf(fields).encode("a") == [0]


def test_an_unsupported_decoder_is_refused(tmp_path):
    inner = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    inner.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(JllamaError, match="WordPiece"):
        Tokenizer.from_dir(write_directory(tmp_path, tokenizer__json=inner.to_str()))


def test_text_needs_no_jax():
    import subprocess

    code = "import sys, jllama.text.tokenizer, jllama.text.stop; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
