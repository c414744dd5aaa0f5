"""A fleet server for each test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fakes.chromium import Browser
from fakes.fleet_server import FleetServer, Repository, fleet_server
from fakes.postgres import NEEDED, Postgres, available, running_postgres

from ota.store.store import Store, open_store


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
async def fleet(tmp_path: Path, repository: Repository) -> AsyncIterator[FleetServer]:
    """With a TUF repository that has no release yet."""
    async with fleet_server(tmp_path, repository=repository) as server:
        yield server


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with Browser(tmp_path / "profile") as opened:
        yield opened


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One cluster for all tests."""
    if not available():
        pytest.skip(NEEDED)
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fleet.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return await asyncio.to_thread(server.create)


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        yield opened
