"""The CUDA kernel that chooses tokens against `take_token`: emulated on a CPU, on a GPU with `-m gpu`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels
from jllama.engine import state as decode_state
from jllama.engine.state import DecodeState, Way
from jllama.kernels.gpu import launch, sample
from jllama.layers.cache import KVCache
from jllama.layers.sampling import Sampling, TokenCounts, penalize
from tests.support import emulation
from tests.support.decoding import GPU, XLA

# How far from the end of a share a draw may fall and still be taken for the neighbour's: both add up float32
# exponentials, the plain code with rounding, the kernel without.
NEAR = 3e-6
SETTINGS = [
    dict(),
    dict(temperature=0.8),
    dict(temperature=0.8, top_p=0.95),
    dict(temperature=0.7, top_k=40, repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.1),
    dict(temperature=1.0, top_k=7, top_p=0.6, min_p=0.02),
    dict(temperature=1.5, min_p=0.1),
    dict(temperature=1.0, top_k=400, top_p=0.9),
    dict(temperature=100.0, top_p=0.5),
    dict(temperature=1e-12),
    dict(temperature=1.0, top_p=1e-9),
    dict(temperature=1.0, top_k=1),
    dict(repetition_penalty=0.5, frequency_penalty=-1.0),
    dict(temperature=1.0, logit_bias={3: 5.0, 4: -1e9}),
]


def rows_of(settings: list[dict], vocab: int) -> Sampling:
    """One row for each of the settings."""
    rows = [Sampling.build(batch=1, vocab_size=vocab, **each) for each in settings]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


def logits_of(kind: str, rng, shape) -> np.ndarray:
    """Peaked like a model's, spread, nearly flat, with many equals, all equal, or some sixty alone."""
    noise = rng.standard_normal(shape)
    logits = {
        "peaked": noise * 3 + 6 * (rng.random(shape) < 0.005),
        "spread": noise,
        "flat": noise * 1e-3,
        "rounded": np.round(noise * 2) / 2,
        "equal": np.zeros(shape),
        "few": np.where(rng.random(shape) * shape[-1] < 60, 0.0, -20.0),  # cuts and draws among the same ones
    }[kind]
    return logits.astype(np.float32)


def state_of(settings: list[dict], vocab: int, seed: int) -> DecodeState:
    """Rows in the middle of an answer; the last of several is done."""
    rng, batch = np.random.default_rng(seed), len(settings)
    nothing = KVCache(keys=(), values=(), length=jnp.zeros((batch,), jnp.int32))
    done = np.arange(batch) == (batch - 1 if batch > 1 else -1)
    return DecodeState(
        cache=nothing,
        token=jnp.asarray(rng.integers(vocab, size=batch), jnp.int32),
        generated=jnp.asarray(rng.integers(100, size=batch), jnp.int32),
        limit=jnp.asarray(rng.integers(50, 200, size=batch), jnp.int32),
        floor=jnp.zeros((batch,), jnp.int32),
        done=jnp.asarray(done),
        healthy=jnp.ones((batch,), bool),
        keys=jnp.asarray(rng.integers(2**32, size=(batch, 2), dtype=np.uint32)),
        stop_ids=jnp.asarray(rng.integers(vocab, size=(batch, 3)), jnp.int32),
        sampling=rows_of(settings, vocab),
        counts=TokenCounts(
            prompt=jnp.asarray(rng.random((batch, vocab)) < 0.1),
            answer=jnp.asarray(
                rng.integers(0, 4, size=(batch, vocab)) * (rng.random((batch, vocab)) < 0.1), jnp.int32
            ),
        ),
    )


def shares(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Of one row: the candidates in order, and where each one's share of [0, 1) ends, in float64."""
    scaled = (logits - logits.max()) / np.float32(sampling.temperature)
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order].astype(np.float64))
    kept = np.arange(len(order)) < (sampling.top_k or len(order))
    total = weights[kept].sum()
    before = np.cumsum(weights) - weights
    kept &= (before < np.float64(sampling.top_p) * total) | (sampling.top_p >= 1)
    kept &= weights >= sampling.min_p
    kept[0] = True
    ends = np.cumsum(weights * kept)
    return order[kept], (ends / ends[-1])[kept]


