"""What the store gives up: who goes first, what subscribers are told, and that no number is ever without an explanation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from agent.config.delivery import OutboxConfig
from agent.errors import StorageError, StorageFullError
from agent.events.cloudevents import load_schema
from agent.events.gaps import parse_gap, render_gap
from agent.events.ids import Uuid7
from agent.outbox.backup import back_up
from agent.outbox.database import _replace, open_database
from agent.outbox.history import EventQuery, EventRow
from agent.outbox.sequence import SequenceReserve
from agent.outbox.store import OutboxStore
from agent.outbox.tables import SEQUENCED
from agent.ports import Message
from agent.types import GAP, Lane, Loss, LossReason

ROOMY = OutboxConfig(reserve_bytes=0)
SCHEMA = jsonschema.Draft202012Validator(load_schema("gap"), format_checker=jsonschema.FormatChecker())
DAY_US = 86_400_000_000
new_id = Uuid7()


def announce(loss: Loss, series: str) -> Message:
    """As the agent does it."""
    event_id, now = new_id(), datetime.now(UTC)

    def payload(sequence: int | None) -> bytes:
        return render_gap(
            loss, event_id=event_id, device_id="box", sequence=sequence or 0, emitted_utc=now, series=series
        )

    return Message(Lane.ALARM, event_id, "t/gap", payload, kind=GAP, t_utc_iso=now.isoformat())


def message(lane: Lane = Lane.EVENT, size: int = 100, topic: str = "t") -> Message:
    return Message(lane, new_id(), topic, lambda _: b"x" * size, kind="fight")


@contextlib.asynccontextmanager
async def opened(
    path: Path, config: OutboxConfig = ROOMY, clock_us: Callable[[], int] | None = None
) -> AsyncIterator[OutboxStore]:
    options = {} if clock_us is None else {"clock_us": clock_us}
    store = await OutboxStore.open(path, config, announce=announce, **options)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "events.db"


async def upkeep(store: OutboxStore) -> None:
    """Have the minute's work done now."""
    store._writer._upkeep.due_s = 0.0
    await store.delete([])
    await store.depth()  # answered after the upkeep that followed


async def history(store: OutboxStore) -> list[EventRow]:
    return await store.events(EventQuery(limit=None))


def gaps(rows: list[EventRow]) -> list[Loss]:
    """What was announced; each message is held against the schema."""
    found = []
    for row in rows:
        if row.kind == GAP:
            SCHEMA.validate(json.loads(row.payload))
            gap = parse_gap(row.payload)
            assert gap.sequence == row.sequence
            found.append(gap.loss)
    return found


def numbers(losses: list[Loss]) -> set[int]:
    return {number for loss in losses for first, last in loss.ranges for number in range(first, last + 1)}


async def unexplained(store: OutboxStore) -> set[int]:
    """Numbers below the next one that are neither to be delivered, nor delivered, nor announced as lost."""
    rows = await history(store)
    next_sequence = store._writer._next_sequence
    kept = {row.sequence for row in rows if row.delivery in {"pending", "delivered"}}
    return set(range(1, next_sequence)) - kept - numbers(gaps(rows))


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_full_lane_gives_up_its_oldest_and_says_which(path: Path) -> None:
    config = OutboxConfig(reserve_bytes=0, event_max_bytes=100_000)
    heard: list[Loss] = []
    async with opened(path, config) as store:
        store.on_loss(heard.append)
        for _ in range(300):
            await store.put(message(size=1000))
            assert (await store.depth())[Lane.EVENT].size_bytes <= 100_000
        rows = await history(store)
        lost = gaps(rows)
        assert {(loss.reason, loss.lane) for loss in lost} == {(LossReason.BYTES, Lane.EVENT)}
        assert heard == lost
        pending = [row.sequence for row in rows if row.delivery == "pending" and row.kind != GAP]
        assert numbers(lost) == set(range(1, min(pending))) - {row.sequence for row in rows if row.kind == GAP}
        assert sum(loss.lost or 0 for loss in lost) == len(numbers(lost))
        assert len(lost) < 30  # a tenth of the lane at a time, not one by one
        assert not await unexplained(store)


