"""Generation settings: each range from both sides, what is taken for what, and what is said."""

import dataclasses
import json
import math

import numpy as np
import pytest

from jllama import settings
from jllama.errors import JllamaError
from jllama.settings import CHOICES, GenerationSettings, build_settings

RANGES = [
    ("max_new_tokens", 1, 10_000_000, 0, 10_000_001),
    ("min_new_tokens", 0, 256, -1, 257),  # as many as there may be
    ("temperature", 0, 100.0, -0.001, 100.001),
    ("top_k", 0, 10_000_000, -1, 10_000_001),
    ("top_p", 1e-9, 1.0, 0.0, 1.001),
    ("min_p", 0, 1.0, -0.001, 1.001),
    ("repetition_penalty", 0.01, 100.0, 0.009, 100.001),
    ("presence_penalty", -100.0, 100.0, -100.001, 100.001),
    ("frequency_penalty", -100.0, 100.0, -100.001, 100.001),
    ("seed", 0, 2**63 - 1, -1, 2**63),
]


@pytest.mark.parametrize(("name", "low", "high", "below", "above"), RANGES)
def test_each_range_from_both_sides(name, low, high, below, above):
    for value in (low, high):
        assert getattr(GenerationSettings(**{name: value}), name) == value
    for value in (below, above, math.nan, math.inf, "1", [1], True):
        with pytest.raises(JllamaError, match=f"^{name}="):
            GenerationSettings(**{name: value})
    wants_whole = name in ("max_new_tokens", "min_new_tokens", "top_k", "seed")
    if wants_whole:
        with pytest.raises(JllamaError, match=f"^{name}=1.0 must be a whole number from"):
            GenerationSettings(**{name: 1.0})
    if name != "seed":
        with pytest.raises(JllamaError):
            GenerationSettings(**{name: None})


def test_as_many_tokens_as_there_may_be_at_all():
    most = dict(max_new_tokens=10_000_000, min_new_tokens=10_000_000)
    assert GenerationSettings(**most).min_new_tokens == 10_000_000


def test_the_neutral_values_change_nothing():
    made = GenerationSettings()
    neutral = dict(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    neutral |= dict(presence_penalty=0.0, frequency_penalty=0.0)
    assert {name: getattr(made, name) for name in CHOICES} == neutral
    assert (made.max_new_tokens, made.seed, made.stop, made.logit_bias, made.ignore_eos) == (
        256,
        None,
        (),
        {},
        False,
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(top_p=2.0), "top_p=2.0 must be a number from 1e-09 to 1"),
        (dict(top_k=-1), "top_k=-1 must be a whole number from 0 to 10,000,000"),
        (dict(temperature="x" * 100), "temperature='" + "x" * 78 + "… must be a number from 0 to 100"),
        (dict(temperature="x" * 78), "temperature='" + "x" * 78 + "' must be"),
        (dict(temperature="x" * 79), "temperature='" + "x" * 78 + "… must be"),
        (dict(repetition_penalty=0), "repetition_penalty=0 must be a number from 0.01 to 100"),
        (
            dict(min_new_tokens=10_000_001),
            "min_new_tokens=10000001 must be a whole number from 0 to 10,000,000",
        ),
        (dict(json_object=1), "json_object=1 must be True or False"),
        (dict(json_schema=5), "json_schema=5 is no schema: give a JSON Schema: an object, true or false"),
        (dict(json_schema="[]"), "json_schema=[] is no schema: give a JSON Schema"),
        (
            dict(json_schema={1, 2}),
            "json_schema is no JSON (Object of type set is not JSON serializable): give",
        ),
        (dict(json_schema="{"), "json_schema is no JSON ("),
        (
            dict(json_schema='{"a": -Infinity}'),
            "json_schema is no JSON (-Infinity is no number of JSON): give",
        ),
        (dict(json_schema={"a": math.nan}), "json_schema is no JSON ("),
        (dict(max_new_tokens=10**5000), "max_new_tokens=(thousands of digits) must be"),
        (dict(seed=-1), "seed=-1 must be a whole number from 0 to 2^63 - 1"),
        (dict(stop=[5]), "stop=[5] must be a text or a list of texts"),
        (dict(stop=5), "stop=5 must be a text or a list of texts"),
        (dict(stop=["a", ""]), "a stop string is empty; leave it out"),
        (dict(stop=""), "a stop string is empty; leave it out"),
        (dict(min_new_tokens=3, max_new_tokens=2), "min_new_tokens=3 is more than max_new_tokens=2"),
        (dict(stop_token_ids="5"), "stop_token_ids='5' must be token ids (whole numbers)"),
        (dict(stop_token_ids=[1.0]), "stop_token_ids=[1.0] must be token ids"),
        (dict(stop_token_ids=[5, True]), "stop_token_ids=[5, True] must be token ids"),
        (dict(logit_bias=[1]), "logit_bias must hold token ids (whole numbers)"),
        (dict(logit_bias={"1": 1.0}), "logit_bias must hold token ids"),
        (dict(logit_bias={True: 1.0}), "logit_bias must hold token ids"),
        (dict(logit_bias={1.0: 1.0}), "logit_bias must hold token ids"),
        (
            dict(logit_bias={1: 1.1e9}),
            "logit_bias of token 1 is 1100000000.0; it must be a number from -1,000,000,000 to",
        ),
        (dict(logit_bias={1: -1.1e9}), "(-1000 bans a token)"),
        (dict(logit_bias={1: "x"}), "logit_bias of token 1 is 'x'"),
    ],
)
def test_what_is_out_of_range_is_said(given, words):
    with pytest.raises(JllamaError) as error:
        GenerationSettings(**given)
    assert words in str(error.value)


