"""Vocabularies of ranks, Llama 3's tiktoken table and tekken.json, against their own rule of merging."""

import base64
import itertools
import json
import random

import pytest

from jllama.errors import JllamaError
from jllama.text.tokenizer import Tokenizer
from jllama.text.vocabularies import ranked
from jllama.text.vocabularies.pre_tokenizers import PRE_TOKENIZERS
from tests.support.tokenizer_helpers import write_directory

LEARNT = [b"th", b" t", b"he", b" th", b" the", b"in", b"er", b"ab", b"aba", b"12", b"\xc3\xa9", b" wholly"]
PIECES = [*(bytes([byte]) for byte in range(255, -1, -1)), *LEARNT]  # byte n is not token n
RANKS = {piece: rank for rank, piece in enumerate(PIECES)}
LLAMA3 = {"model_type": "llama"}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>{% endif %}"
)


def table(pieces=PIECES):
    return "".join(f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces))


@pytest.fixture
def llama3(tmp_path, monkeypatch):
    """A small table in the place of Llama 3's."""
    monkeypatch.setattr(ranked, "_LLAMA3_RANKS", len(PIECES))

    def make(config=LLAMA3, pieces=PIECES, **files):
        directory = write_directory(tmp_path, tokenizer__model=table(pieces), config=config, **files)
        return Tokenizer.from_dir(directory)

    return make


def merged(word):
    """The ids of a word: whole, or by merging the first pair of lowest rank until none is left."""
    if word in RANKS:
        return [RANKS[word]]
    parts = [bytes([byte]) for byte in word]
    while True:
        pairs = [(RANKS.get(left + right), at) for at, (left, right) in enumerate(itertools.pairwise(parts))]
        found = min((pair for pair in pairs if pair[0] is not None), default=None)
        if found is None:
            return [RANKS[part] for part in parts]
        at = found[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def expected(text):
    cuts = PRE_TOKENIZERS["llama-bpe"].build().pre_tokenize_str(text)
    return [token for _, (start, end) in cuts for token in merged(text[start:end].encode())]


def test_a_table_of_ranks_merges_as_tiktoken_does(llama3):
    tokenizer = llama3()
    chosen = random.Random(5)
    parts = [
        "the",
        " the",
        "th",
        "in",
        "er",
        "ab",
        "a",
        " ",
        "\n",
        "é",
        "中",
        "1234",
        "'s",
        " wholly",
        "<|eot_id|>",
    ]
    for _ in range(300):
        text = "".join(chosen.choices(parts, k=8))
        ids = tokenizer.encode(text, add_special=False)
        assert ids == expected(text)
        assert tokenizer.decode(ids) == text


def test_llama3s_special_tokens_stand_behind_the_table(llama3):
    tokenizer = llama3(tokenizer_config={"chat_template": TEMPLATE})
    first = len(PIECES)
    assert tokenizer.vocab_size == first + 256
    assert tokenizer.bos_id == tokenizer.special_id("<|begin_of_text|>") == first
    ids = [
        tokenizer.special_id(f"<|{name}|>") for name in ("start_header_id", "eom_id", "eot_id", "python_tag")
    ]
    assert ids == [first + 6, first + 8, first + 9, first + 10]
    assert tokenizer.special_id("<|reserved_special_token_247|>") == first + 255
    assert tokenizer.eos_ids == {first + 1, first + 9}
    assert tokenizer.encode("in") == [first, RANKS[b"in"]]
    asked = tokenizer.encode_chat([{"role": "user", "content": "<|eot_id|>"}])
    assert asked == [first, first + 6, *expected("<|eot_id|>"), first + 9, first + 6]
    assert tokenizer.decode(asked) == "<|eot_id|>"


def test_special_tokens_behind_the_table_are_no_words_of_it(llama3, tmp_path):
    """What no text reaches need not be kept from any: one tokenizer serves, not two."""
    llama3()
    inner = ranked.read_tiktoken(tmp_path / "tokenizer.model", LLAMA3, {})
    assert inner.get_vocab_size(with_added_tokens=False) == len(PIECES)
    assert inner.get_vocab_size() == len(PIECES) + 256


def test_files_beside_a_table_name_its_special_tokens(llama3):
    added = {str(len(PIECES) + at): {"content": text} for at, text in enumerate(("<s>", "<mark>", "</s>"))}
    settings = {
        "added_tokens_decoder": added,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": False,
    }
    tokenizer = llama3(tokenizer_config=settings)
    first = len(PIECES)
    assert tokenizer.encode("in<mark>", parse_special=True) == [RANKS[b"in"], first + 1]
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (first, {first + 2})
    assert tokenizer.special_id("<|eot_id|>") is None


@pytest.mark.parametrize("config", [{}, {"model_type": "chatglm"}])
def test_other_models_tables_are_named(llama3, config):
    with pytest.raises(
        JllamaError, match=r"tiktoken table of 268 tokens, and not Llama 3's.*\n.*tokenizer.json"
    ):
        llama3(config)


@pytest.mark.parametrize("pieces", [PIECES[:-1], [*PIECES, b"longer"]], ids=len)
def test_a_table_of_another_size_is_named(llama3, pieces):
    with pytest.raises(JllamaError, match=f"tiktoken table of {len(pieces)} tokens"):
        llama3(pieces=pieces)


@pytest.mark.parametrize("damage", ["IQ== \n", "IQ 5\n", "nonsense\n", "IQ== 5"])
def test_a_broken_table_is_named(tmp_path, damage):
    directory = write_directory(tmp_path, tokenizer__model=table() + damage, config=LLAMA3)
    with pytest.raises(JllamaError, match=r"tokenizer\.model.*(no table of ranks|no base64|damaged)"):
        Tokenizer.from_dir(directory)


def test_a_token_of_absurd_length_is_named(llama3):
    with pytest.raises(JllamaError, match="a token of 513 bytes"):
        llama3(pieces=[*PIECES[:-1], b"x" * 513])


PATTERN = r"[a-z]+|[^a-z]"


def tekken(pieces=PIECES, *, specials=None, room=24, size=None, pattern=PATTERN, **more):
    config = {"default_num_special_tokens": room, "default_vocab_size": size or room + len(pieces)}
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(pieces)
    ]
    state = {"config": config | {"pattern": pattern, "version": "v3"}, "vocab": vocab} | more
    return state if specials is None else state | {"special_tokens": specials}


