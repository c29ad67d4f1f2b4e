"""What must come next is asked of the library once, and is what its masks leave one after the other."""

import numpy as np
import pytest

import jllama
from jllama.cli.plain_tokenizer import plain_tokenizer
from jllama.engine.slots import Slots
from jllama.errors import JllamaError
from jllama.grammar.compiler import compiled
from jllama.grammar.constraint import Constraint, masks_for
from jllama.grammar.words import words_of
from jllama.kernels.target import Target
from jllama.settings import GenerationSettings

pytest.importorskip("llguidance")

WAIT = 300
SIZES = [300, 2000]
GRAMMARS = [
    dict(json_schema={"properties": {"first name": {"type": "string", "maxLength": 9}, "age": {}}}),
    dict(json_schema={"enum": ["w0 w1 w2", "w0 w1 w3", "other"]}),
    dict(regex="[ab]{2} w1 w2 w3 w4(c|d) w5 w6 w7"),
    dict(choice=["the w1 w2 w3 w4", "the w1 w2 x"]),
]


class Asked:
    """A matcher that counts what it is asked."""

    def __init__(self, matcher):
        self._matcher, self.masks, self.forced = matcher, 0, 0

    def __getattr__(self, name):
        self.masks += name == "unsafe_compute_mask_ptr"
        self.forced += name == "compute_ff_tokens"
        return getattr(self._matcher, name)


def walk(size, given, seed, steps=60):
    """Random tokens that may come, the masks that left them, and how often the library was asked."""
    words = words_of(plain_tokenizer(size), size)
    matcher = compiled(words, *GenerationSettings(**given).constraint)
    asked, plain, rng = Asked(matcher.deep_copy()), matcher.deep_copy(), np.random.default_rng(seed)
    constraint = Constraint(asked, -(-size // 32), words.ends, None)
    single = 0
    for _ in range(steps):
        (mask,) = masks_for([constraint])
        bits = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        wanted = np.frombuffer(plain.compute_bitmask(), np.int32)
        assert np.array_equal(mask, wanted)
        single += len(bits) == 1
        token = int(rng.choice(bits))
        constraint.follow([token])
        if constraint.ended:
            break
        assert plain.consume_token(token)
    return asked, single


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("given", GRAMMARS, ids=lambda given: next(iter(given)))
def test_masks_are_those_of_the_library(size, given):
    for seed in range(5):
        walk(size, given, seed)


def test_the_library_is_asked_once_for_a_stretch_of_forced_tokens():
    name = "a long name of a key"
    schema = dict(properties={name: {"type": "boolean"}}, required=[name], additionalProperties=False)
    schema |= {"type": "object"}
    asked, single = walk(300, dict(json_schema=schema), 0)
    assert single > 25  # bytes
    assert asked.masks < 10
    assert asked.forced < 10


def test_a_ban_on_what_must_come_is_an_error_of_that_answer():
    words = words_of(plain_tokenizer(300), 300)
    matcher = compiled(words, "regex", "abcd").deep_copy()
    banned = np.zeros((10,), np.int32)
    banned[ord("c") // 32] = 1 << ord("c") % 32
    constraint = Constraint(matcher, 10, words.ends, banned)
    for letter in "ab":
        (mask,) = masks_for([constraint])
        assert np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist() == [ord(letter)]
        constraint.follow([ord(letter)])
    assert masks_for([constraint]).tolist() == [[-1] * 10]
    assert "no token that logit_bias does not ban may come next" in str(constraint.error)


NAMES = ("the given name of it", "the age of it")
KEYS = {
    "type": "object",
    "properties": {NAMES[0]: {"enum": ["Ada", "Grace"]}, NAMES[1]: {"type": "integer", "maximum": 120}},
    "required": NAMES,
    "additionalProperties": False,
}


def chunks_from(monkeypatch, tokens):
    """Stretches of more tokens than that are read as chunks; gives what was read so."""
    read, accept = [], Slots.accept

    def noting(self, slot, stretch):
        read.append(stretch.tolist())
        accept(self, slot, stretch)

    monkeypatch.setattr(Target, "chunk_steps", property(lambda self: tokens))
    monkeypatch.setattr(Slots, "accept", noting)
    return read


@pytest.mark.parametrize(
    "more",
    [
        dict(),
        dict(temperature=1.0, seed=3),
        dict(temperature=1.0, seed=4, repetition_penalty=1.3, frequency_penalty=0.7),
        dict(max_new_tokens=13),
        dict(stop="age"),
        dict(stop_token_ids="g"),
        dict(temperature=1.0, seed=5, min_new_tokens=90),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["session", "engine"])
def test_an_answer_is_the_same_with_stretches_read_as_chunks(model, engine, monkeypatch, path, more):
    """And so is what the session says next, from the cache that it left."""
    settings = dict(json_schema=KEYS, max_new_tokens=100) | more
    if "stop_token_ids" in more:
        settings["stop_token_ids"] = model.tokenizer.encode("g", add_special=False)
    came = []
    for least in (1000, 2):
        read = chunks_from(monkeypatch, least)
        if path == "engine":
            result = engine.submit("Who?", **settings).result(WAIT)
            came.append((result.text, result.token_ids, result.finish_reason))
            continue
        session = jllama.Session(model, max_seq_len=256)
        text = "".join(session.stream("Who?", **settings))
        came.append((text, session.result.token_ids, session.result.finish_reason))
        came[-1] += ("".join(session.stream([*session.ids, 7], max_new_tokens=5, ignore_eos=True)),)
        assert session.result.reused_tokens > 10
    assert came[0] == came[1]
    assert max(map(len, read)) > 4


def test_a_row_beside_others_or_with_scores_takes_a_token_a_step(model, engine, monkeypatch):
    read = chunks_from(monkeypatch, 2)
    scored = engine.submit("Who?", json_schema=KEYS, logprobs=2).result(WAIT)
    assert len(scored.logprobs) == scored.generated_tokens
    streams = engine.submit_all([dict(prompt=text, json_schema=KEYS, max_new_tokens=40) for text in "ab"])
    assert [stream.result(WAIT).generated_tokens for stream in streams] == [40, 40]
    assert read == []


def test_a_ban_inside_a_stretch_is_found(model, monkeypatch):
    read, (token,) = chunks_from(monkeypatch, 2), model.tokenizer.encode("v", add_special=False)
    session = jllama.Session(model, max_seq_len=256)
    with pytest.raises(JllamaError, match="no token that logit_bias does not ban"):
        list(session.stream("Who?", json_schema=KEYS, logit_bias={token: -1000}))
    assert model.tokenizer.decode(read[0]) == '"the gi'
