"""What waits: a mark per lane, the exceptions to it, and numbers that are found without an index."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent.config.delivery import OutboxConfig
from agent.errors import StorageError
from agent.outbox.database import migrate
from agent.outbox.history import EventArchive, EventQuery
from agent.outbox.numbers import disorder, row_of
from agent.outbox.salvage import _rising
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Lane

CONFIG = OutboxConfig(reserve_bytes=0)
LOG_HEADER_BYTES, FRAME_BYTES = 32, 24 + 4096


def message(lane: Lane = Lane.EVENT, topic: str = "t") -> Message:
    return Message(lane, "id", topic, lambda _: b"payload")


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[OutboxStore]:
    store = await OutboxStore.open(path, CONFIG)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


def rows(path: Path, ask: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(ask).fetchall()


async def waiting(store: OutboxStore, lane: Lane = Lane.EVENT) -> list[int]:
    return [record.row_id for record in await store.fetch(lane, 100)]


# --- marks ------------------------------------------------------------------------------------------------------------


async def test_putting_an_event_costs_one_page_of_the_log(path: Path) -> None:
    log = path.with_name("events.db-wal")
    async with opened(path) as store:
        for _ in range(2):  # the first one also writes the bound down
            await store.put(message())
        before = log.stat().st_size
        await store.put(message())
        assert log.stat().st_size - before == FRAME_BYTES
        assert (before - LOG_HEADER_BYTES) % FRAME_BYTES == 0


async def test_acknowledgements_in_order_leave_one_mark_and_no_rows(path: Path) -> None:
    async with opened(path) as store:
        await asyncio.gather(*(store.put(message()) for _ in range(10)))
        await store.delete(range(1, 6))
        await store.delete(range(6, 10))
        assert rows(path, "SELECT settled FROM marks WHERE lane = 1") == [(9,)]
        assert rows(path, "SELECT * FROM outbox") == []
        assert await waiting(store) == [10]


async def test_acknowledgements_out_of_order_leave_the_others_waiting_also_after_a_restart(path: Path) -> None:
    async with opened(path) as store:
        await asyncio.gather(*(store.put(message(lane)) for lane in [Lane.EVENT, Lane.ALARM] * 5))
        await store.delete([7, 3, 4])
        assert await waiting(store) == [1, 5, 9]
        await store.delete([5])
    async with opened(path) as store:
        assert await waiting(store) == [1, 9]
        assert await waiting(store, Lane.ALARM) == [2, 6, 8, 10]
        assert {lane: depth.rows for lane, depth in (await store.depth()).items() if depth.rows} == {
            Lane.EVENT: 2,
            Lane.ALARM: 4,
        }
        await store.delete([1, 1, 9, 77])
        assert await waiting(store) == []
        assert store.newest[Lane.ALARM] == 10


async def test_a_message_put_after_all_others_were_purged_waits(path: Path) -> None:
    """Its row id has to be above the mark, though no message is left to tell."""
    async with opened(path) as store:
        await asyncio.gather(*(store.put(message()) for _ in range(5)))
        await store.delete(range(1, 6))
        assert await store._ask(lambda tables: tables.drop_history(10), writes=True) == 5
    async with opened(path) as store:
        assert await store.put(message()) == 6
        assert await waiting(store) == [6]
        assert [row.delivery for row in await store.events(EventQuery())] == ["pending"]


async def test_what_never_waited_is_not_marked_as_failed(path: Path) -> None:
    async with opened(path) as store:
        await asyncio.gather(*(store.put(message()) for _ in range(3)))
        await store.delete([1])
        store.mark_attempt([1, 2, 2, 99])
        await store.delete([])
    async with opened(path) as store:
        assert [(record.row_id, record.attempts) for record in await store.fetch(Lane.EVENT, 9)] == [(2, 2), (3, 0)]
        assert await store.dead_letter(3, "no") is True
        assert await store.dead_letter(3, "no") is False
        assert await waiting(store) == [2]  # passed over by the mark, and still there
    with EventArchive(path) as archive:
        assert archive.pending()[Lane.EVENT] == 1
        assert [row.delivery for row in archive.events(EventQuery())] == ["delivered", "pending", "dead"]


async def test_a_rollback_takes_marks_and_totals_back(path: Path) -> None:
    def work(tables: Any) -> None:
        tables.delete([1, 2])
        raise RuntimeError("no")

    async with opened(path) as store:
        await asyncio.gather(*(store.put(message()) for _ in range(3)))
        before = await store.depth()
        with pytest.raises(RuntimeError, match="no"):
            await store._ask(work, writes=True)
        after = await store.depth()
        assert after[Lane.EVENT].rows == before[Lane.EVENT].rows == 3
        assert await waiting(store) == [1, 2, 3]


# --- the number that comes next ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [[5], [4, 5], [1, 2, 3, 4, 5]])
async def test_a_number_is_not_given_again_though_its_message_was_deleted(path: Path, gone: list[int]) -> None:
    async with opened(path) as store:
        await asyncio.gather(*(store.put(message()) for _ in range(5)))
        await store.delete(range(1, 6))
        history = [(row_id, row_id) for row_id in gone]
        await store._ask(lambda tables: tables._delete_history(history, None), writes=True)
    path.with_name("events.db.sequence").unlink()
    async with opened(path) as store:
        assert await store.put(message()) == 6


async def test_where_the_newest_messages_are_damaged_counting_goes_on_at_the_bound_in_the_database(path: Path) -> None:
    async with opened(path) as store:
        for _ in range(40):
            await store.put(message())
    path.with_name("events.db.sequence").unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'messages'").fetchone()
    content = bytearray(path.read_bytes())
    page = int.from_bytes(content[16:18], "big")
    content[(root - 1) * page : root * page] = bytes(page)
    path.write_bytes(content)
    async with opened(path) as store:
        assert store.report.set_aside is not None
        assert (await store.put(message()) or 0) > 40


# --- finding a number -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_number_is_found_by_halving(seed: int) -> None:
    chance = random.Random(seed)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE messages (message_id INTEGER PRIMARY KEY, sequence INTEGER)")
        assert row_of(connection, 7) == 1
        row_id, sequence = chance.randrange(1, 100), chance.randrange(1, 100)
        for _ in range(200):
            row_id += chance.choice([1, 1, 1, 50])
            sequence += chance.choice([1, 1, 30])
            number = sequence if chance.random() < 0.7 else None
            connection.execute("INSERT INTO messages VALUES (?, ?)", (row_id, number))
        numbers = dict(connection.execute("SELECT sequence, message_id FROM messages WHERE sequence IS NOT NULL"))
        for wanted in range(sequence + 3):
            place = row_of(connection, wanted)
            assert all((row_id >= place) == (number >= wanted) for number, row_id in numbers.items())
        assert disorder(connection) is None
        connection.execute("UPDATE messages SET sequence = 1 WHERE message_id = ?", (row_id,))
        assert disorder(connection) == row_id


@pytest.mark.parametrize(
    ("read", "kept"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 9000, 3, 4], [1, 3, 4]),
        ([4, 5, 1, 6], [4, 5, 6]),
        ([1, 2, 2, 3], [1, 2, 3]),
        ([-5, 0, 1, None, 2, 1 << 60], [None, 1, 2]),
        ([None, None], [None, None]),
        ([], []),
    ],
)
def test_salvage_leaves_out_numbers_that_do_not_fit_in(read: list[int | None], kept: list[int | None]) -> None:
    found = _rising(iter([(row_id, 1, sequence) for row_id, sequence in enumerate(read, 1)]))
    assert [row[2] for row in found] == kept


# --- from the schema before -------------------------------------------------------------------------------------------


def database_of_schema_4(path: Path) -> None:
    """Events 1 to 6: delivered, waiting with two attempts, dead, lost, waiting, waiting; then a state that waits."""
    folder = resources.files("agent.outbox.migrations")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode=WAL")
        for name in ("0001_messages", "0002_losses", "0003_sinks", "0004_commands"):
            old.executescript(folder.joinpath(f"{name}.sql").read_text(encoding="utf-8"))
        for n in range(1, 8):
            lane, sequence = (1, n) if n < 7 else (2, None)
            lost, now_us = "age" if n == 4 else None, time.time_ns() // 1000
            old.execute(
                "INSERT INTO messages VALUES (?, ?, ?, 'id', 't', x'78', '', 0, '', '', '', 5, ?, ?)",
                (n, lane, sequence, now_us, lost),
            )
            if n in {2, 5, 6, 7}:
                old.execute("INSERT INTO outbox VALUES (?, ?, 1, ?, ?)", (n, lane, now_us, 2 if n == 2 else 0))
        old.execute("INSERT INTO dead_letters VALUES (3, 'no', 1, 7)")
        old.execute("UPDATE meta SET value = 7 WHERE key = 'next_sequence'")
        old.execute("INSERT INTO cursors VALUES ('sink', 4, 1)")
        old.execute("PRAGMA user_version=4")


async def test_a_database_of_the_schema_before_keeps_what_waited(path: Path) -> None:
    database_of_schema_4(path)
    with EventArchive(path) as archive:  # beside an agent that has not been started anew
        assert archive.pending() == {Lane.ALARM: 0, Lane.EVENT: 3, Lane.STATE: 1, Lane.TELEMETRY: 0}
        assert [row.sequence for row in archive.events(EventQuery(after=4))] == [5, 6]
    async with opened(path) as store:
        states = [row.delivery for row in await store.events(EventQuery())]
        assert states == ["delivered", "pending", "dead", "lost", "pending", "pending"]
        assert [(r.row_id, r.attempts) for r in await store.fetch(Lane.EVENT, 9)] == [(2, 2), (5, 0), (6, 0)]
        assert await waiting(store, Lane.STATE) == [7]
        await store.keep_sinks(["sink"])
        assert [(r.sequence, r.attempts) for r in await store.fetch_after("sink", 9)] == [(5, 1), (6, 0)]
        assert await store.put(message(Lane.STATE)) is None
        assert await waiting(store, Lane.STATE) == [8]  # the old one of its topic is gone
        assert await store.put(message()) == 7
        await store.delete([5, 9])
        assert await waiting(store) == [2, 6]
        assert (await store.requeue(1, 3)).lowest == {Lane.EVENT: 1}
        assert await waiting(store) == [1, 2, 3, 6]


def test_a_migration_that_fails_leaves_the_schema_before(path: Path) -> None:
    database_of_schema_4(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE messages_by_lane (in_the_way)")
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection, path)
        connection.execute("DROP TABLE messages_by_lane")
        assert connection.execute("PRAGMA user_version").fetchone() == (4,)
        migrate(connection, path)
        assert connection.execute("SELECT DISTINCT settled FROM marks").fetchall() == [(7,)]


def copies(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if ".schema-" in file.name)


async def test_before_a_migration_a_copy_is_made_to_go_back_to(path: Path) -> None:
    """The agent before is one that knows the schema of the copy: here, as there is no other, this one."""
    database_of_schema_4(path)
    path.with_name("events.db.schema-3").write_bytes(b"of the migration before")
    async with opened(path) as store:
        assert await store.put(message()) == 7
    assert copies(path) == ["events.db.schema-4"]
    for suffix in ("", "-wal", "-shm"):  # as docs/operations.md says
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.with_name("events.db.schema-4").rename(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (4,)
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (7,)
    async with opened(path) as store:
        assert await waiting(store) == [2, 5, 6]
        assert (await store.put(message()) or 0) > 7


async def test_a_migration_goes_on_without_a_copy_where_the_disk_has_no_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database_of_schema_4(path)
    kept = path.with_name("events.db.schema-3")
    kept.write_bytes(b"of the migration before")
    usage = shutil.disk_usage(path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=path.stat().st_size))
    with structlog.testing.capture_logs() as logs:
        async with opened(path) as store:
            assert await waiting(store) == [2, 5, 6]
    assert copies(path) == [kept.name]
    assert [one["log_level"] for one in logs if one["event"] == "outbox_not_copied_before_migration"] == ["warning"]


async def test_a_copy_that_takes_too_long_is_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database_of_schema_4(path)
    monkeypatch.setattr("agent.outbox.backup._SCHEMA_COPY_S", -1.0)
    async with opened(path) as store:
        assert await waiting(store) == [2, 5, 6]
    assert copies(path) == []


async def test_a_database_of_a_newer_agent_names_the_copy_from_before(path: Path) -> None:
    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=99")
    path.with_name("events.db.schema-98").touch()  # which this agent does not know either
    with pytest.raises(StorageError, match=r"newer agent.*move the file away"):
        await OutboxStore.open(path, CONFIG)
    path.with_name("events.db.schema-5").touch()
    for _ in range(30):  # a store that could not be opened holds nothing that the next try needs
        with pytest.raises(StorageError, match=r"newer agent.*put events\.db\.schema-5, .*docs/operations\.md"):
            await OutboxStore.open(path, CONFIG)


async def test_a_damaged_database_of_the_schema_before_gives_what_waited(path: Path) -> None:
    database_of_schema_4(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE meta SET value = -1 WHERE key = 'generation'")
        connection.commit()
    async with opened(path) as store:
        assert store.report.set_aside is not None
        assert await waiting(store) == [2, 5, 6]


@pytest.mark.parametrize(
    "change", ["UPDATE outbox SET lane = 77", "DELETE FROM marks WHERE lane = 1", "DROP TABLE marks"]
)
async def test_a_damaged_database_gives_what_waited(path: Path, change: str) -> None:
    """Where no mark says what was delivered it is sent again, but not what was refused or given up."""
    async with opened(path) as store:
        await asyncio.gather(*(store.put(message()) for _ in range(6)))
        await store.delete([1, 4])
        await store.dead_letter(2, "no")
        await store._ask(lambda tables: tables.expire(Lane.EVENT, 1 << 60, 1), writes=True)  # 3
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"INSERT OR IGNORE INTO outbox VALUES (5, 1, 7, 6, 0); {change}")
    async with opened(path) as store:
        assert store.report.set_aside is not None
        assert await waiting(store) == ([5, 6] if "outbox" in change else [1, 4, 5, 6])
        assert [letter.row_id for letter in await store.dead_letters()] == [2]