async def test_announcements_are_never_given_up(path: Path) -> None:
    config = OutboxConfig(reserve_bytes=0, alarm_max_bytes=100_000, alarm_max_age_s=60)
    now_us = 10 * DAY_US
    async with opened(path, config, lambda: now_us) as store:
        for _ in range(300):
            await store.put(message(Lane.ALARM, size=1000))
        before = len(gaps(await history(store)))
        assert before > 2
        now_us += DAY_US
        await upkeep(store)
        waiting = await store.fetch(Lane.ALARM, 1000)
        assert waiting
        assert all(record.topic == "t/gap" for record in waiting)
        assert len(waiting) == before + 1  # the alarms that were left have grown too old, in one announcement
        assert not await unexplained(store)


@pytest.mark.parametrize("lane", [Lane.STATE, Lane.TELEMETRY])
async def test_lanes_without_a_sequence_are_kept_short_and_counted(path: Path, lane: Lane) -> None:
    config = OutboxConfig(reserve_bytes=0, state_max_bytes=100_000, telemetry_max_bytes=100_000)
    heard: list[Loss] = []
    async with opened(path, config) as store:
        store.on_loss(heard.append)
        for n in range(150):
            await store.put(message(lane, size=1000, topic=f"t{n}"))
        depth = (await store.depth())[lane]
        assert depth.size_bytes <= 100_000
        assert sum(loss.lost or 0 for loss in heard) == 150 - depth.rows
        assert all(loss.lane is lane and loss.ranges == () for loss in heard)
        assert await history(store) == []


async def test_what_waited_too_long_is_given_up_and_stays_in_the_history(path: Path) -> None:
    config = OutboxConfig(reserve_bytes=0, event_max_age_s=3600, alarm_max_age_s=7200, history_days=30)
    now_us = 100 * DAY_US
    async with opened(path, config, lambda: now_us) as store:
        await store.put(message(Lane.ALARM))
        await store.put(message(Lane.EVENT))
        now_us += 3601 * 1_000_000
        await store.put(message(Lane.EVENT))
        await upkeep(store)
        rows = await history(store)
        assert [row.delivery for row in rows] == ["pending", "lost", "pending", "pending"]
        assert gaps(rows) == [Loss(LossReason.AGE, Lane.EVENT, ((2, 2),), 1)]
        assert not await unexplained(store)


async def test_a_clock_that_jumps_a_day_ahead_and_back_blocks_nothing(path: Path) -> None:
    config = OutboxConfig(reserve_bytes=0, event_max_age_s=3600)
    now_us = 100 * DAY_US
    async with opened(path, config, lambda: now_us) as store:
        now_us += DAY_US
        await store.put(message())
        now_us -= DAY_US
        await store.put(message())
        now_us += 3601 * 1_000_000
        await upkeep(store)
        assert [row.delivery for row in await history(store)][:2] == ["pending", "lost"]


async def test_a_refused_message_is_announced_and_a_refused_announcement_is_not(path: Path) -> None:
    async with opened(path) as store:
        await store.put(message())
        (record,) = await store.fetch(Lane.EVENT, 10)
        assert await store.dead_letter(record.row_id, "not authorised")
        (announcement,) = await store.fetch(Lane.ALARM, 10)
        assert gaps(await history(store)) == [Loss(LossReason.REFUSED, Lane.EVENT, ((1, 1),), 1, "not authorised")]
        assert await store.dead_letter(announcement.row_id, "not authorised")
        assert [len(await store.fetch(lane, 10)) for lane in Lane] == [0, 0, 0, 0]
        assert len(await store.dead_letters()) == 2


async def test_what_a_producer_gave_up_gets_numbers_and_an_announcement(path: Path) -> None:
    async with opened(path) as store:
        assert await store.put(message()) == 1
        for _ in range(3):
            store.give_up(Lane.ALARM, LossReason.STORAGE)
        assert await store.put(message()) == 2
        assert gaps(await history(store)) == [Loss(LossReason.STORAGE, Lane.ALARM, ((3, 5),), 3)]
        assert await store.put(message()) == 7
        assert not await unexplained(store)


