"""Two tokenizers that several files ask."""

import pytest

from jllama.text.tokenizer import Tokenizer
from tests.support.tokenizer_helpers import gguf_tokenizer


@pytest.fixture
def smollm2(smollm2_gguf):
    return gguf_tokenizer(smollm2_gguf)


@pytest.fixture(scope="module")
def story(plain_dir):
    return Tokenizer.from_dir(plain_dir)
