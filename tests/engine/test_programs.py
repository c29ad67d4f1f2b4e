"""The engine's parts by themselves: donation, what each number of a call means, borders of every size."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels
from jllama.engine import leading, slot_programs
from jllama.engine.beginnings import HEAD, Beginnings, common_prefix
from jllama.engine.decoder import read_prompt
from jllama.engine.rows import Piece, chunk_size
from jllama.engine.scheduler import WORTH_COPYING, Job, Scheduler, check_fits
from jllama.engine.slots import Slots
from jllama.engine.state import NO_TOKEN
from jllama.errors import JllamaError
from jllama.kernels import cpu
from jllama.kernels.target import CUBLAS, ONE_BY_ONE, Target, of_platform, target_of
from jllama.layers.cache import KVCache
from tests.support.decoding import CPU, GPU, empty_slots, row_of, started

MAX_LEN = 32


def leaves(cache):
    return [*cache.keys, *cache.values]


def filled(config, slots=3, max_len=MAX_LEN):
    """A state whose cache tells by its values where each of them lies."""
    cache = KVCache.empty(config, batch=slots, max_len=max_len, dtype="float32")
    state = slot_programs.empty(cache, config.vocab_size, 4)
    count = iter(range(1000))

    def numbered(leaf):
        return jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape) + 1 + leaf.size * next(count)

    cache = state.cache
    keys, values = (tuple(map(numbered, arrays)) for arrays in (cache.keys, cache.values))
    lengths = jnp.arange(1, slots + 1, dtype=jnp.int32)
    return dataclasses.replace(
        state, cache=dataclasses.replace(cache, keys=keys, values=values, length=lengths)
    )


def test_slots_that_hold_nothing(tiny_config):
    cache = KVCache.empty(tiny_config, batch=3, max_len=MAX_LEN, dtype="bfloat16")
    state = slot_programs.empty(cache, tiny_config.vocab_size, 4)
    assert state.cache.keys[0].shape == (3, 2, MAX_LEN, 8)
    assert state.cache.keys[0].dtype == jnp.bfloat16
    assert state.cache.length.tolist() == [0, 0, 0]
    assert state.done.tolist() == state.healthy.tolist() == [True] * 3
    assert (state.stop_ids.shape, state.stop_ids.min(), state.stop_ids.max()) == ((3, 4), NO_TOKEN, NO_TOKEN)


WAYS = pytest.mark.parametrize(
    "target", [Target("cpu", kernels=False), Target("cpu")], ids=["plain", "kernels"]
)


@WAYS
def test_a_slot_is_wiped_and_no_other(tiny_config, target):
    cache = filled(tiny_config).cache
    before = [np.array(leaf) for leaf in leaves(cache)]
    after = slot_programs.clear(cache, np.int32(1), target=target)
    assert all(leaf.is_deleted() for leaf in leaves(cache))
    for old, new in zip(before, map(np.asarray, leaves(after)), strict=True):
        assert (new[1] == 0).all()
        assert (new[[0, 2]] == old[[0, 2]]).all()
    assert after.length.tolist() == [1, 0, 3]


@WAYS
def test_a_prefix_is_copied_and_nothing_else(tiny_config, target):
    cache = filled(tiny_config).cache
    before = [np.array(leaf) for leaf in leaves(cache)]
    after = slot_programs.copy_prefix(cache, np.array([2, 0, 5], np.int32), size=8, target=target)
    assert all(leaf.is_deleted() for leaf in leaves(cache))
    for old, new in zip(before, map(np.asarray, leaves(after)), strict=True):
        assert (new[0, :, :8] == old[2, :, :8]).all()
        assert (new[0, :, 8:] == old[0, :, 8:]).all()
        assert (new[1:] == old[1:]).all()
    assert after.length.tolist() == [5, 2, 3]


@pytest.mark.skipif(cpu.refusal() is not None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("program", "numbers", "more"), [("clear", (), {}), ("copy_prefix", (3,), dict(size=8))]
)
def test_a_cache_of_bfloat16_is_not_turned_to_float32_and_back(tiny_config, program, numbers, more):
    """Of 32 slots of SmolLM2's, 377 MB, that took half a second."""
    cache = KVCache.empty(tiny_config, batch=3, max_len=MAX_LEN, dtype="bfloat16")
    cache = dataclasses.replace(cache, length=jnp.zeros((3,), jnp.int32))
    lowered = getattr(slot_programs, program).lower(
        cache, np.zeros(numbers, np.int32), target=Target("cpu"), **more
    )
    text = lowered.compile().as_text()
    assert "jllama_copy_row" in text
    assert not [line for line in text.splitlines() if "copy(" in line or "convert(" in line]


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (17, 20), (20, 20)])
def test_as_much_is_copied_as_a_power_of_two_holds(tiny_config, tiny_params, monkeypatch, count, size):
    slots = Slots.empty(tiny_config, tiny_params, slots=2, max_len=20, dtype="float32")
    monkeypatch.setattr(dataclasses, "replace", lambda state, **changes: state)
    asked = []

    def copied(cache, numbers, *, size, target):
        asked.append((numbers.tolist(), size, target))
        return cache

    monkeypatch.setattr(slot_programs, "copy_prefix", copied)
    slots.copy_prefix(1, 0, count)
    assert asked == [([1, 0, count], size, slots.target)]


