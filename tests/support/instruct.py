"""Fixtures of directories whose tests ask the tiny model with a chat template, and an engine on it."""

import pytest

import jllama


@pytest.fixture(scope="session")
def model(instruct):
    return instruct


@pytest.fixture(scope="module")
def engine(model):
    with jllama.Engine(model, slots=4, max_seq_len=256) as engine:
        yield engine
