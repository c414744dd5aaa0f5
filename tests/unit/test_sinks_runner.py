"""The way of a sink through the history, on real databases: order, patience, refusals, and nobody held back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from fakes.sinks import MemorySink, record

from agent.config.delivery import FileSinkConfig, OutboxConfig, PluginSinkConfig, SinkConfig
from agent.config.sections import BackoffConfig
from agent.errors import (
    AccessError,
    BusyError,
    ConfigError,
    RejectedError,
    StorageError,
    TransientError,
    UnexplainedError,
)
from agent.health.reasons import HealthState
from agent.mqtt.topics import Topics
from agent.outbox.history import EventQuery
from agent.outbox.store import OutboxStore
from agent.ports import EventSink, Message
from agent.sinks.runner import SinkRunner
from agent.types import GAP, Lane, Loss, OutboxRecord

TOPICS = Topics("recognizer", "box")
QUICK = {"initial_s": 0.01, "max_s": 0.02}


def message(kind: str = "fight", lane: Lane = Lane.EVENT) -> Message:
    def payload(sequence: int | None) -> bytes:
        return record(sequence or 0, kind=kind).payload

    return Message(lane, str(uuid.uuid4()), TOPICS.event("door", kind), payload, kind=kind)


def announce(loss: Loss, series: str) -> Message:
    text = f"{loss.reason} {loss.sink} {loss.ranges}".encode()
    return Message(Lane.ALARM, "gap", TOPICS.event("", GAP), lambda _: text, kind=GAP)


@contextlib.asynccontextmanager
async def opened(path: Path, *sinks: str) -> AsyncIterator[OutboxStore]:
    store = await OutboxStore.open(path, OutboxConfig(reserve_bytes=0), announce=announce)
    try:
        await store.keep_sinks(sinks or ("out",))
        yield store
    finally:
        await store.close()


def configured(**keys: object) -> SinkConfig:
    return FileSinkConfig.model_validate({"type": "file", "backoff": QUICK} | keys)


@contextlib.asynccontextmanager
async def running(
    store: OutboxStore,
    sink: EventSink,
    config: SinkConfig | None = None,
    *,
    name: str = "out",
    health: HealthState | None = None,
    chance: Callable[[], float] = random.random,
) -> AsyncIterator[SinkRunner]:
    runner = SinkRunner(name, config or configured(), store, lambda: sink, health or HealthState(), random=chance)
    store.on_commit(runner.wake)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


async def until(condition: Callable[[], object], what: str = "") -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def numbers(sink: MemorySink) -> list[int | None]:
    return [one.sequence for one in sink.taken]


def reasons(health: HealthState) -> dict[str, str]:
    return {one.reason: one.detail for one in health.snapshot().reasons}


# --- delivery ---------------------------------------------------------------------------------------------------------


async def test_what_is_committed_comes_in_order_of_its_number_whatever_its_lane(path: Path) -> None:
    sink = MemorySink(max_batch=3)
    async with opened(path) as store:
        for n in range(10):
            await store.put(message(lane=Lane.ALARM if n % 3 == 0 else Lane.EVENT))
            await store.put(message(lane=Lane.STATE))
        async with running(store, sink) as runner:
            await until(lambda: len(sink.taken) == 10)
            await store.put(message())
            await until(lambda: len(sink.taken) == 11)
            await until(lambda: runner.idle)
            assert runner.stats.delivered == 11
        assert numbers(sink) == list(range(1, 12))
        assert sink.closed == 1
    async with opened(path) as store:
        assert await store.fetch_after("out", 10) == []


async def test_more_than_one_look_holds(path: Path) -> None:
    sink = MemorySink(max_batch=7)
    async with opened(path) as store:
        await asyncio.gather(*(store.put(message()) for _ in range(700)))
        async with running(store, sink):
            await until(lambda: len(sink.taken) == 700)
    assert numbers(sink) == list(range(1, 701))


async def test_a_sink_that_hangs_holds_nobody_back(path: Path) -> None:
    """Neither the other sink, nor the broker's side, nor those who put."""
    hanging, other = MemorySink(), MemorySink()
    hanging.gate.clear()
    async with (
        opened(path, "hanging", "other") as store,
        running(store, hanging, name="hanging"),
        running(store, other, name="other"),
    ):
        for _ in range(200):
            await store.put(message())
            for one in await store.fetch(Lane.EVENT, 10):
                store.forget([one.row_id])
        await until(lambda: len(other.taken) == 200)
        await store.delete([])
        assert await store.fetch(Lane.EVENT, 1) == []
        depth = await store.sink_depth()
        assert (depth["hanging"].numbers, depth["other"].numbers) == (200, 0)
        assert (hanging.calls, hanging.taken) == (1, [])
        hanging.gate.set()
        await until(lambda: len(hanging.taken) == 200)
    assert numbers(hanging) == numbers(other) == list(range(1, 201))


