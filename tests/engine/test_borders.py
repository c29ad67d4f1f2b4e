"""LongRoPE's two lists: whatever was in a cache before, a text is turned by the list of its length alone."""

import dataclasses

import numpy as np
import pytest

import jllama
from jllama.config import ModelConfig
from jllama.engine.borders import Borders
from jllama.engine.rows import Row
from jllama.text.tokenizer import Tokenizer
from tests.support.family_files import MODELS, write_hf
from tests.support.tiny_checkpoint import write_tiny_model

BORDER = 32  # `original_max_position_embeddings`
# Greedy tokens behind `prompt(20)` and `prompt(32)` by transformers 5 in float32, eager attention, the whole
# text read anew for each token. Of Phi-3 its `generate` gives the same; of Llama it does not, since it keeps
# what was turned by the other list.
GOLDENS = {
    ("phi3_longrope", 20): "50 6 36 12 94 44 51 38 10 68 63 50 49 86 77 51 94 36 12 34 94 36 3 80",
    ("phi3_longrope", 32): "33 25 49 49 86 77 62 68 63 65 90 93 90 80 93 44 86 77 93 74 31 68 90 93",
    ("llama_longrope", 20): "85 88 94 81 55 52 30 67 36 28 44 89 44 69 86 69 7 1 65 47 70 64 91 71",
    ("llama_longrope", 32): "10 52 94 76 94 81 43 94 41 94 52 43 30 39 5 89 92 68 39 43 88 44 69 42",
}
WORDS = dict(max_new_tokens=24, ignore_eos=True)


def prompt(count, last=None):
    ids = [(7 * i * i + 3 * i + 1) % 97 for i in range(count)]
    return ids if last is None else [*ids[:-1], last]


@pytest.fixture(scope="module", params=["phi3_longrope", "llama_longrope"])
def named(request, tmp_path_factory):
    directory = write_tiny_model(tmp_path_factory.mktemp(request.param))
    words = Tokenizer.from_dir(directory)  # which has more tokens than the model, but all of its
    model = jllama.load(str(write_hf(request.param, directory)), dtype="float32", tokenizer=False)
    return request.param, dataclasses.replace(model, tokenizer=words)


@pytest.fixture
def model(named):
    return named[1]


def told(session, ids, **changes):
    """The token ids of a session's answer."""
    for _ in session.stream(ids, **WORDS | changes):
        pass
    return session.result.token_ids


def fresh(model, ids, **changes):
    return told(jllama.Session(model, max_seq_len=96), ids, **changes)


def test_a_session_and_an_engine_say_what_transformers_says(named):
    name, model = named
    with jllama.Engine(model, slots=2, max_seq_len=96) as engine:
        for (of, count), golden in GOLDENS.items():
            if of == name:
                wanted = [int(word) for word in golden.split()]
                assert fresh(model, prompt(count)) == wanted
                assert engine.submit(prompt(count), **WORDS).result().token_ids == wanted


@pytest.mark.parametrize("count", [BORDER - 12, BORDER - 1, BORDER, BORDER + 1])
def test_an_answer_at_once_is_that_in_pieces(model, count):
    whole = fresh(model, prompt(count))
    for part in (1, 2, 12, 13, 14, 20):
        assert fresh(model, prompt(count) + whole[:part], max_new_tokens=24 - part) == whole[part:]


@pytest.mark.parametrize(
    ("first", "second", "reused"), [(25, 50, 0), (50, 25, 0), (20, 25, 20), (40, 50, 40), (32, 33, 0)]
)
def test_a_session_reuses_what_the_same_list_turned(model, first, second, reused):
    session = jllama.Session(model, max_seq_len=96)
    told(session, prompt(first), max_new_tokens=1)
    assert told(session, prompt(second)) == fresh(model, prompt(second))
    assert session.result.reused_tokens == reused


