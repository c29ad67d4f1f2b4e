"""Tokenizer files: damaged and hostile ones are refused in time, conflicting ones have an order."""

import base64
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from jllama.errors import JllamaError
from jllama.text import tokenizer_files
from jllama.text.tokenizer import Tokenizer
from jllama.text.vocabularies.spm_file import read_model
from jllama.text.vocabularies.tokenizer_json import read_json_vocabulary
from jllama.text.vocabulary import AtomEncoder
from tests.support.tokenizer_helpers import GOLDENS, byte_level_json, spm_directory, write_directory

CHARSMAP = read_model(GOLDENS / "unigram.model").charsmap
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
EMPTY = {"type": "Replace", "pattern": {"Regex": ""}, "content": "ab"}
BACK = {"type": "Replace", "pattern": {"String": "s"}, "content": "ﷺ"}
BPE = json.loads(byte_level_json())["model"]
LONG = "a" * 200_000


def sequence(*steps):
    return {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}


def precompiled(blob):
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


def unigram(piece):
    return {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], [piece, -1.0]], "byte_fallback": False}


def tokens_of(text):
    return json.loads(text)


def added(content):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    return {"id": 256, "content": content, "normalized": True, **flags}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sequence(*[DOUBLE] * 30), "normalizer makes texts longer"),
        (sequence(sequence(*[DOUBLE] * 5)["normalizer"], *[DOUBLE] * 5), "normalizer makes texts longer"),
        (sequence(*[DOUBLE] * 30) | {"added_tokens": [added("a")]}, "normalizer makes texts longer"),
        (sequence(*[EMPTY] * 9), "normalizer makes texts longer"),
        (sequence(*[BACK, {"type": "NFKC"}] * 5), "normalizer makes texts longer"),
        (sequence(*[{"type": "Prepend", "prepend": LONG}]), "normalizer makes texts longer"),
        (sequence(*[{"type": "NFC"}] * 2000), "normalizer makes texts longer"),
        ({"normalizer": precompiled(b"\xff" * 5)}, "charsmap is damaged"),
        ({"normalizer": precompiled(bytes(4))}, "charsmap is damaged"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}}, "damaged"),
        ({"normalizer": {"type": "Replace"}}, "damaged"),
        ({"model": unigram(LONG)}, "a token of 200000 characters"),
        ({"added_tokens": [added('"' + LONG)]}, "a token of 200001 characters"),
        (
            {
                "model": BPE
                | {"vocab": {"a": 0, "é": 1, "a\xa9": 2}, "merges": ["a é"]}
                | {"continuing_subword_prefix": "x"}
            },
            "continuing_subword_prefix",
        ),
        ({"model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "[UNK]"}}, "damaged"),
        ({"model": BPE | {"unk_token": "<nope>", "vocab": {"x": 0}}}, "damaged"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "damaged"),
        ({"added_tokens": 5}, "damaged"),
    ],
)
@pytest.mark.parametrize("escaped", [False, True])
def test_hostile_tokenizer_json(tmp_path, change, message, escaped):
    text = json.dumps(json.loads(byte_level_json()) | change)
    if escaped:
        text = text.replace('"normalizer"', '"normali\\u007aer"')
    with pytest.raises(JllamaError, match=message):
        Tokenizer.from_dir(write_directory(tmp_path, tokenizer__json=text)).encode("axy")


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "NFC"},
        sequence(
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        )["normalizer"],
        sequence(
            {"type": "NFKD"}, {"type": "Lowercase"}, precompiled(CHARSMAP),
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
        )["normalizer"],
    ],
)  # fmt: skip
def test_the_rules_of_known_models_are_read(tmp_path, normalizer):
    state = json.loads(byte_level_json()) | {"normalizer": normalizer}
    tokenizer = Tokenizer.from_dir(write_directory(tmp_path, tokenizer__json=json.dumps(state)))
    assert tokenizer.decode(tokenizer.encode("ab")).endswith("ab")


def test_truncation_and_padding_are_turned_off(tmp_path):
    inner = tokenizers.Tokenizer.from_str(byte_level_json())
    inner.enable_truncation(3)
    inner.enable_padding(length=9)
    tokenizer = Tokenizer.from_dir(write_directory(tmp_path, tokenizer__json=inner.to_str()))
    assert [tokenizer.decode(tokenizer.encode(text)) for text in ("a", "abcdef")] == ["a", "abcdef"]


