"""The wall clock jumps by a day and more in both directions under a running store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.config.delivery import OutboxConfig
from agent.outbox.history import EventQuery
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Lane

DAY_US = 86_400_000_000
S_US = 1_000_000
NOON_US = int(datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()) * S_US


class Clock:
    """Microseconds since 1970. Whoever changes `now_us` makes the wall clock jump; `passes` is time itself."""

    def __init__(self, now_us: int = NOON_US) -> None:
        self.now_us = now_us
        self.steady_us = 0

    def __call__(self) -> int:
        return self.now_us

    def steady(self) -> int:
        return self.steady_us

    def passes(self, by_us: int) -> None:
        self.now_us += by_us
        self.steady_us += by_us


def message(event_id: str, lane: Lane = Lane.EVENT, topic: str = "t", clock: Clock | None = None) -> Message:
    iso = (datetime.fromtimestamp(clock.now_us / 1e6, UTC).isoformat()) if clock is not None else ""
    return Message(lane, event_id, topic, lambda n: f"{n}".encode(), t_utc_iso=iso)


@contextlib.asynccontextmanager
async def opened(path: Path, clock: Clock, **settings: float) -> AsyncIterator[OutboxStore]:
    config = OutboxConfig(reserve_bytes=0, **settings)  # type: ignore[arg-type]
    store = await OutboxStore.open(path, config, clock_us=clock, monotonic_us=clock.steady)
    try:
        yield store
    finally:
        await store.close()


async def upkeep(store: OutboxStore) -> None:
    """Have the minute's work done now."""
    store._writer._upkeep.due_s = 0.0
    await store.delete([])
    await store.depth()


async def deliver(store: OutboxStore, count: int) -> None:
    await asyncio.gather(*(store.put(message(f"{n}")) for n in range(count)))
    while records := await store.fetch(Lane.EVENT, 1000):
        await store.delete([record.row_id for record in records])


JUMPS = pytest.mark.parametrize("jump_us", [DAY_US, -DAY_US], ids=["ahead", "back"])


@JUMPS
async def test_order_and_sequence_are_those_of_the_commits(tmp_path: Path, jump_us: int) -> None:
    clock = Clock()
    async with opened(tmp_path / "events.db", clock) as store:
        for part in range(4):
            for n in range(5):
                await store.put(message(f"{part} {n}", Lane.ALARM if n == 2 else Lane.EVENT))
            clock.now_us += jump_us if part % 2 == 0 else -jump_us
        for lane in (Lane.ALARM, Lane.EVENT):
            records = await store.fetch(lane, 100)
            ids = [record.event_id for record in records]
            assert ids == sorted(ids)
            assert [record.sequence for record in records] == sorted(record.sequence or 0 for record in records)
        rows = await store.events(EventQuery(limit=None))
        assert [row.sequence for row in rows] == list(range(1, 21))
        clock.now_us += jump_us
    async with opened(tmp_path / "events.db", clock) as store:
        assert await store.put(message("after")) == 21
        assert (store.report.damage, store.report.skipped) == ("", None)


@JUMPS
async def test_nothing_that_waits_in_the_alarm_and_event_lanes_is_given_up(tmp_path: Path, jump_us: int) -> None:
    clock = Clock()
    async with opened(tmp_path / "events.db", clock) as store:
        for n in range(10):
            await store.put(message(f"{n}", Lane.ALARM if n % 2 else Lane.EVENT))
        clock.now_us += jump_us
        await upkeep(store)
        depth = await store.depth()
        assert (depth[Lane.ALARM].rows, depth[Lane.EVENT].rows) == (5, 5)
        assert {row.delivery for row in await store.events(EventQuery())} == {"pending"}
        assert 0 <= depth[Lane.EVENT].oldest_age_s < 86_500


