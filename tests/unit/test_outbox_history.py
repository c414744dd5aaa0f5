"""Reading the history: filters, export, beside a running agent or without one."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.config.delivery import OutboxConfig
from agent.errors import StorageError
from agent.events.cloudevents import render
from agent.outbox.history import EventArchive, EventQuery
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Event, EventPhase, Lane

EVENTS = (  # kind, camera, minute
    ("fight", "door", 0),
    ("fall", "yard", 1),
    ("fight", "yard", 2),
)


@pytest.fixture
async def store(tmp_path: Path) -> OutboxStore:
    store = await OutboxStore.open(tmp_path / "events.db", OutboxConfig())
    for n, (kind, camera, minute) in enumerate(EVENTS, 1):
        body = f'{{"n": {n}}}'.encode() if n != 2 else b"\xff\x00"
        await store.put(
            Message(
                Lane.ALARM if kind == "fight" else Lane.EVENT, f"id-{n}", "t", lambda _, body=body: body, kind=kind,  # type: ignore[misc]
                phase="detected", camera_id=camera, t_utc_iso=f"2026-11-23T11:0{minute}:00+01:00",
            )
        )  # fmt: skip
    await store.delete([1])
    await store.dead_letter(2, "no")
    return store


def at(minute: int) -> datetime:
    return datetime(2026, 11, 23, 10, minute, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "sequences"),
    [
        (EventQuery(), [1, 2, 3]),
        (EventQuery(newest_first=True, limit=2), [3, 2]),
        (EventQuery(kind="fight"), [1, 3]),
        (EventQuery(camera_id="yard", kind="fall"), [2]),
        (EventQuery(phase="resolved"), []),
        (EventQuery(since=at(1)), [2, 3]),
        (EventQuery(since=at(0), until=at(2)), [1, 2]),
        (EventQuery(after=2), [3]),
        (EventQuery(limit=None), [1, 2, 3]),
    ],
)
async def test_filters(store: OutboxStore, tmp_path: Path, query: EventQuery, sequences: list[int]) -> None:
    assert [row.sequence for row in await store.events(query)] == sequences
    with EventArchive(tmp_path / "events.db") as archive:  # beside the running store
        assert [row.sequence for row in archive.events(query)] == sequences
        assert list(archive.events(query)) == await store.events(query)
    await store.close()


async def test_the_archive_reads_without_a_running_agent(store: OutboxStore, tmp_path: Path) -> None:
    await store.close()
    with EventArchive(tmp_path / "events.db") as archive:
        rows = list(archive.events(EventQuery()))
        assert [row.delivery for row in rows] == ["delivered", "dead", "pending"]
        assert rows[0].t_utc == at(0)
        assert [letter.event_id for letter in archive.dead_letters()] == ["id-2"]
        assert archive.pending() == {Lane.ALARM: 1, Lane.EVENT: 0, Lane.STATE: 0, Lane.TELEMETRY: 0}


async def test_the_archive_cannot_write_and_leaves_no_files_behind(store: OutboxStore, tmp_path: Path) -> None:
    await store.close()
    before = (tmp_path / "events.db").read_bytes()
    with EventArchive(tmp_path / "events.db") as archive:
        assert list(archive.events(EventQuery()))
        with pytest.raises(sqlite3.OperationalError):
            archive._database.execute("DELETE FROM messages")
    assert (tmp_path / "events.db").read_bytes() == before


async def test_export_as_json_lines(store: OutboxStore, tmp_path: Path) -> None:
    await store.close()
    out = io.StringIO()
    with EventArchive(tmp_path / "events.db") as archive:
        assert archive.export(EventQuery(), out, "jsonl") == 3
    first, second, _ = (json.loads(line) for line in out.getvalue().splitlines())
    assert first == {
        "sequence": 1, "t_utc": "2026-11-23T10:00:00+00:00", "kind": "fight", "phase": "detected", "camera_id": "door",
        "delivery": "delivered", "event_id": "id-1", "topic": "t", "payload": {"n": 1},
    }  # fmt: skip
    assert second["payload_base64"] == "/wA="


async def test_export_as_csv(store: OutboxStore, tmp_path: Path) -> None:
    await store.close()
    out = io.StringIO()
    with EventArchive(tmp_path / "events.db") as archive:
        assert archive.export(EventQuery(kind="fall"), out, "csv") == 1
    assert out.getvalue().splitlines() == [
        "sequence,t_utc,kind,phase,camera_id,delivery,event_id,topic,incident_id,confidence,duration_s,evidence",
        "2,2026-11-23T10:01:00+00:00,fall,detected,yard,dead,id-2,t,,,,",
    ]


async def test_a_table_says_how_sure_it_was_and_where_its_evidence_lies(store: OutboxStore, tmp_path: Path) -> None:
    at_door = {"evidence": "door/2026-11-23/i-1"}
    event = Event("id-4", "i-1", "fight", EventPhase.RESOLVED, "door", (1,), 0, at(3), at(3), 20.0, 0.9731, at_door)
    await store.put(
        Message(
            Lane.ALARM, "id-4", "t", lambda n: render(event, device_id="box", sequence=n or 0, emitted_utc=at(3)),
            kind="fight", phase="resolved", camera_id="door", t_utc_iso=at(3).isoformat(),
        )
    )  # fmt: skip
    await store.put(Message(Lane.EVENT, "id-5", "t", lambda _: b'{"data": []}', kind="fight"))
    await store.close()
    out = io.StringIO()
    with EventArchive(tmp_path / "events.db") as archive:
        assert archive.export(EventQuery(kind="fight"), out, "csv") == 4
    told = [
        [row[name] for name in ("incident_id", "confidence", "duration_s", "evidence")]
        for row in csv.DictReader(io.StringIO(out.getvalue()))
    ]
    assert told == [[""] * 4, [""] * 4, ["i-1", "0.9731", "20.0", "door/2026-11-23/i-1"], [""] * 4]


def test_no_database_and_a_file_that_is_none_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no event database"), EventArchive(tmp_path / "absent.db"):
        pass
    (tmp_path / "text.db").write_text("hello, I am not a database at all, but long enough to be read as a header" * 20)
    with pytest.raises(StorageError, match="not a database"), EventArchive(tmp_path / "text.db"):
        pass


def test_a_database_without_the_tables_is_an_error_with_its_name(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE other (x)")
    with EventArchive(tmp_path / "other.db") as archive, pytest.raises(StorageError, match=r"other\.db.*events"):
        list(archive.events(EventQuery()))


async def test_old_history_is_purged_and_what_still_waits_is_not(tmp_path: Path) -> None:
    day_us = 86_400_000_000
    now_us = 1_000 * day_us
    store = await OutboxStore.open(tmp_path / "events.db", OutboxConfig(history_days=10), clock_us=lambda: now_us)
    for n in range(4):
        await store.put(Message(Lane.EVENT, f"id-{n}", "t", lambda _: b"x"))
    await store.delete([1, 2])
    now_us += 11 * day_us
    store._writer._upkeep.due_s = 0.0  # a minute's wait otherwise
    await store.put(Message(Lane.EVENT, "new", "t", lambda _: b"x"))
    await store.delete([5])  # answered after the maintenance that follows the put
    assert [row.event_id for row in await store.events(EventQuery())] == ["id-2", "id-3", "new"]
    await store.close()