async def test_many_ranges_are_announced_in_several_messages(path: Path) -> None:
    config = OutboxConfig(reserve_bytes=0, event_max_bytes=1_500_000)
    async with opened(path, config) as store:
        for _ in range(14):
            await asyncio.gather(
                *(store.put(message(Lane.ALARM if n % 2 else Lane.EVENT, size=500)) for n in range(400))
            )
        small = config.model_copy(update={"event_max_bytes": 100_000})
        store.reconfigure(small)
        await store.put(message())
        lost = gaps(await history(store))
        assert len(lost) > 4
        assert max(len(loss.ranges) for loss in lost) == 500
        assert all(loss.lost == len(loss.ranges) for loss in lost)
        assert not await unexplained(store)


# --- size of the file -------------------------------------------------------------------------------------------------


async def test_the_file_shrinks_after_a_drain(path: Path) -> None:
    config = OutboxConfig(reserve_bytes=0, history_days=1)
    now_us = 100 * DAY_US
    async with opened(path, config, lambda: now_us) as store:
        for _ in range(20):
            await asyncio.gather(*(store.put(message(size=5000)) for _ in range(100)))
        await store.delete([record.row_id for record in await store.fetch(Lane.EVENT, 10_000)])
        with contextlib.closing(sqlite3.connect(path)) as reader:
            reader.execute("PRAGMA wal_checkpoint(PASSIVE)")
        full = path.stat().st_size
        assert full > 10_000_000
        now_us += 2 * DAY_US
        for _ in range(12):
            await upkeep(store)
        assert await history(store) == []
    assert path.stat().st_size < full / 2


async def test_delivered_history_leaves_early_when_the_database_is_too_large(path: Path) -> None:
    config = OutboxConfig(reserve_bytes=0, max_bytes=3_000_000)
    async with opened(path, config) as store:
        for _ in range(10):
            await asyncio.gather(*(store.put(message(size=5000)) for _ in range(100)))
        records = await store.fetch(Lane.EVENT, 10_000)
        await store.delete([record.row_id for record in records[:900]])
        await upkeep(store)
        rows = await history(store)
        assert len(rows) < 900
        assert [row.sequence for row in rows if row.delivery == "pending"] == list(range(901, 1001))
        assert gaps(rows) == []


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path) -> Path:
    """Somebody else takes every byte that is left."""
    greedy = disk / "somebody-else"
    with greedy.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    return greedy


async def test_alarms_fit_on_a_full_disk_and_everything_is_accounted_for(small_disk: Path) -> None:
    config = OutboxConfig(reserve_bytes=2_000_000)
    async with opened(small_disk / "events.db", config) as store:
        for _ in range(20):
            await asyncio.gather(*(store.put(message()) for _ in range(50)))
        greedy = fill(small_disk)
        alarms = [await store.put(message(Lane.ALARM, size=1000)) for _ in range(60)]
        assert len(set(alarms)) == 60
        fill(small_disk)  # also what the reserve gave back
        alarms += [await store.put(message(Lane.ALARM, size=1000)) for _ in range(60)]
        refused = 0
        for _ in range(2000):
            try:
                await store.put(message(size=2000))
            except StorageFullError:
                refused += 1
                store.give_up(Lane.EVENT, LossReason.SPACE)
            if refused == 5:
                break
        assert refused == 5
        alarms.append(await store.put(message(Lane.ALARM, size=1000)))
        greedy.unlink()
        await upkeep(store)
        await store.put(message(size=2000))
        rows = await history(store)
        assert set(alarms) <= {row.sequence for row in rows if row.delivery == "pending"}
        assert sum(loss.lost or 0 for loss in gaps(rows) if loss.lane is Lane.EVENT) >= refused
        assert not await unexplained(store)