@JUMPS
async def test_delivered_history_of_the_last_days_stays(tmp_path: Path, jump_us: int) -> None:
    clock = Clock()
    async with opened(tmp_path / "events.db", clock, history_days=3) as store:
        for n in range(10):
            await store.put(message(f"{n}"))
        await store.delete([record.row_id for record in await store.fetch(Lane.EVENT, 100)])
        clock.now_us += jump_us
        await upkeep(store)
        assert len(await store.events(EventQuery())) == 10
        clock.passes(5 * DAY_US)
        await upkeep(store)
        assert not await store.events(EventQuery())


async def test_delivered_history_stays_when_the_clock_is_put_right(tmp_path: Path) -> None:
    clock = Clock(200 * S_US)
    async with opened(tmp_path / "events.db", clock, history_days=3) as store:
        await deliver(store, 10)
        clock.now_us = NOON_US
        for _ in range(2):  # the first moves times, the second looks at ages
            await upkeep(store)
        assert len(await store.events(EventQuery())) == 10
        clock.passes(4 * DAY_US)
        await upkeep(store)
        assert not await store.events(EventQuery())


async def test_the_newest_state_wins_although_the_clock_went_back(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path / "events.db", clock) as store:
        await store.put(message("older", Lane.STATE))
        clock.now_us -= DAY_US
        await store.put(message("newer", Lane.STATE))
        assert [record.event_id for record in await store.fetch(Lane.STATE, 10)] == ["newer"]
        clock.now_us += DAY_US
        await store.put(message("newest", Lane.STATE))
        assert [record.event_id for record in await store.fetch(Lane.STATE, 10)] == ["newest"]


async def test_what_was_stamped_in_the_future_does_not_stay_for_ever(tmp_path: Path) -> None:
    """A clock that was a day ahead and was put right: ages count on as if nothing had happened."""
    clock = Clock()
    async with opened(tmp_path / "events.db", clock, telemetry_max_age_s=600) as store:
        await store.put(message("ahead", Lane.TELEMETRY))
        clock.now_us -= DAY_US
        await upkeep(store)
        assert (await store.depth())[Lane.TELEMETRY].oldest_age_s == 0
        clock.passes(601 * S_US)
        await upkeep(store)
        assert (await store.depth())[Lane.TELEMETRY].rows == 0


async def test_questions_about_a_time_go_by_the_event_not_by_the_commit(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path / "events.db", clock) as store:
        await store.put(message("today", clock=clock))
        clock.now_us -= DAY_US
        await store.put(message("yesterday", clock=clock))
        midnight = datetime.fromtimestamp(NOON_US / 1e6, UTC) - timedelta(hours=12)
        assert [row.event_id for row in await store.events(EventQuery(since=midnight))] == ["today"]
        assert [row.event_id for row in await store.events(EventQuery(until=midnight))] == ["yesterday"]
        newest = await store.events(EventQuery(newest_first=True))
        assert [row.event_id for row in newest] == ["yesterday", "today"]  # by sequence: the order that is known


async def test_a_box_that_started_without_a_clock_loses_nothing_when_it_learns_the_time(tmp_path: Path) -> None:
    """No battery: it counts from 1970 until the network tells the time, perhaps days after the first events."""
    clock = Clock(now_us=100 * S_US)
    async with opened(tmp_path / "events.db", clock) as store:
        for n in range(5):
            await store.put(message(f"{n}"))
        clock.now_us = NOON_US
        await upkeep(store)
        assert len(await store.fetch(Lane.EVENT, 100)) == 5
        assert {row.delivery for row in await store.events(EventQuery())} == {"pending"}


async def test_a_box_that_was_started_again_before_it_learnt_the_time_loses_nothing(tmp_path: Path) -> None:
    """What an earlier start stamped in 1970 moves along; what has the time of a right clock keeps it."""
    path = tmp_path / "events.db"
    async with opened(path, Clock(NOON_US - 20 * DAY_US)) as store:
        await store.put(message("right", Lane.ALARM))
    async with opened(path, Clock(100 * S_US)) as store:
        for n in range(5):
            await store.put(message(f"{n}", Lane.ALARM if n % 2 else Lane.EVENT))
        await store.delete([(await store.fetch(Lane.EVENT, 1, after=2))[0].row_id])  # out of order: the first is listed
    clock = Clock(200 * S_US)
    async with opened(path, clock) as store:
        await store.put(message("after"))
        clock.passes(30 * S_US)
        clock.now_us = NOON_US
        for _ in range(3):
            await upkeep(store)
        assert [record.event_id for record in await store.fetch(Lane.ALARM, 10)] == ["right", "1", "3"]
        assert [record.event_id for record in await store.fetch(Lane.EVENT, 10)] == ["0", "4", "after"]
        depth = await store.depth()
        assert depth[Lane.ALARM].oldest_age_s == pytest.approx(20 * 86_400)
        assert depth[Lane.EVENT].oldest_age_s == pytest.approx(130)