@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_are_plain_text_and_no_bytes(tmp_path, special):
    texts = ["naïve", "été", "đem", "日本", "Ġodd"]
    inner = tokenizers.Tokenizer.from_str(byte_level_json())
    inner.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])
    tokenizer = Tokenizer.from_dir(write_directory(tmp_path, tokenizer__json=inner.to_str()))
    assert [tokenizer.decode([256 + at], skip_special=False) for at in range(5)] == texts
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*sorted(pre_tokenizers.ByteLevel.alphabet()), *texts],
        "tokenizer.ggml.token_type": [1] * 256 + [3 if special else 4] * 5,
    }
    tokenizer = Tokenizer.from_gguf(fields)
    assert [tokenizer.decode([256 + at], skip_special=False) for at in range(5)] == texts


def test_which_file_wins(tmp_path):
    names = [("<a>", True), ("<b>", True), ("<c>", True)]
    files = {
        "tokenizer__json": byte_level_json(added=names),
        "special_tokens_map": {"eos_token": "<a>", "bos_token": "<a>"},
        "tokenizer_config": {"eos_token": "<b>"},
        "config": {"bos_token_id": 258},
    }
    tokenizer = Tokenizer.from_dir(spm_directory(tmp_path, "bpe", **files))
    assert (tokenizer.eos_ids, tokenizer.bos_id) == ({257}, 256)
    assert tokenizer.vocab_size == 259


def test_a_blank_follows_a_special_token_unless_legacy_is_false(tmp_path):
    (tmp_path / "a").mkdir()
    tokenizer = Tokenizer.from_dir(spm_directory(tmp_path / "a", "bpe"))
    ids = tokenizer.encode("</s>a", add_special=False, parse_special=True)
    assert ids == [2, *tokenizer.encode("a", add_special=False)]


def test_the_first_token_beside_a_sentencepiece_model(tmp_path):
    count = len(read_model(GOLDENS / "bpe.model").pieces)
    tokens = {"<inside>": count - 1, "<|im_end|>": count}
    tokenizer = Tokenizer.from_dir(spm_directory(tmp_path, "bpe", added_tokens=tokens))
    assert tokenizer.vocab_size == count + 1
    assert tokenizer.encode("<|im_end|>", parse_special=True)[-1] == count
    assert tokenizer.encode("<inside>", parse_special=True)[-1] != count - 1


def test_of_a_huge_template_only_what_tells_so_is_read(tmp_path):
    files = {"tokenizer__json": byte_level_json(), "chat_template__jinja": "{{ 1 }}\r\n" * 100_000}
    tokenizer = Tokenizer.from_dir(write_directory(tmp_path, **files))
    assert len(tokenizer.chat_templates["default"]) < 100_000
    assert tokenizer.decode(tokenizer.encode("a")) == "a"
    with pytest.raises(JllamaError, match="longer than"):
        tokenizer.encode_chat([])


def test_a_tiktoken_table_of_another_model_is_named(tmp_path):
    lines = (base64.b64encode(bytes([n])).decode() + f" {n}\n" for n in range(256))
    with pytest.raises(JllamaError, match=r"tiktoken.*\n.*tokenizer.json"):
        Tokenizer.from_dir(write_directory(tmp_path, tokenizer__model="".join(lines)))


def test_errors_in_use_are_errors_of_ours():
    model = models.BPE({"a": 0}, [], unk_token="<nope>")
    with pytest.raises(JllamaError, match="nope"):
        AtomEncoder(tokenizers.Tokenizer(model), {})("xyz")


def test_of_conflicting_files_tokenizer_config_wins(tmp_path):
    text = byte_level_json(added=[("<a>", True), ("<b>", True)])
    files = {"special_tokens_map": {"bos_token": "<a>"}, "tokenizer_config": {"bos_token": "<b>"}}
    assert Tokenizer.from_dir(write_directory(tmp_path, tokenizer__json=text, **files)).bos_id == 257