async def test_a_full_disk_is_told_when_the_reserve_goes_and_its_end_when_it_is_held_again(small_disk: Path) -> None:
    told: list[bool] = []
    async with opened(small_disk / "events.db", OutboxConfig(reserve_bytes=2_000_000)) as store:
        store.on_room(told.append)
        greedy = fill(small_disk)
        while (small_disk / "events.db.reserve").exists():
            assert told == []
            await store.put(message(Lane.ALARM))
        assert told == [False]  # though nothing has failed yet
        fill(small_disk)  # also what the reserve gave back
        results = await asyncio.gather(*(store.put(message(size=5000)) for _ in range(1000)), return_exceptions=True)
        assert isinstance(results[-1], StorageFullError)
        await store.put(message(Lane.ALARM))
        await upkeep(store)
        assert told == [False]
        greedy.unlink()
        await upkeep(store)
        await upkeep(store)
        assert told == [False, True]


async def test_a_disk_that_is_too_full_for_the_reserve_at_the_start_is_told_to_who_asks_later(small_disk: Path) -> None:
    told: list[bool] = []
    greedy = fill(small_disk)
    os.truncate(greedy, greedy.stat().st_size - 1_000_000)
    async with opened(small_disk / "events.db", OutboxConfig(reserve_bytes=2_000_000)) as store:
        store.on_room(told.append)
        assert told == [False]
        greedy.unlink()
        await upkeep(store)
        assert told == [False, True]


async def test_on_a_full_disk_history_goes_before_events_and_events_before_alarms(small_disk: Path) -> None:
    config = OutboxConfig(reserve_bytes=1_000_000)
    async with opened(small_disk / "events.db", config) as store:
        for _ in range(20):
            await asyncio.gather(*(store.put(message(size=5000)) for _ in range(50)))
        await store.delete([record.row_id for record in await store.fetch(Lane.EVENT, 500)])  # 500 delivered, 500 wait
        fill(small_disk)
        count = 0
        while count < 1500 and not gaps(await history(store)):
            await asyncio.gather(*(store.put(message(Lane.ALARM, size=8000)) for _ in range(10)))
            count += 10
        rows = await history(store)
        assert gaps(rows)
        assert not [row for row in rows if row.delivery == "delivered"]  # all of it went before the first event
        assert {loss.lane for loss in gaps(rows)} == {Lane.EVENT}
        assert len([row for row in rows if row.lane is Lane.ALARM and row.kind != GAP]) == count


async def test_a_database_on_a_disk_that_is_full_already_opens_and_takes_alarms(small_disk: Path) -> None:
    database = small_disk / "events.db"
    config = OutboxConfig(reserve_bytes=2_000_000)
    async with opened(database, config) as store:
        for _ in range(10):
            await store.put(message())
    fill(small_disk)
    async with opened(database, config) as store:
        assert await store.put(message(Lane.ALARM)) == 11


# --- damage -----------------------------------------------------------------------------------------------------------


def damage_pages(path: Path, pages: list[int]) -> None:
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    for page in pages:
        content[page * size : page * size + 200] = os.urandom(200)
    path.write_bytes(content)


async def filled(path: Path, count: int = 400) -> None:
    """`count` messages in both sequenced lanes, every third delivered, and a state."""
    async with opened(path) as store:
        for start in range(0, count, 20):
            lanes = [Lane.ALARM if n % 5 == 0 else Lane.EVENT for n in range(start, min(start + 20, count))]
            await asyncio.gather(*(store.put(message(lane, size=300)) for lane in lanes))
        await store.put(message(Lane.STATE))
        records = [record for lane in SEQUENCED for record in await store.fetch(lane, 10_000)]
        await store.delete([record.row_id for record in records if (record.sequence or 0) % 3 == 0])


