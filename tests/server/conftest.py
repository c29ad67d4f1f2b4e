"""The tiny model that the server's tests ask."""

import pytest

from tests.support.serving import in_process, on_a_port, start_engine


@pytest.fixture(scope="session")
def served_model(instruct):
    return instruct


@pytest.fixture(scope="session")
def engine(served_model):
    with start_engine(served_model) as engine:
        yield engine


@pytest.fixture(scope="session")
def client(engine):
    """In process."""
    with in_process(engine) as client:
        yield client


@pytest.fixture(scope="session")
def live(engine):
    """On a port."""
    with on_a_port(engine) as client:
        yield client
