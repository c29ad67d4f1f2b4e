"""Where what a vocabulary may hold ends: the last that is taken, and the first that is not."""

import base64

import pytest

from jllama.errors import JllamaError
from jllama.text.stop import StopMatcher
from jllama.text.vocabularies import ranked, spm, tokenizer_checks
from jllama.text.vocabularies.spm import NORMAL, UNKNOWN, SpmModel


def pieces(*texts, byte_fallback=False):
    types = [UNKNOWN, *[NORMAL] * len(texts)]
    scores = [-float(at) for at in range(len(types))]
    return SpmModel(
        pieces=["<unk>", *texts], types=types, scores=scores, add_prefix=False, byte_fallback=byte_fallback
    )


def test_the_longest_piece_of_a_sentencepiece_model():
    spm.SpmEncoder(pieces("a" * spm.MAX_PIECE))
    with pytest.raises(JllamaError, match=rf"a piece of {spm.MAX_PIECE + 1} characters"):
        spm.SpmEncoder(pieces("a" * (spm.MAX_PIECE + 1)))


@pytest.mark.parametrize("unknown", [-1, 3])
def test_an_unknown_piece_is_one_of_a_model_s(unknown):
    model = pieces("a", "b")
    spm.SpmEncoder(model)
    with pytest.raises(JllamaError, match=rf"no piece {unknown}, its unknown token"):
        spm.SpmEncoder(spm.replace(model, unk_id=unknown))


def test_letters_that_a_model_does_not_know_are_one_unknown_piece():
    encode = spm.SpmEncoder(pieces("a", "b"))
    assert encode("axyzb", True) == [1, 0, 2]
    assert encode("xaxy", True) == [0, 1, 0]


def test_the_longest_token_and_the_largest_table_of_ranks(tmp_path, monkeypatch):
    letters = {bytes([byte]): byte for byte in range(256)}
    monkeypatch.setattr(ranked, "MAX_PIECE", 3)
    ranked._build(letters | {b"abc": 256}, "a", {}, tmp_path)
    with pytest.raises(JllamaError, match="a token of 4 bytes"):
        ranked._build(letters | {b"abcd": 256}, "a", {}, tmp_path)
    file = tmp_path / "table"
    file.write_bytes(b"%s 0\n%s 1\n" % (base64.b64encode(b"a"), base64.b64encode(b"bc")))
    monkeypatch.setattr(ranked, "MAX_BYTES", file.stat().st_size)
    assert ranked._table(file) == {b"a": 0, b"bc": 1}
    monkeypatch.setattr(ranked, "MAX_BYTES", file.stat().st_size - 1)
    with pytest.raises(JllamaError, match="is no table of ranks"):
        ranked._table(file)


def test_the_longest_token_of_a_tokenizer_json(tmp_path):
    most = tokenizer_checks.MAX_PIECE
    tokenizer_checks._check_pieces(["a", "b" * most, None, 3], tmp_path)
    with pytest.raises(JllamaError, match=rf"a token of {most + 1} characters is none of a model's"):
        tokenizer_checks._check_pieces(["a", "b" * (most + 1)], tmp_path)
    tokenizer_checks._check_pieces([], tmp_path)


def replaced(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    ("step", "growth"),
    [
        ({"type": "NFC"}, 1),
        ({"type": "Prepend", "prepend": ""}, 1),
        ({"type": "Prepend", "prepend": "▁" * 16}, 1),
        ({"type": "Prepend", "prepend": "▁" * 64}, 4),
        (replaced({"String": " "}, "▁▁▁"), 3),
        (replaced({"String": "abcd"}, "ab"), 1),  # what it shortens may not be there
        (replaced({"String": "ab"}, "abc"), 1.5),
        (replaced({"String": ""}, "ab"), 2),
        (replaced({"Regex": "x*"}, "ab"), 3),
    ],
)
def test_how_many_times_longer_a_step_makes_a_text(step, growth):
    assert tokenizer_checks._growth(step) == growth


def steps(count, *more):
    return {"type": "Sequence", "normalizers": [*[replaced({"String": "a"}, "a")] * count, *more]}


@pytest.mark.parametrize(
    ("normalizer", "sound"),
    [
        (None, True),
        (steps(tokenizer_checks.MAX_STEPS), True),
        (steps(tokenizer_checks.MAX_STEPS + 1), False),
        (steps(0, *[replaced({"String": "a"}, "aa")] * 8), True),  # 256 times
        (steps(0, *[replaced({"String": "a"}, "aa")] * 9), False),
        (steps(0, {"type": "NFC"}, {"type": "NFKC"}), True),
        (steps(0, {"type": "NFC"}, {"type": "NFC"}), True),
        (steps(0, *[{"type": "NFC"}] * 9), False),
    ],
)
def test_how_far_a_normalizer_may_go(tmp_path, normalizer, sound):
    if sound:
        return tokenizer_checks._check_normalizer(normalizer, tmp_path)
    with pytest.raises(JllamaError, match="its normalizer makes texts longer without bounds"):
        tokenizer_checks._check_normalizer(normalizer, tmp_path)


@pytest.mark.parametrize(
    ("stops", "pushed", "text", "does"),
    [
        (["ab"], "x", "ab", True),
        (["ab"], "xa", "b", True),
        (["ab"], "xa", "xb", False),
        (["ab"], "x", "a", False),
        ([], "x", "ab", False),
    ],
)
def test_whether_a_stop_would_appear(stops, pushed, text, does):
    matcher = StopMatcher(stops)
    shown = matcher.push(pushed)
    assert matcher.matches(text) is does
    assert matcher.matches(text) is does  # nothing changed
    assert shown + matcher.push("") + matcher.flush() == pushed


def test_vocabularies_of_pairs_and_of_names_are_looked_at(tmp_path):
    long = "x" * (tokenizer_checks.MAX_PIECE + 1)
    for vocab in ([["a", 0.0], [long, 0.0]], {"a": 0, long: 1}):
        with pytest.raises(JllamaError, match="is none of a model's"):
            tokenizer_checks._check_model({"vocab": vocab}, tmp_path)
    for vocab in ([["a", 0.0], []], {"a": 0}, None):
        tokenizer_checks._check_model({"vocab": vocab}, tmp_path)
    prefix = {"vocab": {"a": 0}, "continuing_subword_prefix": "##"}
    for merges in (["a ##b"], [["a", "##b"]], [], None):
        tokenizer_checks._check_model(prefix | {"merges": merges}, tmp_path)
    for merges in (["a b"], [["a", "##b"], ["a", "b"]]):
        with pytest.raises(JllamaError, match=r"merges do not begin with its continuing_subword_prefix '##'"):
            tokenizer_checks._check_model(prefix | {"merges": merges}, tmp_path)