@pytest.mark.parametrize(
    ("slots", "buckets"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])],
)
def test_programs_double_up_to_all_slots(tiny_config, tiny_params, slots, buckets):
    assert Slots.empty(tiny_config, tiny_params, slots=slots, max_len=8, dtype="float32").buckets == buckets


def test_a_burst_is_asked_for_with_the_rows_that_fill_it(tiny_config, tiny_params, monkeypatch):
    slots = Slots.empty(tiny_config, tiny_params, slots=6, max_len=8, dtype="float32")
    asked = []

    def runner(how, batched):
        def run(config, params, state, numbers):
            asked.append((numbers.tolist(), batched, how.greedy, how.scores))
            return state, SimpleNamespace(underway=tuple)

        return run

    monkeypatch.setattr(slot_programs, "runner", runner)
    slots._needs[1, 2] = slots._needs[0, 5] = True
    for target in (CPU, GPU):
        slots.target = target
        for chosen, steps in ([4], 3), ([5, 1, 0], 16), ([5, 4, 3, 2, 1], 1), ([2], 2):
            slots.run(chosen, steps)
    on_cpu, on_gpu = asked[:4], asked[4:]
    assert [numbers for numbers, *_ in on_cpu] == [numbers for numbers, *_ in on_gpu]
    assert [numbers for numbers, *_ in on_cpu] == [
        [4, 1, 3],
        [5, 1, 0, 2, 3, 16],
        [5, 4, 3, 2, 1, 0, 5, 1],
        [2, 1, 2],
    ]
    assert [batched for _, batched, _, _ in on_cpu] == [False, True, True, False]
    assert [greedy for _, _, greedy, _ in on_cpu] == [False] * 4
    assert [greedy for _, _, greedy, _ in on_gpu] == [True, False, False, False]
    assert [scores for *_, scores in on_cpu] == [False, False, True, True]


def test_what_a_program_of_beginnings_is_given(tiny_config, tiny_params, monkeypatch):
    """As much room as the longest of the prompts needs; rows that are nobody's are of no slot."""
    slots = Slots.empty(tiny_config, tiny_params, slots=3, max_len=900, dtype="float32", stops=4)
    given = []

    def begin(state, logits, *arrays, how):
        given.append((*arrays, how))
        return state, SimpleNamespace(underway=tuple)

    monkeypatch.setattr(slot_programs, "begin", begin)
    short = row_of(tiny_config, [5], key=(7, 8), limit=9, stop_ids=[1])
    long = row_of(tiny_config, [*range(60)] * 10, key=(1, 2), limit=4, floor=3, stop_ids=[2, 3, 4])
    slots.begin_together([(2, short, 1), (0, long, 0)], np.zeros((4, 61), np.float32))
    ((numbers, keys, stops, prompts, sampling, masks, how),) = given
    assert numbers.tolist() == [[2, 1, 1, 9, 0], [0, 0, 600, 4, 3], [5, 0, 0, 0, 0], [6, 0, 0, 0, 0]]
    assert keys.tolist() == [[7, 8], [1, 2], [0, 0], [0, 0]]
    none = [NO_TOKEN] * 4
    assert stops.tolist() == [[1, *none[1:]], [2, 3, 4, NO_TOKEN], none, none]
    assert prompts.shape == (4, 900)
    assert [row[row != NO_TOKEN].tolist() for row in prompts] == [[5], [*range(60)] * 10, [], []]
    assert (sampling.temperature.shape, masks, how.floors, how.scores) == ((4,), None, True, True)
    assert slots._needs.tolist() == [[False] * 3, [False] * 3, [True, False, False]]