@pytest.mark.parametrize("pieces", range(10, 16))
def test_a_session_left_near_the_border_goes_on_as_afresh(model, pieces):
    """`fork` ends the answer wherever it is; a shorter text and a longer one follow."""
    session, whole = jllama.Session(model, max_seq_len=96), fresh(model, prompt(20))
    stream = session.stream(prompt(20), **WORDS)
    while len(session.result.token_ids) < pieces:
        next(stream)
    twin = session.fork()
    assert told(twin, prompt(20) + whole[:8], max_new_tokens=16) == whole[8:]
    assert told(session, prompt(20) + whole[:14], max_new_tokens=10) == whole[14:]


def test_rows_cross_each_at_its_own_time(model):
    prompts = [prompt(count, last=count) for count in (5, 20, 25, 31, 32, 33, 40)]
    with jllama.Engine(model, slots=3, max_seq_len=96) as engine:
        streams = [
            engine.submit(ids, **WORDS, logprobs=n) for ids, n in zip(prompts, [None, 0] * 4, strict=False)
        ]
        results = [stream.result() for stream in streams]
    assert [result.token_ids for result in results] == [fresh(model, ids) for ids in prompts]
    assert {result.finish_reason for result in results} == {"length"}
    assert [len(result.logprobs) for result in results if result.logprobs is not None] == [24] * 3


def test_slots_share_what_the_same_list_turned(model):
    """The first row crosses the border, so that a short text that begins alike finds nothing there."""
    with jllama.Engine(model, slots=1, max_seq_len=96) as engine:

        def ask(count, **changes):
            result = engine.submit(prompt(count), **WORDS | changes).result()
            assert result.token_ids == fresh(model, prompt(count), **changes)
            return result.reused_tokens

        assert ask(20, max_new_tokens=2) == 0
        assert ask(31) == 20  # it crosses
        assert ask(30, max_new_tokens=2) == 0
        assert ask(40, max_new_tokens=2) == 0
        assert ask(50, max_new_tokens=2) == 40


def test_what_must_match_crosses_too(tmp_path):
    rope = MODELS["llama_longrope"]["config"]["rope_parameters"]
    factors = {name: rope[name][:4] for name in ("short_factor", "long_factor")}
    path = write_tiny_model(tmp_path, rope_parameters=rope | factors)
    model = jllama.load(str(path), dtype="float32")
    words = dict(regex="[a-z ]{30}", max_new_tokens=40)

    def answer(begun=()):
        session = jllama.Session(model, max_seq_len=96)
        for _ in session.stream(prompt(20), begun=begun, **words):
            pass
        return session.result.token_ids

    whole = answer()
    assert len(whole) >= 30
    assert answer(whole[:14]) == whole
    with jllama.Engine(model, slots=2, max_seq_len=96) as engine:
        streams = [engine.submit(prompt(20), **words), engine.submit(prompt(25), **words)]
        assert streams[0].result().token_ids == whole
        assert len(streams[1].result().token_ids) >= 30


def row(count, limit):
    made = dict(sampling=None, key=np.zeros((2,), np.uint32), stop_ids=())
    return Row(prompt=np.zeros((count,), np.int32), limit=limit, **made)


def test_where_rows_stop():
    borders = Borders((8, 16))
    assert [borders.side(count) for count in (1, 8, 9, 16, 17)] == [0, 0, 1, 1, 2]
    limits = [
        borders.stopping(row(count, 9), came).limit
        for count, came in ((4, 0), (4, 5), (8, 0), (9, 0), (17, 0))
    ]
    assert limits == [5, 9, 1, 8, 9]
    stops = [borders.stops(row(4, limit), came) for limit, came in ((9, 5), (9, 4), (5, 5), (9, 0))]
    assert stops == [True, False, False, False]


@pytest.mark.parametrize("name", ["phi3", "llama_longrope", "phi3_longrope"])
def test_one_list_has_no_border(name):
    keys = MODELS[name]["config"]
    rope = keys["rope_parameters"]
    assert Borders.of(ModelConfig.from_hf(keys)).lengths == ((BORDER,) if "longrope" in name else ())
    if "longrope" in name:
        alike = keys | {"rope_parameters": rope | {"short_factor": rope["long_factor"]}}
        assert Borders.of(ModelConfig.from_hf(alike)).lengths == ()
