"""Shared fixtures: the data folder beside the repository, and the switch for slow tests."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("agent", deadline=None)  # CI machines are noisy; the time-out of the test is the limit
settings.load_profile("agent")

REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"
STDERR, CRASHED = pytest.StashKey[int](), pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(skip)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STDERR] = os.dup(2)  # before tests have theirs captured
    # A shell's background job ignores it, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """See `_cut_off_late`."""
    _cut_off_late(item)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Once more: pytest takes the watch off when a test fails."""
    _cut_off_late(item)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Of a process with tests, in the one that hands them out."""
    if error:
        node.config.stash[CRASHED] = True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where a process died not every test may have run: that is more than a test that failed."""
    if session.config.stash.get(CRASHED, False):
        session.exitstatus = pytest.ExitCode.INTERRUPTED


def _cut_off_late(item: pytest.Item) -> None:
    """The time limit of a test raises an error in the main thread, which may wait where that ends nothing. Then the process ends,
    with the stacks of all threads, and the run goes on in another."""
    marker = item.get_closest_marker("timeout")
    limit_s = float(marker.args[0] if marker and marker.args else item.config.getini("timeout"))
    faulthandler.dump_traceback_later(2 * limit_s + 60, exit=True, file=item.config.stash[STDERR])


@pytest.fixture(autouse=True)
def _no_log_to_a_closed_stream() -> Iterator[None]:
    """A command that a test ran inside this process has sent all logging to that test's stderr, which is closed after it."""
    yield
    root = logging.getLogger()
    for handler in [one for one in root.handlers if type(one) is logging.StreamHandler]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def repo_dir() -> Path:
    """Root of the repository."""
    return REPO


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The data folder `../shared`; the test is skipped where there is none."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the data folder ../shared")
    return SHARED