def check(state: DecodeState, logits: np.ndarray, new: DecodeState) -> int:
    """Everything as the plain code has it.

    Returns how many draws fell so near to a border between shares, or a share's end so near to `top_p`, that
    the plain code's rounding decided.
    """
    twin = take_plain(state, jnp.asarray(logits))
    uniform = np.asarray(decode_state._uniform(state.keys, state.generated), np.float64)
    changed = np.asarray(
        penalize(jnp.asarray(logits) + state.sampling.logit_bias, state.sampling, state.counts)
    )
    near = 0
    for row, (ours, theirs) in enumerate(zip(np.asarray(new.token), np.asarray(twin.token), strict=True)):
        sampling = jax.tree.map(lambda leaf, row=row: leaf[row], state.sampling)
        if ours != theirs:
            ids, ends = shares(changed[row], sampling)
            place = ids.tolist().index(ours)
            start = ends[place - 1] if place else 0.0
            assert start - NEAR <= uniform[row] <= ends[place] + NEAR, (
                row,
                sampling.temperature,
                ours,
                theirs,
            )
            near += 1
    same = np.asarray(new.token) == np.asarray(twin.token)
    for name in ("generated", "done", "healthy"):
        np.testing.assert_array_equal(
            np.asarray(getattr(new, name))[same], np.asarray(getattr(twin, name))[same]
        )
    counted = jnp.where(state.done[:, None], 0, jax.nn.one_hot(new.token, logits.shape[1], dtype=jnp.int32))
    np.testing.assert_array_equal(new.counts.answer, state.counts.answer + counted)
    return near


@jax.jit
def take_plain(state, logits):
    return decode_state.take_token(state, logits, Way(XLA))


@pytest.fixture
def no_gpu(monkeypatch):
    if emulation.COMPILER is None:
        pytest.skip("no g++")
    monkeypatch.setattr(launch, "refusal", lambda: None)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 132)
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)


class Emulated:
    """`take_token` by the emulated kernel."""

    def __init__(self, monkeypatch, directory, cluster: int, threads: int = 32, apart: int = 0):
        self.monkeypatch, self.directory, self.cut = monkeypatch, directory, (cluster, threads)
        self.apart = apart
        self.kernels: dict = {}

    def __call__(self, state: DecodeState, logits: np.ndarray) -> DecodeState:
        shape = functools.partial(sample.Shape, APART=self.apart)
        self.monkeypatch.setattr(sample, "make_shape", lambda B, V, stops: shape(V, *self.cut, stops))
        self.monkeypatch.setattr(launch, "call", self.call)
        return decode_state._take_by_kernel(state, jnp.asarray(logits))

    def call(self, source, name, operands, results, *, grid, threads, shared, aliases):
        kernel = self.kernels.get(source)
        if kernel is None:
            count = len(operands) + len(results)
            kernel = emulation.Emulated(
                self.directory, source, name, count, grid=grid, threads=threads, shared=shared
            )
            self.kernels[source] = kernel
        arrays = [np.array(a) for a in operands]  # copies, changed in place
        others = [np.full(result.shape, np.nan, result.dtype) for result in results[len(aliases) :]]
        kernel([*arrays, *(arrays[operand] for operand in aliases), *others])
        return [jnp.asarray(array) for array in (*(arrays[operand] for operand in aliases), *others)]


KINDS = ("peaked", "spread", "flat", "rounded", "equal", "few")
ALL = [*SETTINGS, dict(temperature=1.0)]  # the last row is done


@pytest.mark.parametrize(("vocab", "cluster", "apart"), [(500, 1, 0), (2500, 8, 0), (499, 1, 1)])
def test_sample_emulated(no_gpu, monkeypatch, tmp_path, vocab, cluster, apart):
    take = Emulated(monkeypatch, tmp_path, cluster, apart=apart)
    for seed, kind in enumerate(KINDS):
        state = state_of(ALL, vocab, seed)
        logits = logits_of(kind, np.random.default_rng(seed), (len(ALL), vocab))
        assert check(state, logits, take(state, logits)) <= 2


def strange_logits(vocab: int) -> np.ndarray:
    logits = np.random.default_rng(0).standard_normal((4, vocab)).astype(np.float32)
    logits[0, 5], logits[1, 7], logits[2, 3], logits[3] = np.nan, np.inf, -np.inf, np.nan
    return logits


def check_strange(state: DecodeState, new: DecodeState) -> None:
    assert np.asarray(new.done).all()
    assert not np.asarray(new.healthy).any()
    assert ((np.asarray(new.token) >= 0) & (np.asarray(new.token) < state.counts.answer.shape[1])).all()


def strange_state(vocab: int) -> DecodeState:
    state = state_of([dict(temperature=1.0, top_p=0.5)] * 4, vocab, 0)
    return dataclasses.replace(state, done=jnp.zeros((4,), bool), limit=jnp.full((4,), 1000, jnp.int32))


def test_logits_that_are_not_finite_emulated(no_gpu, monkeypatch, tmp_path):
    state = strange_state(50)
    check_strange(state, Emulated(monkeypatch, tmp_path, 2)(state, strange_logits(50)))


def test_a_shape_fits_the_shared_memory(no_gpu):
    for batch in (1, 2, 16, 17, 40, 128, 1000):
        for vocab in (1, 500, 32000, 128256, 262144):
            shape = sample.make_shape(batch, vocab, 32)
            assert shape.shared <= 232448
            assert shape.CLUSTER <= 8
    assert sample.make_shape(1, 32000, 1).CLUSTER == 8
    assert sample.sampling_refusal(32000) is None
    assert "too large" in sample.sampling_refusal(1_000_000)


