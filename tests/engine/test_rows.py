"""What the slots are given of a request: no model."""

import numpy as np
import pytest

from jllama.engine.rows import Piece, Row, check_ids, filled, key_of, packed, stacked
from jllama.errors import JllamaError
from jllama.layers.sampling import Sampling
from jllama.settings import GenerationSettings


@pytest.mark.parametrize(
    ("seed", "key"),
    [(None, [0, 0]), (0, [0, 0]), (5, [0, 5]), (2**32 + 7, [1, 7]), (2**63 - 1, [2**31 - 1, 2**32 - 1])],
)
def test_a_seed_is_two_words(seed, key):
    made = key_of(GenerationSettings(seed=seed))
    assert (made.dtype, made.tolist()) == (np.uint32, key)


def row_of(prompt, ends=(), **settings):
    made = GenerationSettings(**settings)
    return Row.of(prompt, made, ends=ends, vocab_size=5, max_len=16)


def test_settings_as_a_row():
    row = row_of([4, 2], temperature=0.5, top_k=3, min_p=0.25, logit_bias={2: 1.5}, min_new_tokens=3, seed=7)
    assert np.asarray(row.sampling.temperature).tolist() == [0.5]
    assert np.asarray(row.sampling.top_k).tolist() == [3]
    assert np.asarray(row.sampling.min_p).tolist() == [0.25]
    assert (row.prompt.dtype, row.prompt.tolist(), row.key.tolist()) == (np.int32, [4, 2], [0, 7])
    assert (row.floor, row.scores, row.sampling.is_greedy()) == (3, False, False)
    assert row_of([1]).sampling.is_greedy()


def test_an_answer_has_the_room_that_its_prompt_leaves():
    assert [row_of([1] * count, max_new_tokens=9).limit for count in (1, 7, 8, 15)] == [9, 9, 8, 1]


def test_a_row_ends_with_the_ids_that_the_model_can_say():
    assert row_of([1], ends={300, 4, 2, -1, 5}).stop_ids == [2, 4]


def test_ids_are_in_the_vocabulary():
    check_ids([0, 9], GenerationSettings(logit_bias={9: 1.0}), 10)
    for prompt, bias, words in (
        ([10], {}, "the prompt holds token 10; the vocabulary goes from 0 to 9"),
        ([0, -1], {}, "the prompt holds token -1;"),
        ([0], {10: 1.0}, "logit_bias holds token 10;"),
    ):
        with pytest.raises(JllamaError, match=words):
            check_ids(prompt, GenerationSettings(logit_bias=bias), 10)


def test_what_a_program_is_told_of_pieces():
    """Slot, start, how many of the tokens count, the length of the prompt; one token more may follow."""
    pieces = [Piece(5, np.array([7, 8, 9], np.int32), 16, 40), Piece(2, np.array([4], np.int32), 0, 1)]
    assert packed(pieces, 3, 3).tolist() == [[5, 16, 3, 40, 7, 8, 9], [2, 0, 1, 1, 4, 0, 0]]
    assert packed(pieces[:1], 2, 3).tolist() == [[5, 16, 2, 40, 7, 8, 9]]
    assert packed(pieces[1:], 2, 3).tolist() == [[2, 0, 1, 1, 4, 0, 0]]
    assert packed(pieces[1:], 2, 2, range(9, 11)).tolist() == [
        [2, 0, 1, 1, 4, 0],
        [9, 0, 0, 0, 0, 0],  # nothing, in no slot
        [10, 0, 0, 0, 0, 0],
    ]


def test_settings_of_fewer_rows_than_a_program_has():
    rows = [Sampling.build(batch=1, vocab_size=5, temperature=t, top_k=k) for t, k in ((0.5, 3), (0.0, 0))]
    four = stacked(rows, 4)
    assert (four.temperature.tolist(), four.top_k.tolist()) == ([0.5, 0.0, 0.5, 0.5], [3, 0, 3, 3])
    assert four.logit_bias.shape == (4, 5)
    assert stacked(rows[:1], 1) is rows[0]


def test_masks_of_rows_that_are_nobodys_allow_all():
    masks = np.array([[1, 2], [3, 4]], np.int32)
    assert filled(masks, 4).tolist() == [[1, 2], [3, 4], [-1, -1], [-1, -1]]
    assert filled(masks, 2).tolist() == masks.tolist()
    assert filled(None, 2) is None