@pytest.mark.parametrize(
    ("config", "alike"), [({}, True), ({"legacy": None}, True), ({"legacy": False}, False)]
)
def test_without_legacy_a_blank_stands_behind_special_tokens(tmp_path, config, alike):
    tokenizer = Tokenizer.from_dir(spm_directory(tmp_path, "bpe", tokenizer_config=config))
    first, later = (tokenizer.encode("ab", add_special=False, begins=begins) for begins in (True, False))
    assert (first == later) == alike


@pytest.mark.parametrize("name", ["bos_token", "sep_token"])
@pytest.mark.parametrize("token", [1.5, True, ["<s>"], {"content": 3}])
def test_a_named_token_is_a_text(tmp_path, name, token):
    tokenizer = {"tokenizer__json": byte_level_json(), "tokenizer_config__json": json.dumps({name: token})}
    with pytest.raises(JllamaError, match=rf"tokenizer_config.json: {name}=.* must be a text"):
        Tokenizer.from_dir(write_directory(tmp_path, **tokenizer))


@pytest.mark.parametrize(
    ("bos", "eos"), [(True, True), (True, False), (False, True), (False, False), (None, None)]
)
def test_what_is_put_around_a_text_is_said_beside_the_tokenizer(tmp_path, bos, eos):
    config = {"bos_token": "<b>", "eos_token": "<e>", "add_bos_token": bos, "add_eos_token": eos}
    tokens = byte_level_json(added=[("<b>", True), ("<e>", True)], bos="<b>")
    made = Tokenizer.from_dir(write_directory(tmp_path, tokenizer=tokens_of(tokens), tokenizer_config=config))
    plain = made.encode("a", add_special=False)
    begins, ends = bos in (True, None), eos is True
    assert made.encode("a") == [256] * begins + plain + [257] * ends


@pytest.mark.parametrize(
    ("given", "bos"), [(256, 256), (True, None), ([256], None), ("256", None), (None, None)]
)
def test_a_first_token_that_config_json_alone_names_is_special(tmp_path, given, bos):
    tokens = tokens_of(byte_level_json(added=[("<b>", False)]))
    made = Tokenizer.from_dir(write_directory(tmp_path, tokenizer=tokens, config={"bos_token_id": given}))
    assert (made.bos_id, made.special_id("<b>")) == (bos, bos)


@pytest.mark.parametrize(
    ("named", "model", "bos"),
    [
        ({}, None, 7),
        ({}, 5, 5),  # a tokenizer.model knows its own,
        ({}, "none", None),  # also that it has none
        ({"bos_token": "<b>"}, 5, 3),
        ({"bos_token": None}, 5, None),
        ({"bos_token": "<x>"}, None, None),
    ],
)
def test_whose_first_token_counts(named, model, bos):
    """That of tokenizer_config.json, of the model, of config.json, in this order."""
    directory = tokenizer_files.Directory(Path("here"))
    directory._read.update({"tokenizer_config.json": named, "special_tokens_map.json": {}})
    directory._read["config.json"] = {"bos_token_id": 7}
    made = model and SimpleNamespace(bos_id=None if model == "none" else model)
    assert tokenizer_files._bos_id(directory, {"<b>": 3}, made) == bos


