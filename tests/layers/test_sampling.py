"""`sample` against a plain float64 statement of its docstring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.layers.sampling import (
    WINDOW,
    Sampling,
    TokenCounts,
    _pick_among,
    largest,
    largest_and_sum,
    sample,
)

V = 500
sample_fast = jax.jit(sample)


def kept_probabilities(logits, *, temperature, top_k, top_p, min_p):
    """Ids in order of falling probability, and what each is drawn with: steps 4 to 7, in float64."""
    scaled = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")[: top_k or None]
    shares = np.exp(scaled[order] - scaled.max())
    shares /= shares.sum()
    before = np.cumsum(shares) - shares
    kept = ((before < top_p) | (top_p >= 1)) & (shares >= min_p * shares[0])
    kept[0] = True
    return order[kept], shares[kept] / shares[kept].sum()


def empty_counts(batch=1, vocab=V):
    return TokenCounts.of_prompt(jnp.zeros((batch, 1), jnp.int32), jnp.zeros((batch,), jnp.int32), vocab)


CASES = [
    dict(temperature=1.0),
    dict(temperature=0.7, top_k=5),
    dict(temperature=1.3, top_k=1),
    dict(temperature=1.0, top_k=WINDOW + 50),
    dict(temperature=1.0, top_p=0.3),
    dict(temperature=5.0, top_p=0.95),
    dict(temperature=1.0, top_p=1e-9),
    dict(temperature=1.0, min_p=0.1),
    dict(temperature=5.0, min_p=0.001),
    dict(temperature=0.9, top_k=40, top_p=0.8, min_p=0.02),
    dict(temperature=4.0, top_k=400, top_p=0.9),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_draws_are_those_of_the_definition(case, seed):
    """Every candidate's share of [0, 1) is its probability: checked in the middle of each share."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(V) * 2).astype(np.float32)
    ids, shares = kept_probabilities(logits, **{"top_k": 0, "top_p": 1.0, "min_p": 0.0, **case})
    picks = rng.integers(len(ids), size=48)
    middles = (np.cumsum(shares) - shares / 2)[picks].astype(np.float32)
    batch = len(picks)
    sampling = Sampling.build(batch=batch, vocab_size=V, **case)
    tokens = sample_fast(
        jnp.tile(jnp.asarray(logits)[None], (batch, 1)), sampling, empty_counts(batch), jnp.asarray(middles)
    )
    # Shares below the rounding of float32 can't be hit in their middle.
    sure = shares[picks] > 1e-5
    np.testing.assert_array_equal(np.asarray(tokens)[sure], ids[picks][sure])
    assert set(np.asarray(tokens).tolist()) <= set(ids.tolist())


@pytest.mark.parametrize("temperature", [1e-6, 1e-12, 1e-30])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((32, V)) * 5, jnp.float32)
    sampling = Sampling.build(batch=1, vocab_size=V, temperature=temperature)
    drawn = [sample_fast(row[None], sampling, empty_counts(), jnp.full((1,), 0.5)) for row in logits]
    np.testing.assert_array_equal(jnp.concatenate(drawn), jnp.argmax(logits, axis=-1))


def test_extremes_of_uniform_stay_inside_the_kept_set():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, V)), jnp.float32)
    sampling = Sampling.build(batch=2, vocab_size=V, temperature=1.0, top_p=0.5)
    uniform = jnp.array([0.0, np.nextafter(np.float32(1), np.float32(0))], jnp.float32)
    tokens = np.asarray(sample_fast(logits, sampling, empty_counts(2), uniform))
    for row in range(2):
        ids, _ = kept_probabilities(logits[row], temperature=1.0, top_k=0, top_p=0.5, min_p=0.0)
        assert tokens[row] in ids


def test_what_has_no_share_is_never_drawn():
    """Sums of many shares go on growing by their rounding alone, behind the last token that has one."""
    B, many = 150, 1000
    random = np.random.default_rng(0)
    shared = np.arange(many)[None, :] < random.integers(WINDOW, many, (B, 1))
    logits = jnp.asarray(np.where(shared, random.random((B, many)), -200.0), jnp.float32)
    sampling = Sampling.build(batch=B, vocab_size=many, temperature=1.0)
    uniform = jnp.full((B,), np.nextafter(np.float32(1), np.float32(0)))
    tokens = sample_fast(logits, sampling, empty_counts(B, many), uniform)
    assert shared[np.arange(B), tokens].all()


def test_each_share_begins_where_the_one_before_ends():
    """A number on the border falls into the share behind it."""
    sampling = Sampling.build(batch=4, vocab_size=4, temperature=1.0)
    tokens = sample_fast(
        np.zeros((4, 4), np.float32), sampling, empty_counts(4, 4), np.arange(4, dtype="f4") / 4
    )
    assert tokens.tolist() == [0, 1, 2, 3]


def test_a_window_that_all_that_is_kept_lies_in_is_enough():
    """Else the whole vocabulary would be sorted: for what min_p or top_p ends before, and for top_k."""
    batch, window = 5, 8
    logits = np.tile(-np.arange(32, dtype=np.float32), (batch, 1))
    cuts = [dict(top_p=0.9), dict(min_p=0.1), dict(top_k=window), dict(top_k=window + 1), dict(top_p=0.99999)]
    rows = [Sampling.build(batch=1, vocab_size=32, temperature=1.0, **cut) for cut in cuts]
    sampling = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
    log_total = np.log(np.exp(logits).sum(axis=-1))
    uniform = np.full((batch,), 0.5, np.float32)
    _, certain = jax.jit(_pick_among, static_argnums=4)(logits, log_total, sampling, uniform, window)
    assert certain.tolist() == [True, True, True, False, False]