@pytest.mark.parametrize("greedy", [False, True])
def test_steps_write_what_they_change_and_nothing_else(tiny_config, greedy):
    state = filled(tiny_config)
    rows = jnp.array([2, 0], jnp.int32)
    some = slot_programs.some_rows(state, rows)
    names = ("token", "generated", "done", "healthy", "limit", "floor")
    changed = {name: ~leaf if (leaf := getattr(some, name)).dtype == bool else leaf + 5 for name in names}
    counts = dataclasses.replace(some.counts, answer=some.counts.answer + 1)
    new = slot_programs._with_steps(state, rows, dataclasses.replace(some, **changed, counts=counts), greedy)
    for name in names[:4]:
        old, now = (np.asarray(getattr(each, name)) for each in (state, new))
        assert (now != old).tolist() == [True, False, True], name
    assert new.limit is state.limit
    assert new.floor is state.floor
    once = 0 if greedy else tiny_config.vocab_size  # each token of a row that ran
    assert new.counts.answer.sum(axis=1).tolist() == [once, 0, once]
    assert new.cache.rows is None


def test_new_slots_are_told_under_a_name_of_their_own(tiny_config, tiny_params, monkeypatch):
    told, room = [], dict(max_len=8, dtype="float32")
    monkeypatch.setattr(leading, "tell", lambda *given: told.append(given))
    made = [Slots.empty(tiny_config, tiny_params, slots=count, stops=3, **room) for count in (2, 1)]
    names = [each.name for each in made]
    assert told == [(names[0], leading.NEW, 2, 8, 3), (names[1], leading.NEW, 1, 8, 3)]
    assert names[0] != names[1] != -1


def test_programs_of_slots_take_their_state(tiny_config, tiny_params):
    slots = Slots.empty(tiny_config, tiny_params, slots=2, max_len=16, dtype="float32", stops=4)
    row = row_of(tiny_config, [3, 1], key=(0, 1), limit=9, stop_ids=[7])

    def taken(act, *given):
        before = slots.state
        made = act(*given)
        assert all(leaf.is_deleted() for leaf in leaves(before.cache))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(slots.state))
        return made

    logits = taken(slots.read_together, [Piece(0, row.prompt, 0, 2)], slots.next_chunk(2))
    taken(slots.begin_together, [(0, row, 0)], logits)
    taken(slots.run, [0], 2)
    taken(slots.copy_prefix, 0, 1, 2)
    taken(slots.clear, 0)
    assert slots.state.stop_ids[0].tolist() == [7, NO_TOKEN, NO_TOKEN, NO_TOKEN]
    assert slots.state.cache.length.tolist() == [0, 2]


