"""A tiny model with a token for each byte, and an engine on it."""

import pytest

import jllama
from tests.support.tiny_checkpoint import TEMPLATE, write_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    pytest.importorskip("llguidance")
    directory = write_tiny_model(tmp_path_factory.mktemp("models") / "instruct", template=TEMPLATE)
    return jllama.load(str(directory), dtype="float32")


@pytest.fixture(scope="module")
def engine(model):
    with jllama.Engine(model, slots=4, max_seq_len=256) as engine:
        yield engine
