"""Further sinks: each has its own place in the history, holds nobody back, and hears what it missed."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from agent.config.delivery import CommandsConfig, OutboxConfig
from agent.errors import StorageError, StorageFullError
from agent.outbox.audit import refused_id, select_commands
from agent.outbox.history import EventQuery
from agent.outbox.store import OutboxStore
from agent.outbox.tables import Requeued, Tables
from agent.ports import Message
from agent.types import GAP, Lane, Loss

DAY_US = 86_400_000_000


def message(lane: Lane = Lane.EVENT, name: str = "id") -> Message:
    return Message(lane, name, "t", lambda sequence: b"%d" % (sequence or 0), kind="fight")


async def upkeep(store: OutboxStore) -> None:
    store._writer._upkeep.due_s = 0.0
    await store.put(message(Lane.STATE))
    await store.depth()  # answered after the upkeep that followed


def announce(loss: Loss, series: str) -> Message:
    text = f"{loss.reason} {loss.sink} {loss.ranges}".encode()
    return Message(Lane.ALARM, "gap", "t/gap", lambda _: text, kind=GAP)


@contextlib.asynccontextmanager
async def opened(path: Path, clock_us: Callable[[], int] | None = None, **keys: float) -> AsyncIterator[OutboxStore]:
    options = {} if clock_us is None else {"clock_us": clock_us}
    config = OutboxConfig(reserve_bytes=0, **keys)  # type: ignore[arg-type]
    store = await OutboxStore.open(path, config, announce=announce, **options)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


async def numbers(store: OutboxStore, sink: str, limit: int = 100) -> list[int | None]:
    return [record.sequence for record in await store.fetch_after(sink, limit)]


async def test_a_sink_begins_with_the_next_message_and_goes_on_where_it_was_after_a_restart(path: Path) -> None:
    async with opened(path) as store:
        await store.put(message())
        await store.keep_sinks(["pager"])
        for lane in (Lane.EVENT, Lane.ALARM, Lane.STATE, Lane.EVENT):
            await store.put(message(lane))
        assert await numbers(store, "pager") == [2, 3, 4]
        assert await numbers(store, "pager", 2) == [2, 3]
        store.sink_done("pager", 3)
        await store.delete([])
        assert await numbers(store, "pager") == [4]
    async with opened(path) as store:
        await store.keep_sinks(["pager"])
        assert await numbers(store, "pager") == [4]
        store.sink_done("pager", 2)  # never back
        await store.delete([])
        assert await numbers(store, "pager") == [4]


async def test_sinks_and_the_broker_do_not_wait_for_each_other(path: Path) -> None:
    async with opened(path) as store:
        await store.keep_sinks(["fast", "slow"])
        await asyncio.gather(*(store.put(message()) for _ in range(10)))
        store.sink_done("fast", 10)
        await store.delete([record.row_id for record in await store.fetch(Lane.EVENT, 4)])
        assert (await numbers(store, "fast"), len(await numbers(store, "slow"))) == ([], 10)
        assert len(await store.fetch(Lane.EVENT, 100)) == 6
        depth = await store.sink_depth()
        assert (depth["fast"].numbers, depth["slow"].numbers) == (0, 10)
        assert depth["fast"].oldest_age_s == 0 < depth["slow"].oldest_age_s


async def test_a_sink_that_is_not_configured_any_more_is_forgotten(path: Path) -> None:
    async with opened(path) as store:
        await store.keep_sinks(["old"])
        await store.put(message())
        await store.keep_sinks(["new"])
        assert set(await store.sink_depth()) == {"new"}
        assert await numbers(store, "old") == []


async def test_what_the_history_could_not_keep_for_a_sink_is_announced_with_its_name(path: Path) -> None:
    now_us = 100 * DAY_US
    async with opened(path, lambda: now_us, history_days=10) as store:
        await store.keep_sinks(["fast", "slow"])
        for _ in range(5):
            await store.put(message())
        store.sink_done("fast", 5)
        await store.delete([record.row_id for record in await store.fetch(Lane.EVENT, 4)])
        now_us += 11 * DAY_US
        store._writer._upkeep.due_s = 0.0
        await store.delete([])
        rows = [row for row in await store.events(EventQuery()) if row.kind == GAP]
        assert [row.payload for row in rows] == [b"age slow ((1, 4),)"]
        assert await numbers(store, "slow") == [
            5,
            6,
        ]  # the fifth still waits for the broker, the sixth is the announcement


async def test_a_message_that_a_sink_refuses_is_passed_over_and_announced_for_that_sink(path: Path) -> None:
    async with opened(path) as store:
        await store.keep_sinks(["pager", "other"])
        await store.put(message())
        await store.put(message())
        (record,) = await store.fetch_after("pager", 1)
        await store.sink_refused("pager", record, "413")
        assert await numbers(store, "pager") == [2, 3]
        assert await numbers(store, "other") == [1, 2, 3]
        (gap,) = [row for row in await store.events(EventQuery()) if row.kind == GAP]
        assert gap.payload == b"refused pager ((1, 1),)"
        await store.sink_refused("pager", (await store.fetch_after("pager", 2))[1], "413")  # the announcement itself
        assert len([row for row in await store.events(EventQuery()) if row.kind == GAP]) == 1


async def test_failed_attempts_belong_to_the_next_message(path: Path) -> None:
    async with opened(path) as store:
        await store.keep_sinks(["pager"])
        for _ in range(2):
            await store.put(message())
        for _ in range(3):
            await store.sink_failed("pager")
        assert [record.attempts for record in await store.fetch_after("pager", 10)] == [3, 0]
        store.sink_done("pager", 1)
        await store.delete([])
        assert [record.attempts for record in await store.fetch_after("pager", 10)] == [0]


async def test_a_failed_attempt_right_behind_a_delivery_counts(path: Path) -> None:
    async with opened(path) as store:
        await store.keep_sinks(["pager"])
        for _ in range(2):
            await store.put(message())
        store.sink_done("pager", 1)
        await store.sink_failed("pager")
        assert [record.attempts for record in await store.fetch_after("pager", 10)] == [1]


async def test_a_salvaged_database_keeps_the_places(path: Path) -> None:
    async with opened(path) as store:
        await store.keep_sinks(["pager"])
        await asyncio.gather(*(store.put(message(name="x" * 200)) for _ in range(200)))
        store.sink_done("pager", 150)
    content = bytearray(path.read_bytes())
    content[-4096 * 3 : -4096 * 3 + 200] = b"\xff" * 200
    path.write_bytes(content)
    async with opened(path) as store:
        assert store.report.set_aside is not None
        assert min(number or 0 for number in await numbers(store, "pager")) > 150


async def test_a_database_that_is_replaced_while_running_has_places_for_the_sinks(path: Path) -> None:
    async with opened(path) as store:
        await store.keep_sinks(["pager"])
        await store.put(message())
        with pytest.raises(StorageError):
            await store._ask(lambda _: _lose(store))
        path.write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)
        path.with_name("events.db-wal").unlink(missing_ok=True)
        number = await store.put(message())
        assert store.report.set_aside is not None
        assert number in await numbers(store, "pager")


def _lose(store: OutboxStore) -> None:
    """As after an I/O error, on the store's own thread."""
    store._writer._close()
    raise sqlite3.OperationalError("disk I/O error")