async def test_crashes_and_failures_at_random_lose_nothing_and_keep_the_order(path: Path) -> None:
    """The process ends anywhere, the sink takes part of a batch, fails after it has taken some: at least once, in order."""
    dice = random.Random(7)
    taken: list[int] = []

    class Treacherous:
        max_batch = 5

        async def deliver(self, records: Sequence[OutboxRecord]) -> int:
            await asyncio.sleep(dice.random() * 0.002)
            done = dice.randint(0, len(records))
            taken.extend(one.sequence or 0 for one in records[:done])
            await asyncio.sleep(dice.random() * 0.002)  # a crash here: they are there, and nobody knows
            if not done or dice.random() < 0.3:
                raise TransientError("lost the answer")
            return done

        async def close(self) -> None:
            pass

    total = 0
    for _ in range(25):
        async with opened(path) as store, running(store, Treacherous()):
            for _ in range(dice.randint(0, 12)):
                total = await store.put(message()) or 0
            await asyncio.sleep(dice.random() * 0.05)
    async with opened(path) as store, running(store, Treacherous()):
        await until(lambda: total in taken)
    assert total > 50
    assert list(dict.fromkeys(taken)) == list(range(1, total + 1))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"lanes": ["alarm"]}, [2, 4, 5]),
        ({"lanes": ["event"]}, [1, 3, 4]),
        ({"kinds": ["fall"]}, [3, 4, 5]),
        ({"kinds": ["fall"], "lanes": ["alarm"]}, [4, 5]),
        ({"kinds": ["none"]}, [4]),
    ],
)
async def test_filtered_ones_are_done_with_and_losses_concern_everybody(
    path: Path, keys: dict[str, object], expected: list[int]
) -> None:
    sink = MemorySink()
    async with opened(path) as store:
        for kind, lane in (("fight", Lane.EVENT), ("fight", Lane.ALARM), ("fall", Lane.EVENT)):
            await store.put(message(kind, lane))
        await store.put(Message(Lane.ALARM, "gap", TOPICS.event("", GAP), lambda _: b"{}", kind=GAP))
        await store.put(message("fall", Lane.ALARM))
        async with running(store, sink, configured(**keys)) as runner:
            await until(lambda: runner.idle)
        assert numbers(sink) == expected
        await store.delete([])
        assert await store.fetch_after("out", 10) == []


# --- failures ---------------------------------------------------------------------------------------------------------


async def test_what_fails_for_the_moment_is_tried_again(path: Path) -> None:
    sink, health = MemorySink(max_batch=2), HealthState()
    sink.problems = [TransientError("reset"), TransientError("reset"), BusyError("later", 0.0)]
    async with opened(path) as store:
        for _ in range(3):
            await store.put(message())
        async with running(store, sink, health=health) as runner:
            await until(lambda: len(sink.taken) == 3)
            await until(lambda: runner.idle)
            assert (runner.stats.delivered, runner.stats.failed, runner.stats.refused) == (3, 3, 0)
    assert numbers(sink) == [1, 2, 3]
    assert reasons(health) == {}, "a short failure is no reason"


async def test_a_named_time_is_kept(path: Path) -> None:
    sink = MemorySink()
    sink.problems = [BusyError("HTTP 429", 0.4)]
    async with opened(path) as store:
        await store.put(message())
        began_s = asyncio.get_running_loop().time()
        async with running(store, sink):
            await until(lambda: sink.taken)
        assert 0.4 <= asyncio.get_running_loop().time() - began_s < 2


@pytest.mark.parametrize(
    ("error", "failures", "chance", "wait_s"),
    [
        (TransientError(""), 0, 0.5, 0.5),
        (TransientError(""), 3, 0.5, 4.0),
        (TransientError(""), 50, 0.5, 50.0),
        (AccessError(""), 0, 0.0, 50.0),
        (AccessError(""), 0, 1.0, 100.0),
        (BusyError("", 30.0), 0, 0.5, 30.5),
        (BusyError("", 1e9), 0, 0.5, 3600.5),
        (BusyError("", 0.0), 4, 0.5, 8.0),
    ],
)
async def test_how_long_it_waits(error: TransientError, failures: int, chance: float, wait_s: float) -> None:
    config = configured(backoff={"initial_s": 1, "max_s": 100})
    runner = SinkRunner("out", config, None, MemorySink, HealthState(), random=lambda: chance)  # type: ignore[arg-type]
    runner._failures = failures
    assert runner._wait_s(error) == wait_s


