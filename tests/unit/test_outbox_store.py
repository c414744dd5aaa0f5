"""The store: what `put` promises, the sequence, lanes, damage, full disks, wrong folders."""

# ruff: noqa: ASYNC221 - small files, and nothing else runs on these event loops

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.config.delivery import OutboxConfig
from agent.errors import StorageError, StorageFullError
from agent.outbox.history import EventQuery
from agent.outbox.sequence import BLOCK
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Lane

CONFIG = OutboxConfig()


def message(
    lane: Lane = Lane.EVENT,
    name: str = "id",
    topic: str = "t",
    payload: Callable[[int | None], bytes] = lambda sequence: b"payload %d" % (sequence or 0),
    *,
    retain: bool = False,
    kind: str = "fight",
    t_utc: str = "2026-11-23T10:00:00+00:00",
) -> Message:
    return Message(
        lane, name, topic, payload, retain=retain, kind=kind, phase="detected", camera_id="door", t_utc_iso=t_utc
    )


@contextlib.asynccontextmanager
async def opened(path: Path, config: OutboxConfig = CONFIG, **options: Callable[[], int]) -> AsyncIterator[OutboxStore]:
    store = await OutboxStore.open(path, config, **options)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "events.db"


def crash_copy(path: Path, target: Path) -> Path:
    """The files as a killed process would leave them, while the store is still open."""
    shutil.copytree(path.parent, target)
    return target / path.name


async def test_sequences_run_without_gaps_over_alarm_and_event_lanes_and_restarts(path: Path) -> None:
    async with opened(path) as store:
        assert [await store.put(message(lane)) for lane in (Lane.ALARM, Lane.EVENT, Lane.STATE, Lane.EVENT)] == [
            1,
            2,
            None,
            3,
        ]
        assert await store.put(message(Lane.TELEMETRY)) is None
    async with opened(path) as store:
        assert store.report.next_sequence == 4
        assert not store.report.created
        assert await store.put(message(Lane.ALARM)) == 4


async def test_what_was_put_is_fetched_as_it_was(path: Path) -> None:
    async with opened(path) as store:
        await store.put(message(Lane.ALARM, "one", "a/b", lambda sequence: f"№ {sequence}".encode(), retain=True))
        (record,) = await store.fetch(Lane.ALARM, 10)
    assert (record.lane, record.sequence, record.event_id, record.topic) == (Lane.ALARM, 1, "one", "a/b")
    assert (record.payload, record.content_type, record.retain) == ("№ 1".encode(), "application/json", True)
    assert record.attempts == 0
    assert abs((record.t_created_utc - datetime.now(UTC)).total_seconds()) < 60