# --- sent again on request --------------------------------------------------------------------------------------------


async def test_events_of_the_history_wait_again_when_they_are_asked_for(path: Path) -> None:
    async with opened(path) as store:
        for lane in (Lane.EVENT, Lane.ALARM, Lane.EVENT, Lane.EVENT):
            await store.put(message(lane))
        rows = {record.sequence: record for lane in Lane for record in await store.fetch(lane, 10)}
        await store.delete([rows[1].row_id, rows[2].row_id])
        await store.dead_letter(rows[3].row_id, "no")
        answer = await store.requeue(2, 9)
        assert answer.found == 4  # 2, 3 (a dead letter), 4 (waiting anyway), 5 (the gap that announced 3)
        assert answer.missing == ((6, 9),)
        assert answer.lowest == {Lane.ALARM: rows[2].row_id, Lane.EVENT: rows[3].row_id}
        assert [record.sequence for record in await store.fetch(Lane.ALARM, 10)] == [2, 5]
        assert [record.sequence for record in await store.fetch(Lane.EVENT, 10)] == [3, 4]
        assert await store.dead_letters() == []
        assert (await store.depth())[Lane.EVENT].rows == 2
    async with opened(path) as store:
        assert (await store.depth())[Lane.EVENT].rows == 2


async def test_an_event_that_was_delivered_a_moment_ago_waits_again_when_it_is_asked_for(path: Path) -> None:
    async with opened(path) as store:
        await store.put(message())
        store.forget([record.row_id for record in await store.fetch(Lane.EVENT, 1)])  # goes along with the next commit
        assert (await store.requeue(1, 1)).lowest == {Lane.EVENT: 1}
        assert [record.sequence for record in await store.fetch(Lane.EVENT, 10)] == [1]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
