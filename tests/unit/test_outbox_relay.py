"""The relay over a real store and a scripted link: order, window, lanes, retries, refusals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.config.schema import BackoffConfig, OutboxConfig
from agent.errors import RejectedError, TransientError
from agent.outbox.relay import Relay
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Lane

FAST = BackoffConfig(initial_s=0.01, max_s=0.05)


class ScriptedLink:
    """A link whose acknowledgements the test gives. answers: by payload, what a publish meets; absent = acknowledged."""

    def __init__(self, *, receive_maximum: int = 100, automatic: bool = True) -> None:
        self.receive_maximum = receive_maximum
        self.sent: list[bytes] = []
        self.most_in_flight = 0
        self.answers: dict[bytes, list[Exception | None]] = {}
        self._automatic = automatic
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._up = asyncio.Event()
        self._up.set()

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    async def wait_connected(self) -> None:
        await self._up.wait()

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        if not self.connected:
            raise TransientError("offline")
        self.sent.append(payload)
        acknowledged = asyncio.get_running_loop().create_future()
        self._waiting[payload] = acknowledged
        self.most_in_flight = max(self.most_in_flight, len(self._waiting))
        try:
            if self._automatic:
                await asyncio.sleep(0.001)
            else:
                await acknowledged
        finally:
            del self._waiting[payload]
        answer = self.answers.get(payload) or [None]
        error = answer.pop(0)
        if error is not None:
            raise error

    def acknowledge(self, payload: bytes) -> None:
        self._waiting[payload].set_result(None)

    def lose(self) -> None:
        self._up.clear()
        for waiting in self._waiting.values():
            waiting.set_exception(TransientError("connection lost"))

    def restore(self) -> None:
        self._automatic = True
        self._up.set()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[OutboxStore]:
    store = await OutboxStore.open(tmp_path / "events.db", OutboxConfig())
    yield store
    await store.close()


async def put(store: OutboxStore, *names: str, lane: Lane = Lane.EVENT) -> None:
    for name in names:
        await store.put(Message(lane, name, "t", lambda _, name=name: name.encode()))  # type: ignore[misc]


@contextlib.asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[None]:
    task = asyncio.create_task(relay.run(), name="relay")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def rows_left(store: OutboxStore) -> int:
    return sum(depth.rows for depth in (await store.depth()).values())


async def empty(store: OutboxStore) -> None:
    async with asyncio.timeout(5):
        while await rows_left(store):
            await asyncio.sleep(0.001)


async def test_everything_pending_goes_out_in_order_and_is_deleted(store: OutboxStore) -> None:
    names = [f"e{n:03}" for n in range(600)]  # more than one fetch
    await asyncio.gather(*(put(store, name) for name in names))
    link = ScriptedLink(receive_maximum=7)
    relay = Relay(store, link, max_in_flight=50)
    async with running(relay):
        await empty(store)
    assert link.sent == [name.encode() for name in names]
    assert link.most_in_flight == 7
    assert relay.stats.delivered == 600
    assert relay.stats.in_flight == 0


async def test_a_commit_wakes_an_idle_relay(store: OutboxStore) -> None:
    link = ScriptedLink()
    async with running(Relay(store, link)):
        await asyncio.sleep(0.02)
        await put(store, "late")
        await until(lambda: link.sent == [b"late"])


async def test_lanes_go_by_priority(store: OutboxStore) -> None:
    for lane in (Lane.TELEMETRY, Lane.STATE, Lane.EVENT, Lane.ALARM):
        await put(store, lane.name, lane=lane)
    link = ScriptedLink()
    async with running(Relay(store, link, max_in_flight=1)):
        await until(lambda: len(link.sent) == 4)
    assert link.sent == [b"ALARM", b"EVENT", b"STATE", b"TELEMETRY"]


async def test_a_new_alarm_overtakes_a_long_drain(store: OutboxStore) -> None:
    await asyncio.gather(*(put(store, f"e{n}") for n in range(300)))
    link = ScriptedLink()
    async with running(Relay(store, link, max_in_flight=4)):
        await until(lambda: len(link.sent) > 20)
        before = len(link.sent)
        await put(store, "alarm", lane=Lane.ALARM)
        await until(lambda: b"alarm" in link.sent)
    assert link.sent.index(b"alarm") <= before + 100


async def test_after_a_lost_link_the_unacknowledged_go_again_in_order(store: OutboxStore) -> None:
    await put(store, "a", "b", "c", "d")
    link = ScriptedLink(automatic=False)
    relay = Relay(store, link, max_in_flight=3)
    async with running(relay):
        await until(lambda: len(link.sent) == 3)
        link.acknowledge(b"a")
        await until(lambda: len(link.sent) == 4)
        link.lose()
        await until(lambda: relay.stats.in_flight == 0)
        assert link.sent == [b"a", b"b", b"c", b"d"]
        link.restore()
        await empty(store)
    assert link.sent == [b"a", b"b", b"c", b"d", b"b", b"c", b"d"]
    assert relay.stats.retried == 3


async def test_a_quota_refusal_stops_its_lane_and_no_other(store: OutboxStore) -> None:
    link = ScriptedLink()
    link.answers[b"e1"] = [TransientError("Quota exceeded (0x97)")] * 3
    relay = Relay(store, link, max_in_flight=1, backoff=BackoffConfig(initial_s=0.2, max_s=0.2))
    await put(store, "e1", "e2")
    async with running(relay):
        await until(lambda: relay.stats.retried == 1)
        await put(store, "alarm", lane=Lane.ALARM)
        await put(store, "state", lane=Lane.STATE)
        await empty(store)
    assert link.sent.index(b"alarm") < link.sent.index(b"e2")
    assert [name for name in link.sent if name.startswith(b"e")] == [b"e1"] * 4 + [b"e2"]
    assert relay.stats.retried == 3


async def test_failed_attempts_are_recorded(store: OutboxStore) -> None:
    link = ScriptedLink()
    link.answers[b"e1"] = [TransientError("busy")] * 100
    relay = Relay(store, link, backoff=FAST)
    await put(store, "e1")
    async with running(relay):
        await until(lambda: relay.stats.retried >= 3)
    await asyncio.sleep(0.1)
    (record,) = await store.fetch(Lane.EVENT, 1)
    assert record.attempts == relay.stats.retried


async def test_a_message_refused_for_good_becomes_a_dead_letter_and_the_rest_goes_on(store: OutboxStore) -> None:
    link = ScriptedLink()
    link.answers[b"bad"] = [RejectedError("Not authorized", 0x87)]
    relay = Relay(store, link)
    await put(store, "good", "bad", "better")
    async with running(relay):
        await empty(store)
    assert link.sent == [b"good", b"bad", b"better"]
    (letter,) = await store.dead_letters()
    assert (letter.event_id, letter.reason) == ("bad", "Not authorized (reason code 0x87)")
    assert (relay.stats.delivered, relay.stats.rejected) == (2, 1)


async def test_a_stopped_relay_leaves_the_rest_and_a_new_run_sends_it(store: OutboxStore) -> None:
    await put(store, "a", "b", "c")
    silent = ScriptedLink(automatic=False)
    async with running(Relay(store, silent, max_in_flight=2)):
        await until(lambda: len(silent.sent) == 2)
        silent.acknowledge(b"a")
        await until(lambda: len(silent.sent) == 3)
    link = ScriptedLink()
    relay = Relay(store, link)
    async with running(relay):
        await empty(store)
    assert link.sent == [b"b", b"c"]