@pytest.mark.parametrize(
    ("room", "vocab", "apart"), [(166912, 8000, 0), (166912, 32000, 1), (101376, 262144, 1)]
)
def test_without_clusters_a_block_may_have_its_logits_apart(no_gpu, monkeypatch, room, vocab, apart):
    monkeypatch.setattr(launch, "capability", lambda: (8, 0))
    monkeypatch.setattr(launch, "shared_memory", lambda: room)
    shape = sample.make_shape(1, vocab, 32)
    assert (1, apart) == (shape.CLUSTER, shape.APART)
    assert shape.shared <= room
    assert sample.sampling_refusal(vocab) is None


@jax.jit
def take_on_gpu(state, logits):
    return decode_state.take_token(state, logits, Way(GPU))


def row_of(state: DecodeState, row: int) -> DecodeState:
    return jax.tree.map(lambda leaf: leaf[row : row + 1], state)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("vocab", "times"), [(7, 1), (499, 1), (32000, 1), (32000, 9), (128256, 3), (262144, 1)]
)
def test_sample(vocab, times):
    """As the plain code on the GPU, the same on each run, and in a batch as alone, bit for bit."""
    assert kernels.chooses_tokens(vocab, GPU)
    for seed, kind in enumerate(KINDS):
        state = state_of(ALL * times, vocab, seed)
        logits = logits_of(kind, np.random.default_rng(seed), (len(ALL) * times, vocab))
        new = take_on_gpu(state, logits)
        assert check(state, logits, new) <= 2 * times
        for other in (take_on_gpu(state, logits), take_on_gpu(state, logits)):
            jax.tree.map(np.testing.assert_array_equal, other, new)
        for row in range(0, len(ALL), 3):
            alone = take_on_gpu(row_of(state, row), logits[row : row + 1])
            jax.tree.map(np.testing.assert_array_equal, alone, row_of(new, row))


def masked(vocab: int, seed: int):
    """Logits in which a mask leaves every 37th token, and which these are, bool `[B, V]`."""
    rng, rows = np.random.default_rng(seed), len(ALL)
    allowed = np.zeros((rows, vocab), bool)
    allowed[:, seed % 5 :: 37] = True
    bits = np.packbits(np.pad(allowed, ((0, 0), (0, -vocab % 32))), axis=1, bitorder="little")
    logits = rng.standard_normal((rows, vocab)).astype(np.float32) * 9
    return np.asarray(decode_state._barred(jnp.asarray(logits), jnp.asarray(bits.view(np.int32)))), allowed


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_a_mask_bars_is_chosen(no_gpu, monkeypatch, tmp_path, seed):
    """Emulated, whatever the settings; and the plain code takes the same token."""
    take = Emulated(monkeypatch, tmp_path, 2)
    state = state_of(ALL, 499, seed)
    logits, allowed = masked(499, seed)
    new, rows = take(state, logits), np.arange(len(ALL))
    chosen = allowed[rows, np.asarray(new.token)] | np.asarray(state.done)
    assert chosen.all()
    assert np.asarray(new.healthy).all()


@pytest.mark.gpu
def test_nothing_that_a_mask_bars_is_chosen_on_a_gpu():
    for seed in range(3):
        state = state_of(ALL, 32000, seed)
        logits, allowed = masked(32000, seed)
        new, rows = take_on_gpu(state, logits), np.arange(len(ALL))
        assert (allowed[rows, np.asarray(new.token)] | np.asarray(state.done)).all()


@pytest.mark.gpu
def test_logits_that_are_not_finite():
    state = strange_state(32000)
    check_strange(state, take_on_gpu(state, strange_logits(32000)))


@pytest.mark.gpu
def test_draws_follow_the_distribution():
    """A chi-squared test of 20,000 draws over twelve tokens; 40 is passed by chance once in 30,000 times."""
    draws, vocab = 20_000, 12
    state = state_of([dict(temperature=0.9)], vocab, 1)
    state = dataclasses.replace(
        state, limit=jnp.full((1,), draws + 1000, jnp.int32), done=jnp.zeros((1,), bool)
    )
    state = dataclasses.replace(state, stop_ids=jnp.array([[decode_state.NO_TOKEN]], jnp.int32))
    logits = np.random.default_rng(1).standard_normal((1, vocab)).astype(np.float32)

    @jax.jit
    def run(state):
        step = lambda state, _: ((new := take_on_gpu(state, logits)), new.token[0])  # noqa: E731
        return jax.lax.scan(step, state, length=draws)[1]

    counted = np.bincount(np.asarray(run(state)), minlength=vocab)
    expected = np.asarray(jax.nn.softmax(logits[0] / 0.9)) * draws
    assert ((counted - expected) ** 2 / expected).sum() < 40