def test_greedy_takes_the_lowest_of_equal_logits_and_mixes_with_drawn_rows():
    logits = jnp.zeros((2, V), jnp.float32).at[:, jnp.array([7, 9])].set(3.0)
    sampling = Sampling.build(batch=2, vocab_size=V, temperature=1.0, top_k=2)
    sampling = jax.tree.map(jnp.asarray, sampling)
    mixed = Sampling(**{**vars(sampling), "temperature": jnp.array([0.0, 1.0], jnp.float32)})
    tokens = sample_fast(logits, mixed, empty_counts(2), jnp.array([0.99, 0.99], jnp.float32))
    assert tokens.tolist() == [7, 9]


def test_penalties_and_bias():
    logits = jnp.asarray([[2.0, -2.0, 1.0, 0.5, 0.0, 3.0]], jnp.float32)
    prompt = jnp.asarray([[0, 1, 4]], jnp.int32)
    counts = TokenCounts.of_prompt(prompt, jnp.array([2], jnp.int32), 6)  # the 4 is padding
    for token in (2, 2, 5, 2):
        counts = counts.add(jnp.array([token], jnp.int32), jnp.array([True]))
    counts = counts.add(jnp.array([3], jnp.int32), jnp.array([False]))
    sampling = Sampling.build(
        batch=1,
        vocab_size=6,
        repetition_penalty=2.0,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        logit_bias={4: 0.125},
    )
    from jllama.layers.sampling import penalize

    penalized = penalize(logits + sampling.logit_bias, sampling, counts)
    expected = [[1.0, -4.0, 0.5 - 0.25 - 1.5, 0.5, 0.125, 1.5 - 0.25 - 0.5]]
    np.testing.assert_allclose(np.asarray(penalized), expected, rtol=1e-6)


def test_what_lies_on_a_border_is_kept_by_min_p_and_cut_by_top_p():
    """Two of equal probability: both are as probable as the most probable one; one alone reaches a half."""
    logits = jnp.full((1, V), -jnp.inf, jnp.float32).at[0, jnp.array([3, 8])].set(0.0)
    for case, token in ((dict(min_p=1.0), 8), (dict(top_p=0.5), 3), (dict(top_p=0.51), 8)):
        sampling = Sampling.build(batch=1, vocab_size=V, temperature=1.0, **case)
        drawn = sample_fast(logits, sampling, empty_counts(), jnp.array([0.9], jnp.float32))
        assert drawn.tolist() == [token]


def test_top_p_is_a_share_of_what_top_k_left():
    logits = jnp.zeros((1, V), jnp.float32)  # of the two that are left, the first one holds a half
    sampling = Sampling.build(batch=1, vocab_size=V, temperature=1.0, top_k=2, top_p=0.4)
    assert sample_fast(logits, sampling, empty_counts(), jnp.array([0.9], jnp.float32)).tolist() == [0]


def test_a_large_bias_decides():
    sampling = Sampling.build(batch=1, vocab_size=V, temperature=1.0, logit_bias={123: 1000.0})
    flat, uniform = jnp.zeros((1, V), jnp.float32), jnp.array([0.7], jnp.float32)
    token = sample_fast(flat, sampling, empty_counts(), uniform)
    assert token.tolist() == [123]


def test_neighbours_change_nothing():
    rng = np.random.default_rng(5)
    logits = jnp.asarray(rng.standard_normal((3, V)) * 3, jnp.float32)
    uniform = jnp.asarray(rng.random(3), jnp.float32)
    settings = dict(temperature=1.0, top_p=0.9)
    sampling = Sampling.build(batch=3, vocab_size=V, **settings)
    together = sample_fast(logits, sampling, empty_counts(3), uniform)
    for row in range(3):
        alone = sample_fast(
            logits[row : row + 1],
            Sampling.build(batch=1, vocab_size=V, **settings),
            empty_counts(),
            uniform[row : row + 1],
        )
        assert alone[0] == together[row]


@pytest.mark.parametrize("vocab", [1, 5, 256, 300, 1024])
def test_largest_is_argmax(vocab):
    rng = np.random.default_rng(vocab)
    logits = rng.integers(-3, 3, size=(4, vocab)).astype(np.float32)  # many ties
    logits[2] = -np.inf
    np.testing.assert_array_equal(largest(jnp.asarray(logits)), np.argmax(logits, axis=-1))
    tokens, sums = largest_and_sum(jnp.asarray(logits))
    np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))
    np.testing.assert_array_equal(sums, np.sum(logits, axis=-1))


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_the_sum(strange):
    for place in range(0, 500, 71):
        tokens, sums = largest_and_sum(jnp.zeros((1, 500), jnp.float32).at[0, place].set(strange))
        assert not np.isfinite(sums[0])
        assert 0 <= tokens[0] < 500


@pytest.mark.parametrize(
    ("settings", "greedy"),
    [
        ({}, True),
        (dict(top_k=5, top_p=0.5, min_p=0.1, logit_bias={3: 0.0}), True),
        (dict(temperature=0.1), False),
        (dict(repetition_penalty=1.1), False),
        (dict(presence_penalty=-0.5), False),
        (dict(frequency_penalty=0.5), False),
        (dict(logit_bias={3: 1.0}), False),
    ],
    ids=str,
)
def test_greedy_settings_change_no_logit(settings, greedy):
    assert Sampling.build(batch=2, vocab_size=V, **settings).is_greedy() == greedy