def test_what_programs_have_at_hand_is_taken():
    made = GenerationSettings(
        temperature=np.float32(0.5),
        top_k=np.int64(3),
        stop=None,
        logit_bias={np.int32(4): np.float64(1e9), 5: -1e9},
    )
    assert (made.temperature, type(made.temperature), type(made.top_k)) == (0.5, float, int)
    assert (made.stop, made.logit_bias) == ((), {4: 1e9, 5: -1e9})
    assert all(type(token) is int and type(bias) is float for token, bias in made.logit_bias.items())
    assert GenerationSettings(stop="ab").stop == GenerationSettings(choice="ab").choice == ("ab",)
    assert GenerationSettings(choice=iter(["a", "b"])).choice == ("a", "b")
    assert GenerationSettings(choice=None).choice == ()
    for given in (5, [5], iter([np.int32(5)]), np.array([5])):
        (token,) = GenerationSettings(stop_token_ids=given).stop_token_ids
        assert (token, type(token)) == (5, int)
    assert GenerationSettings(stop_token_ids=None).stop_token_ids == ()
    assert GenerationSettings(stop=iter(["a", "b"])).stop == ("a", "b")
    assert GenerationSettings(logit_bias=None).logit_bias == {}


def test_the_callers_biases_stay_the_callers():
    given = {1: 2.0}
    made = GenerationSettings(logit_bias=given)
    given[1] = 5.0
    assert made.logit_bias == {1: 2.0}


def test_a_seed_is_drawn_once_and_only_where_there_is_none(monkeypatch):
    assert GenerationSettings(seed=0).seeded().seed == 0
    made = GenerationSettings(seed=7)
    assert made.seeded() is made
    drawn = [GenerationSettings(temperature=0.5).seeded() for _ in range(4)]
    assert len({one.seed for one in drawn}) > 1
    assert all(0 <= one.seed < 2**32 and one.temperature == 0.5 for one in drawn)


