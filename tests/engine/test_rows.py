"""What the slots are given of a request: no model."""

import numpy as np
import pytest

from jllama.engine.rows import check_ids, key_of, sampling_of
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings


@pytest.mark.parametrize(
    ("seed", "key"),
    [(None, [0, 0]), (0, [0, 0]), (5, [0, 5]), (2**32 + 7, [1, 7]), (2**63 - 1, [2**31 - 1, 2**32 - 1])],
)
def test_a_seed_is_two_words(seed, key):
    made = key_of(GenerationSettings(seed=seed))
    assert (made.dtype, made.tolist()) == (np.uint32, key)


def test_settings_as_a_row():
    row = sampling_of(GenerationSettings(temperature=0.5, top_k=3, min_p=0.25, logit_bias={2: 1.5}), 5)
    assert np.asarray(row.temperature).tolist() == [0.5]
    assert np.asarray(row.top_k).tolist() == [3]
    assert np.asarray(row.min_p).tolist() == [0.25]


def test_ids_are_in_the_vocabulary():
    check_ids([0, 9], GenerationSettings(logit_bias={9: 1.0}), 10)
    for prompt, bias, words in (
        ([10], {}, "the prompt holds token 10; the vocabulary goes from 0 to 9"),
        ([0, -1], {}, "the prompt holds token -1;"),
        ([0], {10: 1.0}, "logit_bias holds token 10;"),
    ):
        with pytest.raises(JllamaError, match=words):
            check_ids(prompt, GenerationSettings(logit_bias=bias), 10)