async def test_a_put_is_on_disk_when_it_returns(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        for n in range(5):
            await store.put(message(name=f"id-{n}"))
        copy = crash_copy(path, tmp_path / "copy")
    async with opened(copy) as store:
        assert [record.event_id for record in await store.fetch(Lane.EVENT, 10)] == [f"id-{n}" for n in range(5)]
        assert await store.put(message()) == 6


async def test_many_producers_share_commits_and_every_one_gets_its_own_number(path: Path) -> None:
    async with opened(path, OutboxConfig(commit_max_rows=7)) as store:
        numbers = await asyncio.gather(*(store.put(message(name=f"id-{n}")) for n in range(100)))
        records = await store.fetch(Lane.EVENT, 1000)
    assert sorted(numbers) == list(range(1, 101))
    assert [record.sequence for record in records] == list(range(1, 101))
    assert all(record.event_id == f"id-{numbers.index(record.sequence)}" for record in records)


@pytest.mark.parametrize("payload", [lambda _: 1 / 0, lambda _: "text", lambda _: None])
async def test_a_payload_that_fails_costs_no_number_and_nobody_else(
    path: Path, payload: Callable[[int | None], bytes]
) -> None:
    async with opened(path) as store:
        results = await asyncio.gather(
            store.put(message()), store.put(message(payload=payload)), store.put(message()), return_exceptions=True
        )
        assert (results[0], results[2]) == (1, 2)
        assert isinstance(results[1], ZeroDivisionError | TypeError)
        assert [record.payload for record in await store.fetch(Lane.EVENT, 10)] == [b"payload 1", b"payload 2"]


async def test_text_that_sqlite_cannot_hold_is_its_producers_error_alone(path: Path) -> None:
    async with opened(path) as store:
        results = await asyncio.gather(store.put(message(name="\ud800")), store.put(message()), return_exceptions=True)
        assert isinstance(results[0], UnicodeEncodeError)
        assert results[1] == 1


async def test_the_state_lane_keeps_the_newest_of_each_topic(path: Path) -> None:
    async with opened(path) as store:
        await store.put(message(Lane.STATE, "a1", "a"))
        await asyncio.gather(*(store.put(message(Lane.STATE, name, name[0])) for name in ("b1", "a2", "a3", "c1")))
        assert [record.event_id for record in await store.fetch(Lane.STATE, 10)] == ["b1", "a3", "c1"]
        assert (await store.depth())[Lane.STATE].rows == 3


async def test_fetch_goes_on_after_a_row_and_keeps_lanes_apart(path: Path) -> None:
    async with opened(path) as store:
        for n in range(6):
            await store.put(message(Lane.ALARM if n % 2 else Lane.EVENT, f"id-{n}"))
        first = await store.fetch(Lane.EVENT, 2)
        rest = await store.fetch(Lane.EVENT, 2, first[-1].row_id)
        assert [record.event_id for record in first + rest] == ["id-0", "id-2", "id-4"]
        assert store.newest[Lane.EVENT] == rest[-1].row_id
        assert store.newest[Lane.TELEMETRY] == 0


async def test_deleted_rows_leave_the_outbox_and_stay_in_the_history(path: Path) -> None:
    async with opened(path) as store:
        for lane in (Lane.ALARM, Lane.EVENT, Lane.STATE, Lane.TELEMETRY):
            await store.put(message(lane, lane.name))
        await store.delete([record.row_id for lane in Lane for record in await store.fetch(lane, 10)] + [999])
        assert all(depth.rows == 0 and depth.size_bytes == 0 for depth in (await store.depth()).values())
        assert [(row.event_id, row.delivery) for row in await store.events(EventQuery())] == [
            ("ALARM", "delivered"),
            ("EVENT", "delivered"),
        ]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (2,)


async def test_forgotten_rows_are_deleted_by_the_time_the_store_is_closed(path: Path) -> None:
    async with opened(path) as store:
        await store.put(message())
        store.forget([1])
        store.mark_attempt([1])
    async with opened(path) as store:
        assert await store.fetch(Lane.EVENT, 10) == []


async def test_attempts_are_counted(path: Path) -> None:
    async with opened(path) as store:
        await store.put(message())
        store.mark_attempt([1])
        store.mark_attempt([1])
    async with opened(path) as store:
        assert [record.attempts for record in await store.fetch(Lane.EVENT, 10)] == [2]


async def test_dead_letters_are_kept_and_listed(path: Path) -> None:
    async with opened(path) as store:
        await store.put(message(name="bad"))
        await store.put(message(name="good"))
        assert await store.dead_letter(1, "not authorised")
        assert not await store.dead_letter(1, "again")
        (letter,) = await store.dead_letters()
        assert (letter.event_id, letter.reason, letter.attempts, letter.sequence) == ("bad", "not authorised", 1, 1)
        assert [record.event_id for record in await store.fetch(Lane.EVENT, 10)] == ["good"]
        assert [row.delivery for row in await store.events(EventQuery())] == ["dead", "pending"]
        assert (await store.depth())[Lane.EVENT].rows == 1


async def test_depth_tells_rows_bytes_and_age_also_after_a_restart(path: Path) -> None:
    now_us = 1_000_000_000
    async with opened(path, clock_us=lambda: now_us) as store:
        await store.put(message(payload=lambda _: b"x" * 10))
        await store.put(message(payload=lambda _: b"x" * 5))
    now_us += 3_000_000
    async with opened(path, clock_us=lambda: now_us) as store:
        depth = (await store.depth())[Lane.EVENT]
    assert (depth.rows, depth.size_bytes, depth.oldest_age_s) == (2, 15, 3.0)


async def test_state_and_telemetry_too_old_to_matter_are_not_sent(path: Path) -> None:
    now_us = 1_000_000_000
    config = OutboxConfig(state_max_age_s=100, telemetry_max_age_s=10)
    async with opened(path, config, clock_us=lambda: now_us) as store:
        for lane in Lane:
            await store.put(message(lane, lane.name))
        now_us += 50_000_000
        found = [record.event_id for lane in Lane for record in await store.fetch(lane, 10)]
        assert found == ["ALARM", "EVENT", "STATE"]


async def test_a_cancelled_put_leaves_the_store_working(path: Path) -> None:
    async with opened(path) as store:
        task = asyncio.create_task(store.put(message()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await store.put(message()) in {1, 2}


async def test_a_closed_store_refuses_politely_and_closes_twice(path: Path) -> None:
    store = await OutboxStore.open(path, CONFIG)
    waiting = asyncio.create_task(store.put(message()))
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    assert await waiting == 1  # closing commits what was put
    with pytest.raises(StorageError, match="closed"):
        await store.put(message())


async def test_a_second_owner_is_refused(path: Path) -> None:
    async with opened(path):
        with pytest.raises(StorageError, match="already in use"):
            await OutboxStore.open(path, CONFIG)


async def test_commit_listeners_hear_of_new_rows(path: Path) -> None:
    heard = []
    async with opened(path) as store:
        store.on_commit(lambda: heard.append(store.newest[Lane.EVENT]))
        await store.put(message())
        await store.put(message())
        await store.delete([1])
    assert heard == [1, 2]


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rubbish", [b"", b"not a database", b"SQLite format 3\x00" + b"\xff" * 5000])
async def test_a_damaged_file_is_set_aside_and_numbers_are_never_given_twice(path: Path, rubbish: bytes) -> None:
    async with opened(path) as store:
        for _ in range(3):
            await store.put(message())
    path.write_bytes(rubbish)
    async with opened(path) as store:
        report = store.report
        number = await store.put(message())
    assert number is not None
    assert 3 < number <= BLOCK + 1
    assert report.next_sequence == number
    assert report.skipped is not None
    assert report.skipped[1] == number - 1
    if rubbish:  # SQLite takes an empty file for a new database
        assert report.set_aside is not None
        assert report.set_aside.read_bytes()[: len(rubbish)] == rubbish
        assert report.damage


def pages_of(path: Path, table: str) -> list[int]:
    """Leaf pages of a table in the order of the file; the newest rows of `messages` are in the last one."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY pageno", (table,)
        )
        return [number for (number,) in found]


@pytest.mark.parametrize(
    ("damaged", "number", "same_series"),
    [
        ("older messages", BLOCK + 1, True),  # by the bound in `meta`: the newest message may be what was lost
        ("all messages", BLOCK + 1, True),
        ("older messages and meta", 201, False),  # by the newest message
        ("all messages and meta", 1, False),  # by nothing, and that is said
    ],
)
async def test_damage_inside_pages_is_found_at_open_and_the_sequence_salvaged(
    path: Path, damaged: str, number: int, same_series: bool
) -> None:
    async with opened(path) as store:
        series = store.series
        await asyncio.gather(*(store.put(message(name=f"id-{n}" * 20)) for n in range(200)))
    messages, meta = pages_of(path, "messages"), pages_of(path, "meta")
    assert len(messages) > 5
    pages = {
        "older messages": messages[:-1],
        "all messages": messages,
        "older messages and meta": messages[:-1] + meta,
        "all messages and meta": messages + meta,
    }
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    for page in pages[damaged]:
        content[(page - 1) * size : (page - 1) * size + 100] = os.urandom(100)
    path.write_bytes(content)
    path.with_name("events.db.sequence").unlink()
    async with opened(path) as store:
        assert store.report.set_aside is not None
        assert await store.put(message()) == number
    assert store.report.sequence_known is (number > 1)
    assert (store.series == series) is same_series


async def test_a_log_that_is_damaged_in_its_middle_repeats_no_number(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        for _ in range(8):
            await store.put(message())
        copy = crash_copy(path, tmp_path / "crash")
    log = copy.with_name("events.db-wal")
    whole, page = log.read_bytes(), 4096
    for frame in range((len(whole) - 32) // (24 + page)):
        shutil.rmtree(tmp_path / "trial", ignore_errors=True)
        shutil.copytree(copy.parent, tmp_path / "trial")
        trial = tmp_path / "trial" / copy.name
        damaged = bytearray(whole)
        damaged[32 + frame * (24 + page) + 24 + 100] ^= 1
        trial.with_name(log.name).write_bytes(damaged)
        async with opened(trial) as store:
            report = store.report
            number = await store.put(message()) or 0
        assert number > 8, frame
        assert report.damage or report.cut_off, frame  # the last commit alone looks as if a power loss had cut it off
        assert report.skipped is not None, frame
        assert report.skipped[1] == number - 1


async def test_a_log_whose_header_is_damaged_repeats_no_number(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        for _ in range(3):
            await store.put(message())
        copy = crash_copy(path, tmp_path / "crash")
    log = copy.with_name("events.db-wal")
    damaged = bytearray(log.read_bytes())
    damaged[17] ^= 1  # a salt
    log.write_bytes(damaged)
    async with opened(copy) as store:
        assert store.report.damage
        assert (await store.put(message()) or 0) > 3


@pytest.mark.parametrize("cut", [0, 10, 24, 2000])
async def test_a_transaction_that_a_crash_cut_off_is_no_damage(path: Path, tmp_path: Path, cut: int) -> None:
    async with opened(path) as store:
        for _ in range(3):
            await store.put(message())
        before = path.with_name("events.db-wal").stat().st_size
        copy = crash_copy(path, tmp_path / "crash")
        await store.put(message())
        torn = path.with_name("events.db-wal").read_bytes()[: before + cut]
    copy.with_name("events.db-wal").write_bytes(torn)
    async with opened(copy) as store:
        assert not store.report.damage
        assert store.report.skipped is None
        assert await store.put(message()) == 4


async def test_a_log_with_frames_of_an_older_generation_is_no_damage(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        for _ in range(20):
            await store.put(message())
        with contextlib.closing(sqlite3.connect(path)) as reader:
            reader.execute(
                "PRAGMA wal_checkpoint(PASSIVE)"
            )  # all is in the database: the next commit begins the log anew
        await store.put(message())
        copy = crash_copy(path, tmp_path / "crash")
    async with opened(copy) as store:
        assert not store.report.damage
        assert await store.put(message()) == 22


async def test_a_deleted_database_does_not_start_the_sequence_again(path: Path) -> None:
    async with opened(path) as store:
        await store.put(message())
    path.unlink()
    async with opened(path) as store:
        assert store.report.created
        assert store.report.skipped is not None
        assert (await store.put(message()) or 0) > 1


async def test_an_old_copy_put_back_does_not_repeat_numbers(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        await store.put(message())
        old = crash_copy(path, tmp_path / "old")
    with contextlib.closing(sqlite3.connect(path)) as connection:  # stands for BLOCK events, which take a while to put
        connection.execute("UPDATE meta SET value = ? WHERE key = 'next_sequence'", (3 * BLOCK,))
        connection.commit()
    async with opened(path) as store:
        highest = await store.put(message())
    shutil.copy(old, path)
    async with opened(path) as store:
        assert (await store.put(message()) or 0) > (highest or 0)


@pytest.mark.parametrize(
    ("gone", "same"),
    [
        ((), True),
        (("events.db.sequence",), True),
        (("events.db",), True),  # counting goes on at the bound
        (("events.db", "events.db.sequence"), False),
    ],
    ids=["nothing", "the file beside it", "the database", "both"],
)
async def test_numbers_begin_again_in_another_series_only(path: Path, gone: tuple[str, ...], same: bool) -> None:
    async with opened(path) as store:
        series = store.series
        await store.put(message())
    for name in gone:
        path.with_name(name).unlink()
    async with opened(path) as store:
        assert (store.series == series) is same
        assert ((await store.put(message()) or 0) > 1) is same
        again = store.series
    async with opened(path) as store:
        assert store.series == again


async def test_the_series_comes_from_both_homes_after_an_agent_that_knew_of_none(path: Path) -> None:
    async with opened(path) as store:
        await store.put(message())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM meta WHERE key = 'series'")
    bound, generation, _ = path.with_name("events.db.sequence").read_text().split()
    path.with_name("events.db.sequence").write_text(f"{bound}\n{generation}\n")
    async with opened(path) as store:
        series = store.series
        assert re.fullmatch("[0-9a-f]{12}", series)
        assert await store.put(message()) == 2
    path.unlink()
    async with opened(path) as store:
        assert store.series == series


async def test_a_database_of_a_newer_agent_is_left_alone(path: Path) -> None:
    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(StorageError, match="newer agent"):
        await OutboxStore.open(path, CONFIG)
    assert path.exists()


# --- disks ------------------------------------------------------------------------------------------------------------


async def test_a_path_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"events\.db"):
        await OutboxStore.open(tmp_path / "file" / "events.db", CONFIG)


@pytest.mark.skipif(os.geteuid() != 0, reason="dropping to another user needs root")
def test_a_read_only_folder_says_so_with_a_hint(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents):
        with contextlib.suppress(OSError):
            folder.chmod(folder.stat().st_mode | 0o555) if str(folder).startswith(str(tmp_path.parents[2])) else None
    script = (
        "import asyncio, os, sys, pathlib\n"
        "from agent.outbox.store import OutboxStore; from agent.config.schema import OutboxConfig\n"
        "from agent.errors import StorageError\n"
        "os.setuid(65534)\n"
        "try: asyncio.run(OutboxStore.open(pathlib.Path(sys.argv[1]), OutboxConfig()))\n"
        "except StorageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(state / "events.db")], capture_output=True, text=True, check=True
    )
    assert "writable by the user" in done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> AsyncIterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=False).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_fails_the_put_keeps_what_was_committed_and_recovers(small_disk: Path) -> None:
    path = small_disk / "events.db"
    async with opened(path) as store:
        committed: list[int | None] = []

        async def fill() -> None:
            while True:
                committed.append(await store.put(message(payload=lambda _: b"x" * 10_000)))

        with pytest.raises(StorageFullError):
            await fill()
        assert committed == list(range(1, len(committed) + 1))
        with pytest.raises(StorageFullError):
            await store.put(message(payload=lambda _: b"x" * 50_000))
        subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
        assert await store.put(message()) == len(committed) + 1
        records = await store.fetch(Lane.EVENT, 10_000)
        assert [record.sequence for record in records] == list(range(1, len(committed) + 2))


async def test_a_foreign_write_lock_fails_the_put_and_recovers(path: Path) -> None:
    async with opened(path) as store:
        assert await store.put(message()) == 1
        with contextlib.closing(sqlite3.connect(path)) as intruder:
            intruder.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="second agent"):
                await store.put(message())
        assert await store.put(message()) == 2