def test_what_a_beginning_leaves_in_its_slot_and_nowhere_else(tiny_config, tiny_params):
    """Of eight rows of logits two are somebody's, in an order of their own."""
    V = tiny_config.vocab_size
    slots = Slots.empty(tiny_config, tiny_params, slots=4, max_len=16, dtype="float32", stops=3)
    logits = np.zeros((8, V), np.float32)
    logits[np.arange(8), np.arange(8) + 10] = 5.0
    last = row_of(tiny_config, [4], key=(9, 8), limit=1, repetition_penalty=1.5)
    row = row_of(tiny_config, [3, 1, 3], key=(1, 2), limit=9, floor=2, stop_ids=[7, 15])
    first = slots.begin_together([(2, row, 5), (0, last, 1)], logits)
    state = jax.tree.map(np.asarray, slots.state)
    assert np.asarray(first.tokens)[:2].tolist() == [[0], [11]]  # 15 would end the first one below its floor
    assert np.asarray(first.done)[:2].tolist() == [False, True]
    assert state.token.tolist() == [11, 0, 0, 0]
    assert state.generated.tolist() == [1, 0, 1, 0]
    assert (state.limit.tolist(), state.floor.tolist()) == ([1, 0, 9, 0], [0, 0, 2, 0])
    assert (state.done.tolist(), state.healthy.tolist()) == ([True, True, False, True], [True] * 4)
    assert state.keys.tolist() == [[9, 8], [0, 0], [1, 2], [0, 0]]
    none = [NO_TOKEN] * 3
    assert state.stop_ids.tolist() == [none, none, [7, 15, NO_TOKEN], none]
    assert state.sampling.repetition_penalty.tolist() == [1.5, 1.0, 1.0, 1.0]
    assert [np.flatnonzero(seen).tolist() for seen in state.counts.prompt] == [[4], [], [1, 3], []]
    assert [np.flatnonzero(count).tolist() for count in state.counts.answer] == [[11], [], [0], []]
    assert state.cache.length.tolist() == [0] * 4
    assert slots._needs.T.tolist() == [[True, False, False], [False] * 3, [False, False, True], [False] * 3]
    slots.begin_together([(2, row_of(tiny_config, [5], limit=3), 0)], logits)
    assert slots._needs.T.tolist() == [[True, False, False], *[[False] * 3] * 3]
    assert (slots.state.floor.tolist(), slots.state.limit.tolist()) == ([0] * 4, [1, 0, 3, 0])


def test_beginnings_that_are_nobodys_have_places_of_their_own(tiny_config, tiny_params, monkeypatch):
    """Behind all slots, and no two the same: what writes there is told that none are."""
    slots, seen = Slots.empty(tiny_config, tiny_params, slots=2, max_len=16, dtype="float32", stops=3), []

    def begin(state, logits, numbers, *_, how):
        seen.append(numbers[:, 0].tolist())
        return state, SimpleNamespace(underway=lambda: None)

    monkeypatch.setattr(slot_programs, "begin", begin)
    slots.begin_together([(1, row_of(tiny_config, [5], limit=3), 0)], np.zeros((4, 61), np.float32))
    assert seen == [[1, 3, 4, 5]]


def test_the_longest_prompt_of_those_that_begin_together_has_room(tiny_config, tiny_params):
    slots = Slots.empty(tiny_config, tiny_params, slots=2, max_len=700, dtype="float32", stops=3)
    prompts = [[5], [*range(40)] * 15]
    logits = np.zeros((2, tiny_config.vocab_size), np.float32)
    slots.begin_together([(at, row_of(tiny_config, ids), at) for at, ids in enumerate(prompts)], logits)
    seen = [np.flatnonzero(row).tolist() for row in np.asarray(slots.state.counts.prompt)]
    assert seen == [[5], [*range(40)]]


@pytest.mark.parametrize(("count", "width"), [(0, 4), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16)])
def test_a_single_text_brings_as_many_ends_as_it_has(tiny_config, tiny_params, count, width):
    slots = empty_slots(tiny_config, tiny_params)
    started(slots, [[3, 1]], stop_ids=range(count))
    assert slots.state.stop_ids.tolist() == [[*range(count), *[NO_TOKEN] * (width - count)]]


@pytest.mark.parametrize("count", [1, 2])
def test_a_single_text_gathers_nothing(tiny_config, tiny_params, monkeypatch, count):
    """Its kernels and plain XLA see a cache that is its own; several rows are found by their slots."""
    forward, seen = kernels.forward, []

    def noted(config, params, tokens, cache, **options):
        seen.append((tokens.shape[1] > 1, cache.rows is None))
        return forward(config, params, tokens, cache, **options)

    monkeypatch.setattr(kernels, "forward", noted)
    slots = empty_slots(tiny_config, tiny_params, count, max_len=23)  # of no other test: traced anew
    started(slots, [[3, 1]] * count)
    slots.run([0], 2)
    assert set(seen) == {(True, count == 1), (False, count == 1)}


def test_a_prompt_is_counted_in_arrays_of_few_sizes(tiny_config, tiny_params):
    """Of a single text in one, which has room for all that it may become."""
    one, two = (empty_slots(tiny_config, tiny_params, count, max_len=5000) for count in (1, 2))
    counts = (0, 1, 512, 513, 4096, 4097, 4999)
    assert [one.prompt_size(count) for count in counts] == [5000] * 7
    assert [two.prompt_size(count) for count in counts] == [512, 512, 512, 4096, 4096, 5000, 5000]


