"""A pytest plugin of the planter: chosen tests in a chosen order, each step recorded as a line of JSON."""

import json
from pathlib import Path

import pytest


def pytest_addoption(parser) -> None:
    parser.addoption("--selection", help="JSON: node id or file -> time limit of a test in seconds")
    parser.addoption("--record", help="takes one line of JSON for each test that starts, passes or fails")


def pytest_configure(config) -> None:
    if config.getoption("selection"):  # whether a test fails is enough: no smallest example
        from hypothesis import Phase, settings

        settings.register_profile("selection", phases=[Phase.explicit, Phase.generate], database=None)
        settings.load_profile("selection")
    if path := config.getoption("record"):
        config.pluginmanager.register(Recorder(Path(path)))
    config.pluginmanager.register(Contexts())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items) -> None:
    if not (path := config.getoption("selection")):
        return
    limits = json.loads(Path(path).read_text("utf-8"))
    order = {nodeid: place for place, nodeid in enumerate(limits)}
    # A file stands for all its tests that are not named; without time a test does not run.
    names = {item: item.nodeid if item.nodeid in order else item.nodeid.partition("::")[0] for item in items}
    chosen = [item for item in items if limits.get(names[item])]
    items[:] = sorted(chosen, key=lambda item: order[names[item]])
    for item in items:
        item.add_marker(pytest.mark.timeout(limits[names[item]], method="thread"), append=False)


class Recorder:
    """Lines are written at once: a test that kills the process leaves its start behind."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def _write(self, **entry) -> None:
        print(json.dumps(entry), file=self._file, flush=True)

    def pytest_runtest_logstart(self, nodeid) -> None:
        self._write(start=nodeid)

    def pytest_runtest_logreport(self, report) -> None:
        self._write(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3))

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self._write(test=report.nodeid, outcome="failed", seconds=0.0)

    def pytest_sessionfinish(self, exitstatus) -> None:
        self._write(end=int(exitstatus))


class Contexts:
    """Tells coverage.py which test runs, in the words of PYTEST_CURRENT_TEST, which child processes see."""

    def _switch(self, item, phase: str):
        import coverage

        if running := coverage.Coverage.current():
            running.switch_context(f"{item.nodeid} ({phase})")
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        return (yield from self._switch(item, "setup"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        return (yield from self._switch(item, "call"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item):
        return (yield from self._switch(item, "teardown"))
