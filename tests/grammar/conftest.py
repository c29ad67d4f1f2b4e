"""A tiny model with a token for each byte, and an engine on it."""

import pytest

from tests.support.instruct import engine as engine


@pytest.fixture(scope="session")
def model(instruct):
    pytest.importorskip("llguidance")
    return instruct