@pytest.mark.parametrize(
    ("count", "sizes", "chunks"),
    [
        (1, (4, 8), [4]),
        (2, (4, 8), [4]),
        (4, (4, 8), [4]),
        (5, (4, 8), [8]),
        (8, (4, 8), [8]),
        (9, (4, 8), [8, 4]),
        (3, (8, 32), [8]),
        (17, (8, 32), [32]),
        (15, (8, 32), [8, 8]),
        (16, (8, 32), [32]),
        (70, (8, 32), [32, 32, 8]),
    ],
)
def test_a_prompt_is_cut(count, sizes, chunks):
    cut = []
    while sum(cut) < count:
        cut.append(chunk_size(count - sum(cut), sizes))
    assert cut == chunks


class Bar:
    """A progress bar that notes what it is told."""

    made = ()

    def __init__(self, total):
        Bar.made = (*Bar.made, self)
        self.total, self.steps = total, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.steps.append("end")

    def advance(self, count):
        self.steps.append(count)


def test_a_long_prompts_progress_is_told_chunk_by_chunk(tiny_config, tiny_params, monkeypatch):
    monkeypatch.setattr("jllama.kernels.target.OTHER_CHUNK_SIZES", (4, 8))
    Bar.made = ()
    # What is counted is done: the device is waited for.
    monkeypatch.setattr(jax, "block_until_ready", lambda logits: Bar.made[-1].steps.append("done"))
    slots = empty_slots(tiny_config, tiny_params)
    prompt = np.ones((19,), np.int32)
    read_prompt(slots, prompt[:8], progress=Bar)
    assert Bar.made == ()
    read_prompt(slots, prompt, 8, progress=Bar)
    (bar,) = Bar.made
    assert (bar.total, bar.steps) == (11, ["done", 8, "done", 3, "end"])
    assert slots.state.cache.length.tolist() == [19]


# The scheduler.


def job(*prompt):
    return Job(prompt=np.array(prompt, np.int32))


@pytest.mark.parametrize(
    ("held", "wanted", "count"),
    [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 2], 2), ([1, 2], [1, 3], 1), ([2], [1], 0)],
)
def test_how_many_first_tokens_are_the_same(held, wanted, count):
    made = common_prefix(np.array(held, np.int32), np.array(wanted, np.int32))
    assert (made, type(made)) == (count, int)


def test_what_texts_in_slots_have_in_common():
    """Texts that differ early, late, behind the tokens that are compared at once, and not at all."""
    lengths = (0, 1, HEAD - 1, HEAD, HEAD + 1, 2 * HEAD)
    texts = [np.arange(count, dtype=np.int32) for count in lengths]
    for place in (0, 1, HEAD - 1, HEAD, 2 * HEAD - 1):
        texts.append(np.where(np.arange(2 * HEAD) == place, 500, np.arange(2 * HEAD)).astype(np.int32))
    held = Beginnings(len(texts))
    assert held.shared(texts[-1], range(len(texts))) == [0] * len(texts)
    for slot in range(len(texts)):
        held[slot] = texts[-1]  # what lay there before is forgotten
    for slot, text in enumerate(texts):
        held[slot] = text
    some = [3, 0, len(texts) - 1]
    for wanted in texts:
        counts = [common_prefix(text, wanted) for text in texts]
        assert held.shared(wanted, range(len(texts))) == counts
        assert held.shared(wanted, some) == [counts[slot] for slot in some]
        assert held.shared(wanted, []) == []
        assert held[0] is texts[0]


def test_a_slot_has_room_for_a_prompt_and_a_token():
    check_fits(7, 8, "go")
    with pytest.raises(JllamaError, match=r"the prompt has 8 tokens and max_seq_len is 8.*go"):
        check_fits(8, 8, "go")
    with pytest.raises(JllamaError, match="the prompt is empty"):
        check_fits(0, 8, "go")


