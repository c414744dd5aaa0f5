"""The server under systemd: what feeds the watchdog, and what ends the process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.fleet_server import FleetServer

from agent.errors import FatalError
from agent.sdnotify import Notifier
from ota.server.run import _watch


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def fed(listener: socket.socket) -> int:
    """Watchdog messages since the last call."""
    number = 0
    while True:
        try:
            number += listener.recv(1000) == b"WATCHDOG=1"
        except BlockingIOError:
            return number


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_watchdog_is_fed_while_the_database_answers(
    fleet: FleetServer, notified: socket.socket, tmp_path: Path
) -> None:
    stop, notifier = asyncio.Event(), Notifier(str(tmp_path / "notify"), watchdog_s=0.15)
    watching = asyncio.create_task(_watch(fleet.services, notifier, stop))
    await until(lambda: fed(notified))
    backend = fleet.services.store._backend
    works = backend.read

    async def fails(_: Any) -> Any:
        raise OSError("disk is gone")

    backend.read = fails  # type: ignore[method-assign]
    await asyncio.sleep(0.1)
    fed(notified)
    await asyncio.sleep(0.4)
    assert fed(notified) == 0
    assert not watching.done()  # it may come back
    backend.read = works  # type: ignore[method-assign]
    await until(lambda: fed(notified))
    stop.set()
    await watching
    notifier.close()


async def test_part_that_ends_by_an_error_ends_the_process(fleet: FleetServer) -> None:
    async def fails() -> None:
        raise ValueError("a bug")

    fleet.services.tasks = (*fleet.services.tasks, asyncio.create_task(fails(), name="fleet-part"))
    with pytest.raises(FatalError, match="fleet-part ended") as caught:
        await _watch(fleet.services, Notifier(), asyncio.Event())
    assert isinstance(caught.value.__cause__, ValueError)