@pytest.mark.parametrize("seed", range(12))
async def test_what_can_be_read_of_a_damaged_database_is_kept_and_the_rest_is_announced(path: Path, seed: int) -> None:
    await filled(path)
    before = sqlite3.connect(path)
    delivered = {row[0] for row in before.execute("SELECT sequence FROM events WHERE delivery = 'delivered'")}
    before.close()
    pages = path.stat().st_size // 4096
    damage_pages(path, [5 + (seed * 37 + step * 11) % (pages - 5) for step in range(1 + seed % 4)])
    async with opened(path) as store:
        report = store.report
        if report.set_aside is None:
            assert not report.damage  # the page was free, or nothing in it is checked
            return
        rows = await history(store)
        assert len(rows) > 100
        lost = gaps(rows)
        assert {loss.reason for loss in lost} <= {LossReason.DAMAGE}
        assert not await unexplained(store)
        pending = {row.sequence for row in rows if row.delivery == "pending" and row.kind != GAP}
        delivered_now = {row.sequence for row in rows if row.delivery == "delivered"}
        assert delivered_now <= delivered  # whoever was delivered may come twice; nobody who waited is forgotten
        assert pending | numbers(lost) >= set(range(1, 401)) - delivered
        assert (await store.put(message()) or 0) > 400


async def test_deliveries_that_cannot_be_read_are_made_again(path: Path) -> None:
    await filled(path, 60)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'outbox'").fetchone()
    damage_pages(path, [root - 1])
    async with opened(path) as store:
        rows = await history(store)
        assert [row.delivery for row in rows if row.kind != GAP] == ["pending"] * 60
        assert numbers(gaps(rows)).isdisjoint(range(1, 61))


async def test_a_damaged_database_on_a_full_disk_is_replaced_by_an_empty_one(small_disk: Path) -> None:
    database = small_disk / "events.db"
    async with opened(database, OutboxConfig(reserve_bytes=1_000_000)) as store:
        for _ in range(20):
            await asyncio.gather(*(store.put(message(size=8000)) for _ in range(50)))
    damage_pages(database, [7, 9])
    fill(small_disk)
    async with opened(database, OutboxConfig(reserve_bytes=1_000_000)) as store:
        assert store.report.set_aside is not None
        assert store.report.set_aside.stat().st_size > 8_000_000  # for whoever wants to have a look
        assert (await store.put(message(Lane.ALARM)) or 0) > 1000
        assert numbers(gaps(await history(store))) >= set(range(1, 1001))


async def test_damaged_files_do_not_pile_up(path: Path) -> None:
    for _ in range(4):
        await filled(path, 10)
        path.write_bytes(b"SQLite format 3\x00" + os.urandom(5000))
    async with opened(path):
        assert len([file for file in path.parent.glob("events.db.corrupt-*") if file.suffix != ".db-wal"]) == 2


async def test_a_replacement_that_was_cut_off_is_finished_by_the_next_start(path: Path) -> None:
    await filled(path, 50)
    shutil.copy(path, path.with_name("events.db.salvaged"))  # complete, and the damaged one has been moved already
    path.rename(path.with_name("events.db.corrupt-20260101T000000.000000Z"))
    async with opened(path) as store:
        assert store.report.damage
        assert len([row for row in await history(store) if row.kind != GAP]) == 50
        assert not await unexplained(store)
    assert not path.with_name("events.db.salvaged").exists()


