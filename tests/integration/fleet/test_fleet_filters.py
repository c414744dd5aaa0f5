"""Filters over a fleet in a real database: who is taken, and what is read to find out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fakes import fleet_store
from sqlalchemy import Connection, event

from ota.rollouts import fleet
from ota.store.store import Store


@contextmanager
def statements(connection: Connection) -> Iterator[list[str]]:
    """What the database is asked meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(connection, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(connection, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("text", "taken", "reads_installed"),
    [
        ("", ["box-0", "box-1", "box-2"], False),
        ("site==berlin", ["box-0", "box-1"], False),
        ("site!=berlin;update!=error;name==box-*", ["box-2"], False),
        ("status==never", [], False),
        ("version==0.6.0", ["box-1", "box-2"], True),
        ("pose.version=lt=0.7;site==berlin", ["box-1"], True),
        ("version==0.6.0,model==pose-nano;pose.model==*", ["box-0", "box-1", "box-2"], True),
    ],
)
async def test_a_filter_reads_what_serves_the_devices_once_and_only_when_it_asks_for_it(
    store: Store, text: str, taken: list[str], reads_installed: bool
) -> None:
    def work(connection: Connection) -> tuple[list[str], list[str]]:
        berlin = fleet_store.add_devices(connection, ["box-0", "box-1"], attributes={"site": "berlin"})
        paris = fleet_store.add_devices(connection, ["box-2"], attributes={"site": "paris", "model.pose": "nano 0.6.0"})
        old, new = (fleet_store.add_release(connection, number) for number in (6, 7))
        fleet_store.install(connection, [berlin[0].id, paris[0].id], new.id)
        fleet_store.install(connection, [berlin[1].id], old.id)
        with statements(connection) as seen:
            found = fleet.matching(connection, text, 0)
        return [device.controller_id for device in found], seen

    found, seen = await store.write(work)
    assert found == taken
    assert sum("installed" in statement for statement in seen) == reads_installed