@pytest.mark.parametrize(("shared", "count"), [(WORTH_COPYING - 1, 0), (WORTH_COPYING, WORTH_COPYING)])
def test_from_which_length_on_a_prefix_is_copied(shared, count):
    scheduler = Scheduler(2, 128)
    first, second = job(*range(shared), 500), job(*range(shared), 501)
    scheduler.submit([first])
    scheduler.admit()
    scheduler.read(first, len(first.prompt))
    scheduler.submit([second])
    (admission,) = scheduler.admit()
    assert (admission.count, admission.source) == (count, first.slot if count else second.slot)


@pytest.mark.parametrize(("shared", "waits"), [(WORTH_COPYING - 1, False), (WORTH_COPYING, True)])
def test_from_which_length_on_a_prompt_waits_for_one_that_is_being_read(shared, waits):
    scheduler = Scheduler(2, 128)
    scheduler.submit([job(*range(shared), 500), job(*range(shared), 501)])
    assert len(scheduler.admit()) == (1 if waits else 2)


def test_of_equal_sources_a_free_slot_is_taken():
    scheduler = Scheduler(2, 128)
    first, second = job(1, 2, 3), job(1, 2, 4)
    for each in (first, second):
        scheduler.submit([each])
        scheduler.admit()
        scheduler.read(each, 3)
    scheduler.release(second, [])
    third = job(1, 2, 5)
    scheduler.submit([third])
    (admission,) = scheduler.admit()
    assert (admission.source, admission.count, third.slot) == (1, 2, 1)


def test_what_was_not_sound_is_nobodys_beginning():
    scheduler = Scheduler(1, 128)
    first, second = job(1, 2, 3), job(1, 2, 3, 4)
    scheduler.submit([first])
    scheduler.admit()
    scheduler.read(first, 3)
    scheduler.release(first, [5, 6], sound=False)
    scheduler.submit([second])
    assert scheduler.admit()[0].count == 0


def test_a_prompt_that_was_cut_short_holds_what_was_read():
    scheduler = Scheduler(1, 128)
    first, second = job(*range(9)), job(*range(9))
    scheduler.submit([first])
    scheduler.admit()
    scheduler.read(first, 4)
    assert first.reads
    scheduler.release(first, [])
    scheduler.submit([second])
    assert scheduler.admit()[0].count == 4
    scheduler.read(second, 5)
    assert not second.reads


def test_who_has_a_slot_for_longest_reads_first():
    scheduler = Scheduler(3, 128, share=False)
    early, late = job(1, 1), job(2, 2)
    filler = job(9)
    scheduler.submit([filler])
    scheduler.admit()
    scheduler.submit([early])
    scheduler.admit()
    scheduler.release(filler, [])
    scheduler.submit([late])
    scheduler.admit()
    assert scheduler.next_reader() is filler or scheduler.next_reader() is early
    assert late.slot != early.slot
    scheduler.read(early, 2)
    assert scheduler.next_reader() is late


# Where a program runs.


def test_a_platform_decides_how_programs_run(monkeypatch):
    monkeypatch.delenv("JLLAMA_KERNELS", raising=False)
    cpu, gpu = of_platform("cpu"), of_platform("cuda")
    assert (cpu, gpu) == (Target("cpu", True), Target("gpu", True))
    assert target_of({"a": jnp.zeros(1)}) == cpu
    assert (cpu.on_gpu, gpu.on_gpu) == (False, True)
    assert (cpu.chunk_options(64), cpu.step_options(2)) == (None, None)
    assert (gpu.step_options(1), gpu.step_options(2)) == (None, CUBLAS)
    assert (gpu.chunk_options(512), gpu.chunk_options(1024)) == (CUBLAS, ONE_BY_ONE)
    assert list(gpu.chunk_sizes) == sorted(gpu.chunk_sizes) == [64, 128, 256, 512, 1024, 2048]
    assert cpu.chunk_sizes == Target("metal").chunk_sizes == (32, 128, 512)
    for said, runs in (("0", False), ("1", True), ("", True)):
        monkeypatch.setenv("JLLAMA_KERNELS", said)
        assert of_platform("cpu").kernels is runs
    monkeypatch.setenv("JLLAMA_KERNELS", "off")
    with pytest.raises(JllamaError, match=r"JLLAMA_KERNELS='off' is neither 0 .* nor 1"):
        of_platform("cpu")