async def test_commits_lost_in_the_log_are_announced(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        for _ in range(8):
            await store.put(message())
        shutil.copytree(path.parent, tmp_path / "crash")
    copy = tmp_path / "crash" / path.name
    log = copy.with_name("events.db-wal")
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    async with opened(copy) as store:
        kept = {row.sequence for row in await history(store) if row.kind != GAP}
        assert kept < set(range(1, 9))
        assert numbers(gaps(await history(store))) >= set(range(1, 9)) - kept
        assert not await unexplained(store)


# --- copies -----------------------------------------------------------------------------------------------------------


async def test_a_copy_that_is_a_few_numbers_old_repeats_none_of_them(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        await store.put(message())
    old = tmp_path / "old.db"
    shutil.copy(path, old)
    async with opened(path) as store:
        highest = [await store.put(message()) for _ in range(5)][-1]
    shutil.copy(old, path)
    async with opened(path) as store:
        number = await store.put(message())
        rows = await history(store)
        assert (number or 0) > (highest or 0)
        assert [loss.reason for loss in gaps(rows)] == [LossReason.RESTORED]
        assert not await unexplained(store)


async def test_a_copy_taken_while_running_is_known_a_minute_later(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        await store.put(message())
        shutil.copytree(path.parent, tmp_path / "old")
        highest = await store.put(message())
        await upkeep(store)
        shutil.copytree(path.parent, tmp_path / "crash")  # a crash: nothing more is written
    reserve = "events.db.sequence"
    shutil.copy(tmp_path / "crash" / reserve, tmp_path / "old" / reserve)
    async with opened(tmp_path / "old" / path.name) as store:
        assert (await store.put(message()) or 0) > (highest or 0)
        assert not await unexplained(store)


async def test_a_backup_made_while_events_flow_can_be_restored(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    async with opened(path) as store:
        first = [await store.put(message()) for _ in range(50)]
        await store.delete([record.row_id for record in (await store.fetch(Lane.EVENT, 10))])
        stop = asyncio.Event()

        async def flow() -> None:
            while not stop.is_set():
                await store.put(message())

        flowing = asyncio.create_task(flow())
        await asyncio.sleep(0.05)
        assert await asyncio.to_thread(back_up, path, target) > 4096
        stop.set()
        await flowing
        highest = await store.put(message())
    with pytest.raises(StorageError, match="is there already"):
        back_up(path, target)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copy(target, path)
    async with opened(path) as store:
        assert (await store.put(message()) or 0) > (highest or 0)
        rows = await history(store)
        assert {row.sequence for row in rows} >= set(first)
        assert [row.delivery for row in rows[:11]] == ["delivered"] * 10 + ["pending"]
        assert [loss.reason for loss in gaps(rows)] == [LossReason.RESTORED]
        assert not await unexplained(store)


async def test_a_backup_restored_on_another_box_repeats_no_number(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    async with opened(path) as store:
        await store.put(message())
        await asyncio.to_thread(back_up, path, target)
        highest = [await store.put(message()) for _ in range(20)][-1]
    elsewhere = tmp_path / "elsewhere" / "events.db"
    elsewhere.parent.mkdir()
    shutil.copy(target, elsewhere)
    async with opened(elsewhere) as store:
        assert (await store.put(message()) or 0) > (highest or 0)
        assert all(
            f'"series":"{store.series}"'.encode() in row.payload for row in await history(store) if row.kind == GAP
        )
        assert numbers_of(gaps(await history(store))) == [(2, 1_000_000_001)]
    async with opened(elsewhere) as store:
        assert not store.report.losses  # told once


def numbers_of(losses: list[Loss]) -> list[tuple[int, int]]:
    return [run for loss in losses for run in loss.ranges]


def test_a_backup_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no event database here"):
        back_up(tmp_path / "events.db", tmp_path / "copy.db")
    assert list(tmp_path.iterdir()) == []


# --- schemas ----------------------------------------------------------------------------------------------------------


async def test_a_database_of_the_first_schema_is_brought_up_to_date(path: Path) -> None:
    script = resources.files("agent.outbox.migrations").joinpath("0001_messages.sql").read_text(encoding="utf-8")
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(script)
        old.execute(
            "INSERT INTO messages VALUES (1, 1, 1, 'id', 't', x'78', 'application/json', 0, 'fight', 'detected', 'door', 5, 6)"
        )
        old.execute("INSERT INTO outbox (message_id, lane, size_bytes, t_created_us) VALUES (1, 1, 1, 6)")
        old.execute("UPDATE meta SET value = 2 WHERE key = 'next_sequence'")
        old.execute("PRAGMA user_version=1")
        old.commit()
    path.with_name("events.db.sequence").write_text("10001\n")
    async with opened(path) as store:
        assert store.report.skipped is None
        assert await store.put(message()) == 2
        assert [row.sequence for row in await history(store)] == [1, 2]
        assert await store.sink_depth() == {}


# --- values that nobody wrote -----------------------------------------------------------------------------------------

_LARGEST = (1 << 63) - 1


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE messages SET message_id = {_LARGEST} WHERE message_id = 3",
        f"UPDATE messages SET sequence = {_LARGEST} WHERE message_id = 3",
        "UPDATE messages SET sequence = -4 WHERE message_id = 3",
        "UPDATE messages SET sequence = 2 WHERE message_id = 3",
        "UPDATE outbox SET lane = 77 WHERE message_id = 3",
        f"UPDATE outbox SET size_bytes = {_LARGEST}",
        "PRAGMA ignore_check_constraints = 1; UPDATE marks SET settled = 2 WHERE lane = 1",
        f"UPDATE marks SET settled = {_LARGEST}, mirror = -1 - {_LARGEST} WHERE lane = 1",
        "DELETE FROM marks WHERE lane = 1",
        f"UPDATE meta SET value = {_LARGEST} WHERE key = 'next_sequence'",
        f"UPDATE meta SET value = {_LARGEST} WHERE key = 'generation'",
        "DELETE FROM meta WHERE key = 'copied'",
        "DROP TABLE meta",
        "DROP TABLE outbox",
        "DROP TABLE cursors",
        "DROP TABLE marks",
        "PRAGMA user_version = 0",
    ],
)
async def test_a_database_whose_values_make_no_sense_is_damaged(path: Path, change: str) -> None:
    async with opened(path) as store:
        await asyncio.gather(*(store.put(message()) for _ in range(3)))
        store.mark_attempt([1, 2, 3])  # so that they are listed in `outbox`
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(change)
    async with opened(path) as store:
        assert store.report.set_aside is not None
        assert 3 < (await store.put(message()) or 0) < 100_000
        kept = {record.sequence for record in await store.fetch(Lane.EVENT, 10)}
        assert kept >= {1, 2}
        assert kept | numbers(gaps(await history(store))) >= {1, 2, 3}
        assert not await unexplained(store)


@pytest.mark.parametrize("bound", ["99999999999999999999\n1\n", f"10001\n{_LARGEST}\n"])
async def test_a_bound_that_makes_no_sense_is_not_believed(path: Path, bound: str) -> None:
    async with opened(path) as store:
        await store.put(message())
    path.with_name("events.db.sequence").write_text(bound)
    async with opened(path) as store:
        assert await store.put(message()) == 2


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE messages SET t_created_us = {_LARGEST}, t_event_us = {-_LARGEST} WHERE message_id = 1",
        f"UPDATE outbox SET t_created_us = {_LARGEST} WHERE message_id = 1",
        "UPDATE outbox SET t_created_us = -5 WHERE message_id = 1",
        "UPDATE messages SET t_created_us = 'x', t_event_us = 2.5 WHERE message_id = 1",
        "UPDATE messages SET topic = CAST(x'ff41' AS TEXT) WHERE message_id = 1",
        "UPDATE messages SET topic = x'41', payload = 7 WHERE message_id = 1",
    ],
)
async def test_a_damaged_time_or_letter_does_not_stop_the_lane(path: Path, change: str) -> None:
    async with opened(path) as store:
        await asyncio.gather(*(store.put(message()) for _ in range(3)))
        store.mark_attempt([1])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
        connection.commit()
    async with opened(path) as store:
        records = await store.fetch(Lane.EVENT, 10)
        assert [record.sequence for record in records] == [1, 2, 3]
        assert {(type(record.topic), type(record.payload)) for record in records} == {(str, bytes)}
        assert len(await history(store)) == 3


def damage_a_free_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    first_free, free = struct.unpack(">II", content[32:40])
    assert free
    content[(first_free - 1) * 4096 : (first_free - 1) * 4096 + 400] = b"\x5a" * 400
    path.write_bytes(content)


@pytest.mark.parametrize("checked", [True, False])
async def test_a_free_page_that_is_damaged_stops_nothing(path: Path, *, checked: bool) -> None:
    """SQLite's check passes over free pages where a view is the last of the schema; then it shows when they are used."""
    async with opened(path) as store:
        await asyncio.gather(*(store.put(message(size=20_000)) for _ in range(3)))
        await store.delete([1])
        await store._ask(lambda tables: tables.drop_history(1), writes=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (view,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'events'").fetchone()
        if not checked:
            connection.executescript(f"DROP VIEW events; {view}")
    damage_a_free_page(path)
    async with opened(path) as store:
        assert (store.report.set_aside is not None) is checked
        numbers_given = []
        for _ in range(8):
            with contextlib.suppress(StorageError):
                numbers_given.append(await store.put(message(size=20_000)))
        assert len(numbers_given) >= 6
        assert store.report.set_aside is not None
        kept = [record.sequence for record in await store.fetch(Lane.EVENT, 20)]
        assert {2, 3, *numbers_given} <= set(kept)
        assert not await unexplained(store)


# --- cut off ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["damaged", "replaced", "gone", "copy"])
async def test_what_opening_found_missing_is_announced_by_a_later_start_when_this_one_is_cut_off(
    path: Path, case: str
) -> None:
    await filled(path, 40)
    old = path.read_bytes()
    await filled(path, 40)
    if case == "copy":
        path.write_bytes(old)
    elif case == "gone":
        path.unlink()
    else:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("DELETE FROM messages WHERE sequence IN (11, 12)")  # as if their page could not be read
            connection.commit()
        damage_pages(path, [path.stat().st_size // 4096 - 1])
    if case == "replaced":
        _replace(path)
    else:
        open_database(path, SequenceReserve(path.with_name("events.db.sequence")))[0].close()
    for _ in range(2):
        async with opened(path) as store:
            (loss,) = gaps(await history(store))  # once
            assert not await unexplained(store)
            assert loss.reason is (LossReason.RESTORED if case == "copy" else LossReason.DAMAGE)
            assert (await store.put(message()) or 0) > 80
            if case in {"damaged", "replaced"}:
                assert {11, 12} <= numbers([loss])


async def test_more_given_up_than_a_block_of_numbers_stays_below_the_bound(path: Path) -> None:
    async with opened(path) as store:
        for _ in range(25_000):
            store.give_up(Lane.EVENT, LossReason.STORAGE)
        highest = await store.put(message())
        await store.delete([])
        assert numbers(gaps(await history(store))) == set(range(2, 25_002))
    path.unlink()
    async with opened(path) as store:
        assert (await store.put(message()) or 0) > 25_002 > (highest or 0)


async def test_what_an_error_says_cannot_keep_its_loss_from_being_announced(path: Path) -> None:
    async with opened(path) as store:
        await store.keep_sinks(["pager"])
        await store.put(message())
        (record,) = await store.fetch_after("pager", 1)
        await store.sink_refused("pager", record, "413 \udcff")
        (loss,) = gaps(await history(store))
        assert loss.detail == "413 ?"


async def test_an_alarm_is_not_stopped_by_an_event_that_is_too_large_for_a_full_disk(small_disk: Path) -> None:
    async with opened(small_disk / "events.db", OutboxConfig(reserve_bytes=1_000_000)) as store:
        await store.put(message())
        fill(small_disk)
        event, alarm = await asyncio.gather(
            store.put(message(size=3_000_000)), store.put(message(Lane.ALARM)), return_exceptions=True
        )
        assert isinstance(event, StorageFullError)
        assert isinstance(alarm, int)
        assert not await unexplained(store)


async def test_dead_letters_leave_when_the_database_is_too_large(path: Path) -> None:
    config = OutboxConfig(reserve_bytes=0, max_bytes=1_000_000)
    async with opened(path, config) as store:
        for _ in range(4):
            await asyncio.gather(*(store.put(message(size=8000)) for _ in range(50)))
        for record in await store.fetch(Lane.EVENT, 200):
            await store.dead_letter(record.row_id, "no")
        await store.delete([record.row_id for record in await store.fetch(Lane.ALARM, 1000)])
        for _ in range(3):
            await upkeep(store)
        assert await store.dead_letters() == []