async def test_what_waited_for_the_time_stays_in_the_history_when_it_is_delivered(tmp_path: Path) -> None:
    path, clock = tmp_path / "events.db", Clock(200 * S_US)
    async with opened(path, Clock(100 * S_US)) as store:
        await store.put(message("before"))
    async with opened(path, clock) as store:
        await store.put(message("after"))
        clock.now_us = NOON_US
        await upkeep(store)
        await store.delete([record.row_id for record in await store.fetch(Lane.EVENT, 100)])
        await upkeep(store)
    async with opened(path, clock) as store:
        await upkeep(store)
        assert [row.event_id for row in await store.events(EventQuery())] == ["before", "after"]
        clock.passes(31 * DAY_US)
        await upkeep(store)
        assert not await store.events(EventQuery())


async def test_what_waited_while_the_clock_was_ahead_leaves_the_history_in_time(tmp_path: Path) -> None:
    clock = Clock(NOON_US + 3650 * DAY_US)
    async with opened(tmp_path / "events.db", clock, history_days=3) as store:
        await store.put(message("ahead"))
        clock.now_us = NOON_US
        await upkeep(store)
        await store.delete([record.row_id for record in await store.fetch(Lane.EVENT, 100)])
        clock.passes(4 * DAY_US)
        await upkeep(store)
        assert not await store.events(EventQuery())


async def test_a_clock_that_is_ahead_for_a_moment_leaves_the_age_of_an_earlier_start_as_it_was(tmp_path: Path) -> None:
    path, clock = tmp_path / "events.db", Clock()
    async with opened(path, clock) as store:
        await store.put(message("earlier", Lane.ALARM))
    clock.passes(100 * S_US)
    async with opened(path, clock, alarm_max_age_s=600) as store:
        for jump_us in (3650 * DAY_US, -3650 * DAY_US):
            clock.now_us += jump_us
            await upkeep(store)
            assert (await store.depth())[Lane.ALARM].oldest_age_s == pytest.approx(100)


async def test_history_goes_in_time_though_its_slice_holds_something_newer(tmp_path: Path) -> None:
    path, clock = tmp_path / "events.db", Clock()
    async with opened(path, clock, history_days=30) as store:
        await deliver(store, 10)
    clock.passes(40 * DAY_US)
    async with opened(path, clock, history_days=30) as store:
        await deliver(store, 1)
        await upkeep(store)
        assert [row.sequence for row in await store.events(EventQuery())] == [11]


async def test_history_goes_in_time_behind_what_was_stamped_in_the_future(tmp_path: Path) -> None:
    path, ahead, clock = tmp_path / "events.db", Clock(NOON_US + 3650 * DAY_US), Clock()
    async with opened(path, ahead) as store:
        await deliver(store, 1000)  # as many as upkeep looks at in one go
    async with opened(path, clock, history_days=3) as store:
        await deliver(store, 10)
        clock.passes(5 * DAY_US)
        for _ in range(2):
            await upkeep(store)
        assert len(await store.events(EventQuery(limit=None))) == 1000


async def test_a_state_survives_that_the_clock_is_put_right(tmp_path: Path) -> None:
    """It is the only word on its topic until something changes."""
    clock = Clock()
    async with opened(tmp_path / "events.db", clock) as store:
        await store.put(message("streaming", Lane.STATE))
        clock.now_us += DAY_US
        assert len(await store.fetch(Lane.STATE, 10)) == 1