async def test_who_is_not_let_in_is_named_at_once_and_cleared_by_the_first_delivery(path: Path) -> None:
    sink, health = MemorySink(), HealthState()
    sink.problems = [AccessError("HTTP 401: the receiver does not accept the signature")]
    async with opened(path) as store:
        await store.put(message())
        async with running(store, sink, health=health):
            await until(lambda: reasons(health))
            assert reasons(health) == {"sink_failing:out": "HTTP 401: the receiver does not accept the signature"}
            await until(lambda: sink.taken)
            await until(lambda: not reasons(health))


async def test_who_fails_for_long_is_named(path: Path) -> None:
    sink, health = MemorySink(), HealthState()
    sink.down = True
    async with opened(path) as store:
        await store.put(message())
        slow = configured(backoff={"initial_s": 100, "max_s": 100})
        async with running(store, sink, slow, health=health, chance=lambda: 0.9) as runner:
            await until(lambda: reasons(health))
            assert runner.idle, "a stop does not wait for it"
    assert reasons(health) == {"sink_failing:out": "down"}


async def test_what_is_refused_is_passed_over_announced_and_named(path: Path) -> None:
    sink, health = MemorySink(max_batch=1), HealthState()
    async with opened(path) as store:
        for _ in range(2):
            await store.put(message())
        sink.problems = [RejectedError("HTTP 413: too large", 413)]
        async with running(store, sink, health=health) as runner:
            await until(lambda: len(sink.taken) == 2)
            assert runner.stats.refused == 1
        assert numbers(sink) == [2, 3]
        assert sink.taken[1].payload == b"refused out ((1, 1),)"
        assert list(reasons(health)) == ["sink_rejected:out"]
        rows = await store.events(EventQuery())
        assert [row.kind for row in rows] == ["fight", "fight", GAP]


async def test_a_sink_that_refuses_everything_ends(path: Path) -> None:
    """The announcements of its losses come to it, too, and must not make new ones."""
    sink = MemorySink(max_batch=1)
    sink.largest = 0
    async with opened(path) as store:
        for _ in range(5):
            await store.put(message())
        async with running(store, sink) as runner:
            await until(lambda: runner.stats.refused >= 10)
            await until(lambda: runner.idle)
        assert sink.taken == []
        assert len(await store.events(EventQuery())) == 10


async def test_an_event_that_the_other_side_answers_with_errors_is_given_up_after_so_many(path: Path) -> None:
    sink = MemorySink(max_batch=1)
    answers = [UnexplainedError("HTTP 500", 500)] * 3
    sink.problems = [answers[0], TransientError("reset"), answers[1], TransientError("reset"), answers[2]]
    async with opened(path) as store:
        for _ in range(2):
            await store.put(message())
        async with running(store, sink, configured(give_up_after=3)) as runner:
            await until(lambda: len(sink.taken) == 2)
            assert (runner.stats.failed, runner.stats.refused) == (4, 1)
            assert runner.stats.error == "given up after 3 answers: HTTP 500"
    assert numbers(sink) == [2, 3]
    assert sink.taken[1].payload == b"refused out ((1, 1),)"


async def test_the_count_of_answers_outlives_the_process(path: Path) -> None:
    for _ in range(2):
        sink = MemorySink()
        sink.problems = [UnexplainedError("HTTP 500", 500), AccessError("stop here")]
        async with opened(path) as store:
            if not await store.events(EventQuery()):
                await store.put(message())
            async with running(store, sink, configured(give_up_after=3, backoff={"initial_s": 0.01, "max_s": 50})):
                await until(lambda: sink.calls == 2)  # noqa: B023
    sink = MemorySink()
    sink.problems = [UnexplainedError("HTTP 500", 500)]
    async with opened(path) as store, running(store, sink, configured(give_up_after=3)) as runner:
        await until(lambda: runner.stats.refused == 1)


@pytest.mark.parametrize(("limit", "error"), [(0, UnexplainedError("HTTP 500", 500)), (2, TransientError("reset"))])
async def test_never_given_up(path: Path, limit: int, error: TransientError) -> None:
    sink = MemorySink()
    sink.problems = [error] * 20
    async with opened(path) as store:
        await store.put(message())
        async with running(store, sink, configured(give_up_after=limit)):
            await until(lambda: sink.taken)
    assert numbers(sink) == [1]


async def test_a_plug_in_that_never_answers_is_left_after_its_time(path: Path) -> None:
    sink = MemorySink()
    sink.gate.clear()
    config = PluginSinkConfig.model_validate({"type": "plugin", "plugin": "x", "timeout_s": 0.05, "backoff": QUICK})
    async with opened(path) as store:
        await store.put(message())
        async with running(store, sink, config) as runner:
            await until(lambda: runner.stats.failed >= 2)
            assert runner.stats.error == "no answer within 0.05 s"
            sink.gate.set()
            await until(lambda: sink.taken)


