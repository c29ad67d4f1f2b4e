"""The scheduler alone: who gets which slot, what is shared, and that nothing is lost whatever happens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jllama.engine.beginnings import HEAD, Beginnings
from jllama.engine.scheduler import WORTH_COPYING, Job, Scheduler
from jllama.errors import JllamaError, PromptTooLongError

MAX_LEN = 128


def job(*prompt):
    return Job(prompt=np.array(prompt, np.int32))


def long(first, count=WORTH_COPYING + 8):
    """A prompt whose first tokens are 0, 1, 2, … and whose last one is its own."""
    return job(*range(count), first)


def read_all(scheduler):
    """Until no prompt is left to be read, eight tokens at a time."""
    scheduler.admit()
    while (reader := scheduler.next_reader()) is not None:
        scheduler.read(reader, min(8, len(reader.prompt) - reader.done))
        scheduler.admit()


def test_patient_rows_wait_until_all_prompts_in_slots_are_read():
    scheduler = Scheduler(2, MAX_LEN, patient=True)
    jobs = [job(n, n, n) for n in range(1, 4)]
    scheduler.submit(jobs)
    scheduler.admit()
    scheduler.read(jobs[0], 3)
    assert scheduler.running() == ()
    scheduler.read(jobs[1], 3)
    assert scheduler.running() == (0, 1)  # the third has no slot yet
    scheduler.release(jobs[0], [7])
    scheduler.admit()
    assert scheduler.running() == ()
    assert jobs[2].left == 3
    scheduler.read(jobs[2], 2)
    assert (scheduler.running(), jobs[2].left) == ((), 1)
    scheduler.read(jobs[2], 1)
    assert scheduler.running() == (0, 1)


def test_first_come_first_served():
    scheduler = Scheduler(2, MAX_LEN)
    jobs = [job(n, n, n) for n in range(1, 4)]
    scheduler.submit(jobs)
    assert [admission.job for admission in scheduler.admit()] == jobs[:2]
    assert (scheduler.next_reader(), scheduler.running(), scheduler.hurried) == (jobs[0], (), True)
    scheduler.read(jobs[0], 3)
    assert scheduler.admit() == ()
    assert (scheduler.next_reader(), scheduler.running()) == (jobs[1], (jobs[0].slot,))
    scheduler.release(jobs[0], [7, 8])
    assert [admission.job for admission in scheduler.admit()] == [jobs[2]]


def test_a_burst_is_short_only_while_someone_waits():
    scheduler = Scheduler(1, MAX_LEN)
    first, second = job(1), job(2)
    scheduler.submit([first])
    assert scheduler.hurried is True
    read_all(scheduler)
    assert scheduler.hurried is False
    scheduler.submit([second])
    assert scheduler.hurried is True


def test_short_prompts_overtake_a_long_one_which_gets_every_second_chunk():
    scheduler = Scheduler(3, MAX_LEN, share=False)
    first = job(*range(100))
    scheduler.submit([first])
    order = []
    for number in range(12):
        scheduler.submit([job(200 + number)])
        scheduler.admit()
        reader = scheduler.next_reader()
        order.append(reader is first)
        scheduler.read(reader, min(8, len(reader.prompt) - reader.done))
        for slot in scheduler.running():
            scheduler.release(scheduler.jobs[slot], [])
    assert order == [True, False] * 6


def test_of_slots_that_hold_the_same_a_free_one_needs_no_copy():
    scheduler = Scheduler(2, MAX_LEN)
    first, second, third = long(500), long(500), long(500)
    for each in (first, second):
        scheduler.submit([each])
        read_all(scheduler)
    free = second.slot
    scheduler.release(second, [7])
    scheduler.submit([third])
    (admission,) = scheduler.admit()
    assert first.slot != free
    assert (admission.source, third.slot, admission.count) == (free, free, len(third.prompt) - 1)


def test_what_a_running_slot_holds_is_copied_and_one_token_is_always_read():
    scheduler = Scheduler(2, MAX_LEN)
    first, second = long(500), long(500)
    scheduler.submit([first])
    read_all(scheduler)
    scheduler.submit([second])
    (admission,) = scheduler.admit()
    assert (admission.source, admission.count) == (first.slot, len(first.prompt) - 1)
    assert second.slot != first.slot


def test_who_begins_as_a_prompt_that_is_being_read_waits_for_it():
    scheduler = Scheduler(3, MAX_LEN)
    first, second, third = long(500), long(501), job(7)
    scheduler.submit([first, second, third])
    assert [admission.job for admission in scheduler.admit()] == [first]
    scheduler.read(first, 20)
    assert scheduler.admit() == ()  # nor does the third one overtake
    scheduler.read(first, len(first.prompt) - 20)
    admitted = scheduler.admit()
    assert [admission.job for admission in admitted] == [second, third]
    assert (admitted[0].source, admitted[0].count) == (first.slot, len(first.prompt) - 1)


def test_what_is_waited_for_will_be_held_by_a_slot_that_still_reads():
    """All tokens but the last count, of the longest; what has been read whole is there already."""
    scheduler = Scheduler(4, MAX_LEN)
    first, second, whole = job(*range(40)), job(*range(50), 7), job(*range(60))
    assert scheduler._soon(whole.prompt) == 0
    for each in (whole, first, second):
        scheduler.submit([each])
        each.whole = True  # so it waits for none
        scheduler.admit()
    for each in (whole, first, second):
        each.whole = False
    assert [scheduler._soon(np.arange(count)) for count in (1, 30, 45, 61, 80)] == [0, 29, 44, 60, 60]
    scheduler.read(whole, 60)
    assert [scheduler._soon(np.arange(count)) for count in (30, 45, 61)] == [29, 44, 50]
    alone = Scheduler(2, MAX_LEN, share=False)
    alone.submit([first])
    alone.admit()
    assert alone._soon(first.prompt) == 0


@pytest.mark.parametrize("shared", [WORTH_COPYING - 1, WORTH_COPYING])
def test_only_a_beginning_that_is_worth_copying_is_waited_for(shared):
    scheduler = Scheduler(2, MAX_LEN)
    first, second = long(500, shared), long(501, shared)
    scheduler.submit([first, second])
    waits = shared == WORTH_COPYING
    assert [admission.job for admission in scheduler.admit()] == ([first] if waits else [first, second])


def test_a_free_slot_is_gone_on_with_in_place_however_little_it_shares():
    scheduler = Scheduler(3, MAX_LEN)
    first = job(1, 2, 3, 4)
    scheduler.submit([first])
    read_all(scheduler)
    place = first.slot
    scheduler.release(first, [5, 6, 7])
    second = job(1, 2, 3, 4, 5, 6, 9)
    scheduler.submit([second])
    (admission,) = scheduler.admit()
    assert (admission.source, admission.count, second.slot) == (place, 6, place)


def test_the_last_token_of_an_answer_is_in_no_slot():
    scheduler = Scheduler(1, MAX_LEN)
    first = job(1, 2)
    scheduler.submit([first])
    read_all(scheduler)
    scheduler.release(first, [3, 4])
    second = job(1, 2, 3, 4, 5)
    scheduler.submit([second])
    assert scheduler.admit()[0].count == 3


def test_a_short_prefix_of_a_running_slot_is_read_anew():
    scheduler = Scheduler(2, MAX_LEN)
    first, second = job(1, 2, 3, 4), job(1, 2, 3, 9)
    scheduler.submit([first])
    read_all(scheduler)
    scheduler.submit([second])
    (admission,) = scheduler.admit()
    assert (admission.source, admission.count) == (second.slot, 0)


@pytest.mark.parametrize("shared", [WORTH_COPYING - 1, WORTH_COPYING])
def test_a_prefix_of_a_running_slot_is_copied_from_the_length_that_is_worth_it(shared):
    scheduler = Scheduler(2, MAX_LEN)
    first, second = long(500, shared), long(501, shared)
    scheduler.submit([first])
    read_all(scheduler)
    scheduler.submit([second])
    (admission,) = scheduler.admit()
    copied = shared == WORTH_COPYING
    assert (admission.source, admission.count) == (first.slot, shared) if copied else (second.slot, 0)


@pytest.mark.parametrize(("shared", "places", "copied"), [(4, 2, []), (5, 1, [(0, 5)])])
def test_which_length_is_worth_it_can_be_said(shared, places, copied):
    scheduler = Scheduler(2, MAX_LEN, worth_copying=5)
    first = long(500, shared)
    scheduler.submit([first, long(501, shared)])
    assert len(scheduler.admit()) == places  # who would copy waits for who reads
    scheduler.read(first, len(first.prompt))
    assert [(each.source, each.count) for each in scheduler.admit()] == copied


def test_sharing_can_be_left_out():
    scheduler = Scheduler(2, MAX_LEN, share=False)
    for each in (long(500), long(501)):
        scheduler.submit([each])
        assert scheduler.admit()[0].count == 0


def test_the_slot_that_was_not_used_for_longest_is_taken():
    scheduler = Scheduler(3, MAX_LEN)
    for number in range(3):
        each = job(number)
        scheduler.submit([each])
        read_all(scheduler)
        scheduler.release(each, [])
    last = job(77)
    scheduler.submit([last])
    scheduler.admit()
    assert last.slot == 0


def test_what_does_not_fit_is_refused_and_nothing_is_queued():
    scheduler = Scheduler(1, 8, max_queue=1)
    with pytest.raises(JllamaError, match="the prompt has 8 tokens and max_seq_len is 8"):
        scheduler.submit([job(1), job(*range(8))])
    assert not scheduler.waiting
    with pytest.raises(JllamaError, match="at least one token"):
        scheduler.submit([job()])
    with pytest.raises(JllamaError, match="the queue holds 1; 0 wait already and 3 more came"):
        scheduler.submit([job(1), job(2), job(3)])
    scheduler.submit([job(1), job(2)])
    scheduler.admit()
    with pytest.raises(JllamaError, match="the queue holds 1; 1 wait already and 1 more came"):
        scheduler.submit([job(3)])
    scheduler = Scheduler(2, 8, max_queue=1)
    scheduler.submit([job(1), job(2), job(3)])  # two of them have a slot as good as sure
    with pytest.raises(JllamaError, match="the queue holds 1; 1 wait already"):
        scheduler.submit([job(4)])


@pytest.mark.parametrize(("context", "words"), [(None, "a larger max_seq_len"), (9, "a larger max_seq_len")])
def test_where_a_longer_slot_would_help_the_message_says_so(context, words):
    with pytest.raises(PromptTooLongError, match=words) as error:
        Scheduler(1, 8, context=context).submit([job(*range(8))])
    assert not error.value.final


def test_where_the_model_takes_no_more_nobody_is_sent_to_a_longer_slot():
    with pytest.raises(PromptTooLongError, match="shorten it; the model's context is no longer") as error:
        Scheduler(1, 8, context=8).submit([job(*range(8))])
    assert error.value.final


def test_who_still_waits_can_be_released():
    scheduler = Scheduler(1, MAX_LEN)
    jobs = [job(1), job(2), job(3)]
    scheduler.submit(jobs)
    scheduler.admit()
    scheduler.release(jobs[1], [])
    assert [*scheduler.waiting] == [jobs[2]]


def test_there_is_something_to_do_from_the_first_token_to_the_last():
    scheduler = Scheduler(1, MAX_LEN)
    first, second = job(1), job(2)
    assert not scheduler.busy
    scheduler.submit([first, second])
    assert scheduler.busy
    read_all(scheduler)
    scheduler.release(second, [])
    assert scheduler.busy
    scheduler.release(first, [])
    assert not scheduler.busy


def test_the_slot_that_was_not_used_for_longest_is_taken_whatever_its_number():
    scheduler = Scheduler(3, MAX_LEN)
    jobs = [job(number, number) for number in (1, 2, 3, 4)]
    scheduler.submit(jobs[:3])
    read_all(scheduler)
    for each in (jobs[0], jobs[1], jobs[2]):
        scheduler.release(each, [])
        assert each.slot == -1
    scheduler.submit(jobs[3:])
    scheduler.admit()
    scheduler.submit([last := job(9)])
    scheduler.admit()
    assert (jobs[3].slot, last.slot) == (0, 1)
    assert scheduler.free == [2]
    scheduler.release(jobs[3], [])
    assert scheduler.free == [2, 0]
    scheduler.submit([other := job(8, 8)])
    scheduler.admit()
    assert other.slot == 2


def test_who_has_his_slot_for_longest_is_read_first_whatever_its_number():
    scheduler = Scheduler(2, MAX_LEN, share=False)
    first, second, third = job(1), job(*[2] * 40), job(*[3] * 40)
    scheduler.submit([first, second])
    read_order = scheduler.admit()
    assert [admission.job for admission in read_order] == [first, second]
    scheduler.read(first, 1)
    scheduler.release(first, [])
    scheduler.submit([third])
    scheduler.admit()
    assert (third.slot, second.slot) == (0, 1)
    assert scheduler.readers() == [second, third]
    scheduler.read(second, 1)
    assert scheduler.next_reader() is second


def test_numbers_of_a_moment():
    """The share of positions that running jobs have filled; tokens asked for, and those a slot held."""
    scheduler = Scheduler(4, 100, max_queue=7)
    first, second, alike = long(500), job(7, 8, 9), long(501)

    def numbers():
        made = scheduler.stats
        return made.running, made.waiting, made.used, made.asked_tokens, made.reused_tokens

    scheduler.submit([first, second, job(6)])
    assert numbers() == (0, 3, 0, 0, 0)
    scheduler.admit()
    scheduler.read(first, 30)
    count = len(first.prompt)
    assert numbers() == (3, 0, 30 / 400, count + 4, 0)
    scheduler.read(first, count - 30)
    scheduler.submit([alike])
    scheduler.admit()
    assert numbers() == (4, 0, (2 * count - 1) / 400, 2 * count + 4, count - 1)
    scheduler.release(first, [1, 2])
    assert numbers() == (3, 0, (count - 1) / 400, 2 * count + 4, count - 1)
    scheduler.submit([job(*range(20))])  # shares little with what runs, and more with a free slot
    scheduler.admit()
    assert numbers()[3:] == (2 * count + 24, count - 1 + 19)
    scheduler.submit([job(7, 8, 1, 1)])
    assert (scheduler.stats.slots, scheduler.stats.max_queue, scheduler.stats.waiting) == (4, 7, 1)


def test_a_prefix_that_is_not_worth_copying_is_not_counted():
    scheduler = Scheduler(2, 100)
    first, second = job(1, 2, 3, 4), job(1, 2, 3, 9)
    scheduler.submit([first])
    read_all(scheduler)
    scheduler.submit([second])
    scheduler.admit()
    assert (scheduler.stats.asked_tokens, scheduler.stats.reused_tokens, second.done) == (8, 0, 0)


@pytest.mark.parametrize("count", [HEAD - 1, HEAD, HEAD + 1, HEAD + 9])
def test_how_many_first_tokens_are_those_of_a_text(count):
    """Whether they end among the first that are compared at once, with them, or behind."""
    texts, held = Beginnings(3), np.arange(HEAD + 10, dtype=np.int32)
    texts[0], texts[2] = held, held[:count]
    differs = held.copy()
    differs[count] = -5
    assert texts.shared(differs, range(3)) == [count, 0, count]
    assert texts.shared(held[:count], [2, 0]) == [count, count]
    assert texts.shared(held, [2]) == [count]
    texts[0] = held[:3]  # a shorter text: nothing of the longer one is left
    assert texts.shared(held, [0]) == [3]
    assert len(texts[0]) == 3
    assert texts.shared(held[:0], [0, 1]) == [0, 0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_each_slot_holds_one_job_and_what_is_shared_is_there(data):
    """Against a model: what the slots really hold is followed by hand."""
    slots = data.draw(st.integers(1, 4))
    scheduler = Scheduler(slots, 64)
    held = [[] for _ in range(slots)]
    live, ended, submitted = set(), set(), 0
    for _ in range(data.draw(st.integers(1, 40))):
        if data.draw(st.booleans()):
            new = job(*data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=50)))
            scheduler.submit([new])
            submitted += 1
        for admission in scheduler.admit():
            slot, prompt = admission.job.slot, admission.job.prompt.tolist()
            assert held[admission.source][: admission.count] == prompt[: admission.count]
            assert admission.count < len(prompt)
            held[slot] = held[admission.source][: admission.count]
            live.add(admission.job)
        if (reading := scheduler.next_reader()) is not None:
            count = data.draw(st.integers(1, 20))
            count = min(count, len(reading.prompt) - reading.done)
            held[reading.slot] += reading.prompt[reading.done : reading.done + count].tolist()
            scheduler.read(reading, count)
        if live and data.draw(st.booleans()):
            over = data.draw(st.sampled_from(sorted(live, key=lambda each: each.slot)))
            answer = [] if over.reads else data.draw(st.lists(st.integers(0, 1), max_size=5))
            held[over.slot] += answer[:-1]
            scheduler.release(over, answer)
            live.remove(over)
            ended.add(over)
        places = [each.slot for each in live]
        assert len(set(places)) == len(places)
        assert submitted == len(live) + len(ended) + len(scheduler.waiting)
        assert len(scheduler.free) == slots - len(live)


def test_chunks_that_are_read_together_are_one_turn():
    scheduler, long, short = Scheduler(2, 64), Job(np.arange(40)), Job(np.arange(50, 55))
    scheduler.submit([long, short])
    scheduler.admit()
    scheduler.read(long, 8, together=True)
    assert scheduler.next_reader() is long
    scheduler.read(long, 8)
    assert scheduler.next_reader() is short


def test_a_text_that_crossed_a_border_shares_nothing_with_those_before_it():
    scheduler = Scheduler(1, 64, side=lambda count: int(count > 40), worth_copying=1)
    for crosses, count in ((True, 0), (False, 0), (False, 39)):
        job = Job(np.arange(40))
        scheduler.submit([job])
        assert scheduler.admit()[0].count == count
        scheduler.read(job, job.left)
        if crosses:
            scheduler.cross(job)
        scheduler.release(job, [])