def numbered(*specials, special=False, begins=""):
    """A tokenizer.json whose first tokens are these, letters behind them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: at for at, text in enumerate([*specials, *letters])}
    inner = tokenizers.Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(text, special=special, normalized=False) for text in specials])
    if begins:
        pair = (begins, vocab[begins])
        rule = f"{begins} $A {begins}"
        inner.post_processor = processors.TemplateProcessing(rule, special_tokens=[pair])
    return json.loads(inner.to_str())


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_what_a_tokenizer_has_not_is_not_put_around_a_text(tmp_path, name):
    config = {f"{name}_token": None, f"add_{name}_token": True}
    state = numbered("<b>", "<e>", special=True)
    made = Tokenizer.from_dir(write_directory(tmp_path, tokenizer=state, tokenizer_config=config))
    assert made.encode("a") == made.encode("a", add_special=False)


@pytest.mark.parametrize("order", [("<b>", "<e>"), ("<e>", "<b>")])
def test_the_first_token_of_all_may_begin_or_end_a_text(tmp_path, order):
    """Named by its number alone, 0."""
    bos, eos = order.index("<b>"), order.index("<e>")
    files = dict(config={"bos_token_id": bos}, generation_config={"eos_token_id": eos})
    made = Tokenizer.from_dir(write_directory(tmp_path, tokenizer=numbered(*order), **files))
    assert (made.bos_id, made.eos_ids, made.special_ids) == (bos, {eos}, {0, 1})
    assert made.encode("<b>a<e>", parse_special=True)[::2] == [bos, eos]
    assert not {0, 1} & set(made.encode("<b>a<e>"))
    assert made.decode([bos, *made.encode("a"), eos]) == "a"
    assert made.decode([bos, eos], skip_special=False) == "<b><e>"


@pytest.mark.parametrize("order", [("<b>", "<e>"), ("<e>", "<b>")])
def test_the_first_token_of_all_is_put_around_a_text(tmp_path, order):
    bos, eos = order.index("<b>"), order.index("<e>")
    names = {"bos_token": "<b>", "eos_token": "<e>"}
    config = names | {"add_bos_token": True, "add_eos_token": True}
    made = Tokenizer.from_dir(write_directory(tmp_path, tokenizer=numbered(*order), tokenizer_config=config))
    plain = made.encode("a", add_special=False)
    assert made.encode("a") == [bos, *plain, eos]
    assert made.encode("<b>a<e>", parse_special=True) == [bos, *plain, eos]
    state = numbered(*order, special=True, begins="<b>")
    made = Tokenizer.from_dir(write_directory(tmp_path, tokenizer=state, tokenizer_config=names))
    assert made.encode("a") == [bos, *plain, bos]


@pytest.mark.parametrize(
    ("said", "begins", "ends"),
    [
        ({}, 1, 1),
        ({"add_bos_token": False}, 0, 1),
        ({"add_eos_token": False}, 1, 0),
        ({"bos_token": None, "add_bos_token": True}, 0, 1),
        ({"eos_token": None, "add_eos_token": True}, 1, 0),
    ],
    ids=str,
)
def test_what_a_tokenizer_puts_around_a_text_is_left_out_where_it_is_said(tmp_path, said, begins, ends):
    names = {"bos_token": "<b>", "eos_token": "<e>"}
    state = numbered("<b>", "<e>", special=True, begins="<b>")
    files = dict(tokenizer=state, tokenizer_config=names | said)
    made = Tokenizer.from_dir(write_directory(tmp_path, **files))
    assert made.encode("a") == [0] * begins + made.encode("a", add_special=False) + [0] * ends


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("bos", "eos"), [(0, 1), (1, 0)])
def test_the_first_token_of_a_gguf_may_begin_or_end_a_text(kind, bos, eos):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) if kind == "gpt2" else ["a", "▁", "<unk>"]
    tokens = ["<0>", "<1>", *letters]
    fields = {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.eos_token_id": eos,
        "tokenizer.ggml.unknown_token_id": len(tokens) - 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }
    made = Tokenizer.from_gguf(fields)
    assert (made.bos_id, made.eos_ids, made.special_ids >= {0, 1}) == (bos, {eos}, True)
    assert made.encode("a") == [bos, tokens.index("a"), eos]
    assert made.compile_template("{{ bos_token }}{{ eos_token }}{{ pad_token }}").render([]) == (
        f"<{bos}><{eos}><0>"
    )
    for name in ("eot", "eom"):
        ended = Tokenizer.from_gguf(fields | {f"tokenizer.ggml.{name}_token_id": 0})
        assert ended.eos_ids == {eos, 0}


def test_the_ends_of_each_file_count_together(tmp_path):
    names = ["<a>", "<b>", "<c>", "<d>", "<|endoftext|>"]
    files = dict(
        tokenizer_config={"eos_token": {"content": "<a>"}},
        config={"eos_token_id": [1, 3]},
        generation_config={"eos_token_id": 2},
    )
    made = Tokenizer.from_dir(write_directory(tmp_path, tokenizer=numbered(*names), **files))
    assert made.eos_ids == {0, 1, 2, 3, 4}
    assert made.special_ids == {0, 1, 2, 3, 4}
    for name in ("config", "generation_config"):
        for wrong in ("2", [1, "2"], 2.0, True, {"a": 1}):
            broken = files | {name: {"eos_token_id": wrong}}
            with pytest.raises(
                JllamaError, match=rf"/{name}\.json: eos_token_id=.* must be a token id \(a whole"
            ):
                Tokenizer.from_dir(write_directory(tmp_path, tokenizer=numbered(*names), **broken))


@pytest.mark.parametrize("given", [5, [5], ["a"], [{"name": "a"}], [{"name": 5, "template": "x"}], {"a": 5}])
def test_a_template_is_a_text_or_a_list_of_named_ones(tmp_path, given):
    files = dict(tokenizer=numbered("<a>"), tokenizer_config={"chat_template": given})
    with pytest.raises(
        JllamaError, match=r"tokenizer_config\.json: chat_template is .*, not a text \(or a list"
    ):
        Tokenizer.from_dir(write_directory(tmp_path, **files))


@pytest.mark.parametrize(
    ("given", "files", "templates"),
    [
        (None, {}, {}),
        ("", {}, {}),
        ("d", {}, {"default": "d"}),
        (
            [{"name": "default", "template": "d"}, {"name": "x", "template": ""}],
            {},
            {"default": "d", "x": ""},
        ),
        ([], {}, {}),
        ("d", {"chat_template.jinja": "f"}, {"default": "f"}),
        ("d", {"additional_chat_templates/x.jinja": "f"}, {"default": "d", "x": "f"}),
        (
            "d",
            {"chat_template.jinja": "f", "additional_chat_templates/default.jinja": "g"},
            {"default": "g"},
        ),
        (
            [{"name": "x", "template": "old"}, {"name": "y", "template": "kept"}],
            {"additional_chat_templates/x.jinja": "é", "additional_chat_templates/z.txt": "no"},
            {"x": "é", "y": "kept"},
        ),
    ],
)
def test_which_templates_there_are(tmp_path, given, files, templates):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    config = {"chat_template": given}
    made = Tokenizer.from_dir(write_directory(tmp_path, tokenizer=numbered("<a>"), tokenizer_config=config))
    assert made.chat_templates == templates


def test_what_a_template_is_told_of_the_tokens(tmp_path):
    named = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "cls", "sep")}
    config = named | {"pad_token": {"content": "<p>"}, "mask_token": "<m>", "sep_token": None}
    made = Tokenizer.from_dir(
        write_directory(
            tmp_path,
            tokenizer=numbered("<bos>", "<eos>"),
            special_tokens_map={"unk_token": "other", "cls_token": "<map>"},
            tokenizer_config={name: text for name, text in config.items() if name != "cls_token"},
        )
    )
    source = "".join(f"{{{{ {name} }}}}|" for name in [*named, "mask_token"])
    assert made.compile_template(source).render([]) == "<bos>|<eos>|<unk>|<p>|<map>|||"


def test_files_that_name_no_tokenizer_or_something_else(tmp_path):
    with pytest.raises(JllamaError, match=f"^{tmp_path} has no tokenizer: neither tokenizer.json nor"):
        Tokenizer.from_dir(tmp_path)
    for name in ("tekken.json", "tokenizer.model", "tokenizer.json"):
        (tmp_path / name).mkdir()
        with pytest.raises(JllamaError, match=f"^{tmp_path}/{name} is a directory where a file is due"):
            Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer.model", "tekken.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 9\n", "a Git LFS pointer"),
        ("<!DOCTYPE html>\n<html>", "a web page, not the file"),
    ],
)
def test_what_stands_in_the_place_of_a_file_is_named(tmp_path, name, content, words):
    files = {"tokenizer.json": byte_level_json()} if name == "tokenizer_config.json" else {}
    for file, text in (files | {name: content}).items():
        (tmp_path / file).write_text(text)
    with pytest.raises(JllamaError, match=f"^{tmp_path}/{name} is {words}"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("how", ["text", "number", "list"])
def test_an_ordinary_piece_that_files_beside_a_model_name_as_the_end_is_special(tmp_path, how):
    pieces = read_model(GOLDENS / "bpe.model").pieces
    piece = next(p for p in pieces if len(p) > 3 and p.isascii() and p.isalpha())
    at = pieces.index(piece)
    files = {
        "text": dict(tokenizer_config={"eos_token": piece}),
        "number": dict(config={"eos_token_id": at}),
        "list": dict(generation_config={"eos_token_id": [at]}),
    }[how]
    for name in ("plain", "named"):
        (tmp_path / name).mkdir()
    plain = Tokenizer.from_dir(spm_directory(tmp_path / "plain", "bpe"))
    named = Tokenizer.from_dir(spm_directory(tmp_path / "named", "bpe", **files))
    assert plain.special_id(piece) is None
    assert named.special_id(piece) == at
    assert at in named.eos_ids - plain.eos_ids
    assert at not in named.encode(f"x{piece}")
    assert named.encode(f"x{piece}", parse_special=True)[-1] == at
    assert named.decode([at]) == ""


def vocabulary_in(tmp_path, state, named=(), templates=()):
    (tmp_path / "t.json").write_text(json.dumps(state))
    return read_json_vocabulary(tmp_path / "t.json", set(named), set(), templates)


def test_a_vocabulary_is_a_mapping_of_all_tokens(tmp_path):
    state = numbered("<b>", "<e>") | {}
    state["added_tokens"].append(state["added_tokens"][0] | {"id": 258, "content": "<new>"})
    made, affixes = vocabulary_in(tmp_path, state)
    ids = dict(made.ids)
    assert (len(ids), len(made.ids), made.size, made.base_size, affixes) == (259, 259, 259, 258, ((), ()))
    assert (ids["<b>"], ids["<new>"], "nothing" in made.ids) == (0, 258, False)
    assert sorted(ids.values()) == [*range(259)]
    with pytest.raises(KeyError):
        _ = made.ids["nothing"]
    assert [made.token_bytes(token) for token in (0, 258, 259, -1, 1 << 32, 1 << 40)] == [
        *(b"<b>", b"<new>", b"", b"", b"", b""),
    ]


def test_what_a_post_processor_puts_around_a_text(tmp_path):
    pairs = [("<b>", 0), ("<e>", 1)]
    for rule, affixes in (
        ("$A", ((), ())),
        ("<b> $A", ((0,), ())),
        ("$A <e>", ((), (1,))),
        ("<b> <b> $A <e>", ((0, 0), (1,))),
    ):
        inner = tokenizers.Tokenizer.from_str(json.dumps(numbered("<b>", "<e>")))
        inner.post_processor = processors.TemplateProcessing(rule, special_tokens=pairs)
        assert vocabulary_in(tmp_path, json.loads(inner.to_str()))[1] == affixes


def test_a_model_that_knows_no_unknown_word_is_kept_from_special_tokens_all_the_same(tmp_path):
    inner = tokenizers.Tokenizer(models.WordLevel({"<e>": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Metaspace()
    inner.add_tokens([AddedToken("<e>", special=False)])
    made, _ = vocabulary_in(tmp_path, json.loads(inner.to_str()), named=["<e>"])
    assert made.specials["<e>"].id == 0
    assert made.encode("a <e> a", True) == [1, 2, 1]


def test_of_two_names_for_one_token_beside_a_model_tokenizer_config_s_counts(tmp_path):
    count = len(read_model(GOLDENS / "bpe.model").pieces)
    files = dict(
        added_tokens={"<old>": count, "<kept>": count + 1},
        tokenizer_config={"added_tokens_decoder": {str(count): {"content": "<new>"}}},
    )
    made = Tokenizer.from_dir(spm_directory(tmp_path, "bpe", **files))
    assert [made.special_id(text) for text in ("<old>", "<new>", "<kept>")] == [None, count, count + 1]
    assert made.decode([count, count + 1], skip_special=False) == "<new><kept>"


@pytest.mark.parametrize(
    "name",
    ["chat_template.jinja", "additional_chat_templates/x.jinja", "tokenizer_config.json", "config.json"],
)
@pytest.mark.parametrize("kind", ["a FIFO", "a loop"])
def test_what_is_there_in_place_of_an_optional_file_is_named(tmp_path, name, kind):
    """Passed over in silence, a template would be lost."""
    directory = write_directory(tmp_path / "model", tokenizer=numbered("<a>"))
    file = directory / name
    file.parent.mkdir(exist_ok=True)
    if kind == "a FIFO":
        os.mkfifo(file)
    else:
        file.symlink_to(file.name)
    with pytest.raises(JllamaError, match=re.escape(str(file))):
        _ = Tokenizer.from_dir(directory).chat_templates