def test_keywords_change_an_objects_fields():
    base = GenerationSettings(temperature=0.5, top_k=3)
    assert build_settings(base, top_k=4) == GenerationSettings(temperature=0.5, top_k=4)
    assert build_settings(base) == base
    assert build_settings(top_p=0.5) == GenerationSettings(top_p=0.5)
    assert build_settings() == GenerationSettings()
    assert base.top_k == 3
    with pytest.raises(
        JllamaError, match=r"settings is of type dict: give a GenerationSettings, or keywords"
    ):
        build_settings({"top_k": 1})
    with pytest.raises(
        JllamaError, match=r"unknown setting temprature \(did you mean 'temperature'\?\); there are max_new"
    ):
        build_settings(temprature=1)
    with pytest.raises(JllamaError, match=f"unknown setting {'x' * 80};"):
        build_settings(**{"x" * 100: 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        base.top_k = 5


@pytest.mark.parametrize(
    ("schema", "levels"),
    [
        (True, 0),
        ({}, 1),
        ({"a": 1, "b": None}, 1),
        ({"a": {}}, 2),
        ({"a": []}, 2),
        ({"a": 1, "b": ({"c": "text"}, 2)}, 3),
        ({"a": [], "b": {"c": [[True]]}}, 4),
    ],
    ids=str,
)
def test_how_deep_a_schema_nests(monkeypatch, schema, levels):
    for given in (schema, json.dumps(schema)):
        monkeypatch.setattr(settings, "DEEPEST_SCHEMA", levels)
        assert GenerationSettings(json_schema=given).json_schema == json.dumps(schema)
        monkeypatch.setattr(settings, "DEEPEST_SCHEMA", levels - 1)
        with pytest.raises(JllamaError, match=rf"^json_schema nests deeper than {levels - 1} levels$"):
            GenerationSettings(json_schema=given)


def test_the_deepest_schema():
    deepest = '{"items":[' * 32 + "]}" * 32
    assert GenerationSettings(json_schema=deepest).constraint[0] == "json_schema"
    with pytest.raises(JllamaError, match=r"^json_schema nests deeper than 64 levels$"):
        GenerationSettings(json_schema=f'{{"a":{deepest}}}')


LIMIT = settings.LONGEST_CONSTRAINT


@pytest.mark.parametrize(
    ("name", "of_length"),
    [
        ("regex", lambda n: "x" * n),
        ("grammar", lambda n: "x" * n),
        ("choice", lambda n: ["x", "x" * (n - 1)]),
        ("json_schema", lambda n: {"a": "x" * (n - 9)}),
        ("json_schema", lambda n: '{"a": ""}'.ljust(n)),
    ],
)
def test_how_long_what_an_answer_must_match_may_be(name, of_length):
    assert LIMIT == 1 << 18
    assert GenerationSettings(**{name: of_length(LIMIT)}).constraint[0] == name
    with pytest.raises(JllamaError, match=f"^{name} has (262,145|more than 262,144) characters"):
        GenerationSettings(**{name: of_length(LIMIT + 1)})


@pytest.mark.parametrize("name", ["regex", "grammar", "choice"])
def test_what_is_no_text_has_no_place_in_a_constraint(name):
    for sound in ("\ud7ffé", "\ue000", "\x01"):
        assert GenerationSettings(**{name: sound}).constraint is not None
    for unsound in ("\ud800", "a\udfff", "\0", "é\0"):
        with pytest.raises(JllamaError, match=f"^{name} holds a character that is no text"):
            GenerationSettings(**{name: unsound})
    blank = " \n"
    if name == "choice":
        assert GenerationSettings(choice=blank).choice == (blank,)
    else:
        with pytest.raises(JllamaError, match=f"^{name} is empty: leave it out"):
            GenerationSettings(**{name: blank})


ONE_OF_EACH = dict(json_schema=False, json_object=True, regex="a", grammar="b", choice="c")


@pytest.mark.parametrize("first", ONE_OF_EACH)
def test_an_answer_must_match_one_thing_at_most(first):
    alone = GenerationSettings(**{first: ONE_OF_EACH[first]})
    assert alone.constraint[0] == first
    with pytest.raises(JllamaError, match=f"^ignore_eos goes on behind an answer's end, where {first} "):
        dataclasses.replace(alone, ignore_eos=True)
    for second in ONE_OF_EACH.keys() - {first}:
        names = " and ".join(name for name in settings.CONSTRAINTS if name in (first, second))
        with pytest.raises(JllamaError, match=f"^{names} can't hold at once: give one of them$"):
            dataclasses.replace(alone, **{second: ONE_OF_EACH[second]})