async def test_a_long_range_is_queued_again_in_steps(path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("agent.outbox.tables.REQUEUE_ROWS", rows)
    async with opened(path) as store:
        for n in range(12):
            await store.put(message((Lane.EVENT, Lane.ALARM, Lane.STATE)[n % 3]))  # 8 with numbers
        await store.delete([record.row_id for lane in Lane for record in await store.fetch(lane, 20)])
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM messages WHERE sequence IN (1, 4, 5)")
    async with opened(path) as store:
        done = await store.requeue(1, 20)
        assert done.found == 5
        assert done.missing == ((1, 1), (4, 5), (9, 20))
        assert [record.sequence for record in await store.fetch(Lane.EVENT, 10)] == [3, 7]
        assert [record.sequence for record in await store.fetch(Lane.ALARM, 10)] == [2, 6, 8]
        assert done.lowest == {lane: (await store.fetch(lane, 1))[0].row_id for lane in (Lane.EVENT, Lane.ALARM)}


async def test_a_message_that_comes_meanwhile_does_not_wait_for_a_long_range(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.outbox.tables.REQUEUE_ROWS", 1)
    async with opened(path) as store:
        for _ in range(100):
            await store.put(message())
        again = asyncio.ensure_future(store.requeue(1, 100))
        await asyncio.sleep(0)
        assert await store.put(message()) == 101
        assert not again.done()
        assert (await again).found == 100


async def test_what_a_range_that_breaks_off_has_queued_is_told_to_the_relay(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.outbox.tables.REQUEUE_ROWS", 2)
    whole = Tables.requeue

    def full_at_3(tables: Tables, first: int, last: int) -> tuple[Requeued, int | None]:
        if first >= 3:
            raise StorageFullError("full")
        return whole(tables, first, last)

    async with opened(path) as store:
        for _ in range(6):
            await store.put(message())
        told: list[Mapping[Lane, int]] = []
        with monkeypatch.context() as patch:
            patch.setattr(Tables, "requeue", full_at_3)
            with pytest.raises(StorageFullError):
                await store.requeue(1, 6, turn_back=told.append)
        assert told == [{Lane.EVENT: 1}]
        again = asyncio.ensure_future(store.requeue(1, 6, turn_back=told.append))
        await asyncio.sleep(0)
        again.cancel()  # nobody waits for the command any more; the step is on its way
        await asyncio.wait({again})
        assert again.cancelled()
        async with asyncio.timeout(10):
            while len(told) < 2:
                await asyncio.sleep(0.01)
        assert told == [{Lane.EVENT: 1}, {Lane.EVENT: 1}]


async def test_a_command_is_recorded_once_and_its_answer_is_kept(path: Path) -> None:
    async with opened(path) as store:
        assert await store.accept_command("a", "reload", "desk", "admin", "{}") is None
        entry = await store.accept_command("a", "reload", "desk", "admin", "{}")
        assert entry is not None
        assert (entry.state, entry.answer) == ("accepted", None)
        await store.finish_command("a", "done", b"{}")
    async with opened(path) as store:
        entry = await store.accept_command("a", "snapshot", "", "viewer", "{}")
        assert entry is not None
        assert (entry.name, entry.client, entry.state, entry.answer) == ("reload", "desk", "done", b"{}")


async def test_events_of_before_a_restart_are_seen_to_wait_again(path: Path) -> None:
    async with opened(path) as store:
        for _ in range(3):
            await store.put(message())
        await store.delete([record.row_id for record in await store.fetch(Lane.EVENT, 3)])
    async with opened(path) as store:
        assert store.newest[Lane.EVENT] == 0
        answer = await store.requeue(1, 3)
        assert store.newest[Lane.EVENT] == 3  # the relay fetches as long as this is above what it has
        assert (await store.requeue(2, 3)).lowest == {Lane.EVENT: 2}  # asked again: the first answer may have been lost
        assert answer.lowest == {Lane.EVENT: 1}


async def test_a_place_beyond_all_messages_is_not_believed(path: Path) -> None:
    async with opened(path) as store:
        await store.keep_sinks(["pager"])
        await store.put(message())
        await store._ask(lambda tables: tables.connection.execute(f"UPDATE cursors SET sequence = {1 << 60}"))
    async with opened(path) as store:
        await store.keep_sinks(["pager"])
        await store.put(message())
        assert await numbers(store, "pager") == [2]


async def test_a_sink_whose_place_was_lost_with_the_database_hears_of_the_gap(path: Path) -> None:
    async with opened(path) as store:
        await store.keep_sinks(["pager"])
        await store.put(message())
    path.unlink()
    async with opened(path) as store:
        await store.keep_sinks(["pager"])
        (row,) = await store.events(EventQuery())
        assert row.kind == GAP
        assert await numbers(store, "pager") == [row.sequence]


@pytest.mark.parametrize("client", [("", ""), ("desk", "operator")])
async def test_refused_commands_do_not_push_out_the_ids_of_others(path: Path, client: tuple[str, str]) -> None:
    """Neither those of strangers nor those of somebody who is known."""
    async with opened(path) as store:
        for n in range(200):
            if n % 20 == 0:
                await store.accept_command(f"good {n}", "reload", "desk", "admin", "{}")
            await store.accept_command(refused_id(f"good {n}"), "reload", *client, "{}")
        await store._ask(lambda tables: tables.commands.purge(0, 100))
        known = await store._ask(lambda tables: [entry.role for entry in select_commands(tables.connection, 1000)])
        assert known.count("admin") == 10
        assert 9 <= known.count(client[1]) <= 15


async def test_refused_commands_of_earlier_versions_are_forgotten_first_as_well(path: Path) -> None:
    async with opened(path) as store:
        for n in range(200):
            await store.accept_command(f"refused:{n}", "reload", "", "", "{}")
        await store._ask(lambda tables: tables.commands.purge(0, 100))
        assert 9 <= len(await store._ask(lambda tables: select_commands(tables.connection, 1000))) <= 15


@pytest.mark.parametrize(("hours", "known"), [(2, True), (25, False)])
async def test_a_command_is_known_for_as_long_as_it_can_be_sent_again_however_short_the_history(
    path: Path, hours: int, known: bool
) -> None:
    now = [DAY_US * 20_000]
    async with opened(path, lambda: now[0], history_days=0.01) as store:
        await store.accept_command("a", "reload", "desk", "admin", "{}")
        now[0] += hours * DAY_US // 24
        await upkeep(store)
        assert (await store.accept_command("a", "reload", "desk", "admin", "{}") is not None) is known


async def test_as_many_commands_are_known_as_may_come_while_one_can_be_sent_again(path: Path) -> None:
    commands = CommandsConfig(max_per_minute=600, max_validity_s=1800.0)
    store = await OutboxStore.open(path, OutboxConfig(reserve_bytes=0), commands=commands)
    try:
        await store.accept_command("first", "reload", "desk", "admin", "{}")
        await store._ask(lambda tables: _many(tables, 18_000), writes=True)
        await upkeep(store)
        assert await store.accept_command("first", "reload", "desk", "admin", "{}") is not None
        await store._ask(lambda tables: _many(tables, 20_000, 18_000), writes=True)
        await upkeep(store)
        assert await store.accept_command("first", "reload", "desk", "admin", "{}") is None
    finally:
        await store.close()


def _many(tables: Tables, end: int, first: int = 0) -> None:
    for n in range(first, end):
        tables.commands.accept(f"other {n}", "snapshot", "desk", "viewer", "{}")
