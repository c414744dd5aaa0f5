"""Shared fixtures: the data folder beside the repository, and the switch for slow tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("agent", deadline=None)  # CI machines are noisy; the time-out of the test is the limit
settings.load_profile("agent")

REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(skip)


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
