"""A browser for each test process, a scripted server for each test."""

import pytest

from tests.support import page_driver
from tests.support.fake_chat_server import FakeChatServer


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    reason = page_driver.missing()
    if reason:
        pytest.skip(reason)
    started = page_driver.start_browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


@pytest.fixture
def fake():
    server = FakeChatServer()
    yield server
    server.close()


@pytest.fixture
def page(browser, fake):
    """The page, open. Whatever a test does, nothing may break the page's policy or its program."""
    driver = page_driver.PageDriver(browser, fake.url).open()
    yield driver
    assert driver.faults() == []