def from_tekken(path, state, **files):
    (path / "tekken.json").write_text(json.dumps(state))
    return Tokenizer.from_dir(write_directory(path, **files))


def test_tekkens_special_tokens_stand_before_its_ranks(tmp_path):
    tokenizer = from_tekken(tmp_path, tekken())
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (24 + len(PIECES), 1, {2})
    assert tokenizer.encode("[INST]in[/INST]", parse_special=True) == [1, 3, 24 + RANKS[b"in"], 4]
    assert [tokenizer.special_id(text) for text in ("<pad>", "[SYSTEM_PROMPT]", "<SPECIAL_23>")] == [
        11,
        17,
        23,
    ]
    typed = tokenizer.encode("[INST]<s>", add_special=False)
    assert min(typed) >= 24
    assert tokenizer.decode(typed) == "[INST]<s>"


def test_tekken_cuts_words_by_its_own_pattern(tmp_path):
    tokenizer = from_tekken(tmp_path, tekken())
    assert tokenizer.encode(" the", add_special=False) == [24 + RANKS[piece] for piece in (b" ", b"th", b"e")]
    (tmp_path / "tekken.json").unlink()
    whole = from_tekken(tmp_path, tekken(pattern=" ?[a-z]+"))
    assert whole.encode(" the", add_special=False) == [24 + RANKS[b" the"]]


def test_tekken_names_its_special_tokens_and_cuts_its_vocabulary(tmp_path):
    specials = [
        {"rank": rank, "token_str": text} for rank, text in enumerate(("<u>", "<s>", "</s>", "[THINK]"))
    ]
    tokenizer = from_tekken(tmp_path, tekken(specials=specials, room=5, size=5 + len(PIECES) - 1))
    assert tokenizer.special_id("[THINK]") == 3
    assert tokenizer.special_id("<SPECIAL_4>") == 4
    assert tokenizer.vocab_size == 5 + len(PIECES) - 1
    assert len(tokenizer.encode(" wholly", add_special=False)) > 1


def test_a_tekken_may_hold_special_tokens_alone(tmp_path):
    tokenizer = from_tekken(tmp_path, tekken(room=5, size=5))
    assert (tokenizer.vocab_size, tokenizer.encode("[INST]", parse_special=True)) == (5, [1, 3])


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"config": 5},
        tekken() | {"vocab": None},
        tekken() | {"vocab": [{"rank": 0, "token_bytes": "!"}]},
        tekken() | {"vocab": [{"rank": "0", "token_bytes": "IQ=="}]},
        tekken(pattern="("),
        tekken(pattern=None),
        tekken(specials=[{"rank": 0}]),
        tekken(specials=[{"rank": 0, "token_str": 5}]),
        tekken(room="many", size=9),
        tekken(room=10**12),
        tekken(room=5, size=4),
    ],
    ids=str,
)
def test_a_broken_tekken_is_named(tmp_path, state):
    with pytest.raises(JllamaError, match=r"tekken\.json"):
        from_tekken(tmp_path, state)


def test_a_directorys_tokenizer_json_and_model_come_first(tmp_path):
    (tmp_path / "tekken.json").write_text("no JSON")
    with pytest.raises(JllamaError, match=r"tokenizer\.model"):
        Tokenizer.from_dir(write_directory(tmp_path, tokenizer__model="no model"))


def test_merges_are_in_the_order_of_what_they_make_then_of_what_they_join():
    ranks = {piece: rank for rank, piece in enumerate([b"a", b"b", b"c", b"ab", b"abc", b"bc"])}
    assert list(ranked._merges(ranks)) == [(b"a", b"b"), (b"a", b"bc"), (b"ab", b"c"), (b"b", b"c")]