async def test_a_bug_of_a_plug_in_ends_the_run_closes_the_sink_and_costs_nothing(path: Path) -> None:
    sink = MemorySink()
    sink.problems = [ZeroDivisionError()]
    async with opened(path) as store:
        await store.put(message())
        runner = SinkRunner("out", configured(), store, lambda: sink, HealthState())
        with pytest.raises(ZeroDivisionError):
            await runner.run()
        assert sink.closed == 1
        async with running(store, sink):
            await until(lambda: sink.taken)


@pytest.mark.parametrize("said", [0, 3, -1])
async def test_a_sink_that_cannot_count_is_a_bug(path: Path, said: int) -> None:
    class Liar(MemorySink):
        async def deliver(self, records: Sequence[OutboxRecord]) -> int:
            return said

    async with opened(path) as store:
        for _ in range(2):
            await store.put(message())
        with pytest.raises(RuntimeError, match=f"said {said}"):
            await SinkRunner("out", configured(), store, Liar, HealthState()).run()


async def test_a_sink_that_cannot_be_built_says_why(path: Path) -> None:
    def make() -> EventSink:
        raise ConfigError("no secret")

    async with opened(path) as store:
        with pytest.raises(ConfigError, match="no secret"):
            await SinkRunner("out", configured(), store, make, HealthState()).run()


# --- the database -----------------------------------------------------------------------------------------------------


class Forgetful:
    """A store whose disk takes no notes for a while."""

    def __init__(self, store: OutboxStore) -> None:
        self._store = store
        self.broken = True
        self.fetches = 0

    async def fetch_after(self, sink: str, limit: int) -> list[OutboxRecord]:
        self.fetches += 1
        return await self._store.fetch_after(sink, limit)

    def sink_done(self, sink: str, sequence: int) -> None:
        if not self.broken:
            self._store.sink_done(sink, sequence)

    async def sink_refused(self, sink: str, record: OutboxRecord, reason: str) -> None:
        await self._store.sink_refused(sink, record, reason)

    async def sink_failed(self, sink: str) -> None:
        await self._store.sink_failed(sink)


async def test_a_place_that_cannot_be_noted_makes_no_doubles_and_no_hurry(path: Path) -> None:
    sink = MemorySink()
    async with opened(path) as store:
        forgetful = Forgetful(store)
        runner = SinkRunner("out", configured(), forgetful, lambda: sink, HealthState(), random=lambda: 0.1)
        store.on_commit(runner.wake)
        for _ in range(3):
            await store.put(message())
        task = asyncio.create_task(runner.run())
        await until(lambda: forgetful.fetches >= 2)
        await asyncio.sleep(0.2)
        assert numbers(sink) == [1, 2, 3]
        assert forgetful.fetches <= 6
        forgetful.broken = False
        await store.put(message())
        await until(lambda: len(sink.taken) == 4)
        await until(lambda: runner.idle)
        task.cancel()
        await asyncio.wait([task])
        assert numbers(sink) == [1, 2, 3, 4]
        await store.delete([])
        assert (await store.sink_depth())["out"].numbers == 0


async def test_a_database_that_cannot_be_read_is_waited_for(path: Path) -> None:
    class Broken(Forgetful):
        async def fetch_after(self, sink: str, limit: int) -> list[OutboxRecord]:
            self.fetches += 1
            if self.fetches <= 2:
                raise StorageError("disk I/O error")
            return await self._store.fetch_after(sink, limit)

    sink, health = MemorySink(), HealthState()
    async with opened(path) as store:
        await store.put(message())
        broken = Broken(store)
        broken.broken = False
        runner = SinkRunner("out", configured(), broken, lambda: sink, health, random=lambda: 0.02)
        task = asyncio.create_task(runner.run())
        await until(lambda: sink.taken)
        task.cancel()
        await asyncio.wait([task])
    assert runner.stats.failed == 0
    assert reasons(health) == {}


@contextlib.asynccontextmanager
async def set_back(path: Path, sink: MemorySink) -> AsyncIterator[OutboxStore]:
    """Four are taken; then the database says that none is."""
    async with opened(path) as store:
        for _ in range(4):
            await store.put(message())
        async with running(store, sink) as runner:
            await until(lambda: len(sink.taken) == 4)
            await until(lambda: runner.idle)
            await store.delete([])
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as damaging:
                damaging.execute("UPDATE cursors SET sequence = 0")
            yield store


async def test_a_sink_goes_on_where_the_database_has_forgotten_what_it_was_done_with(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sinks.runner._FETCH_ROWS", 2)
    monkeypatch.setattr("agent.sinks.runner._STORE_WAITS", BackoffConfig(initial_s=0.01, max_s=0.02))
    sink = MemorySink()
    async with set_back(path, sink) as store:
        await store.put(message())
        await until(lambda: len(sink.taken) == 5)
    assert numbers(sink) == [1, 2, 3, 4, 5]
