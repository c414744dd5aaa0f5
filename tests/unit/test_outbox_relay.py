"""The relay over a real store and a scripted link: order, window, lanes, retries, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from agent.config.delivery import OutboxConfig
from agent.config.sections import BackoffConfig
from agent.errors import QuotaError, RejectedError, TransientError, UnexplainedError
from agent.outbox.doubts import Doubts
from agent.outbox.moments import from_us
from agent.outbox.relay import Relay
from agent.outbox.store import OutboxStore
from agent.ports import Envelope, Message
from agent.throttle import Throttle
from agent.types import Lane, OutboxRecord

FAST = BackoffConfig(initial_s=0.01, max_s=0.05)


class ScriptedLink:
    """A link whose acknowledgements the test gives. answers: by payload, what a publish meets; absent = acknowledged."""

    def __init__(self, *, receive_maximum: int = 100, automatic: bool = True) -> None:
        self.receive_maximum = receive_maximum
        self.sent: list[bytes] = []
        self.sent_at_s: list[float] = []
        self.envelopes: list[Envelope | None] = []
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

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, envelope: Envelope | None = None
    ) -> None:
        if not self.connected:
            raise TransientError("offline")
        self.sent.append(payload)
        self.sent_at_s.append(asyncio.get_running_loop().time())
        self.envelopes.append(envelope)
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

    def waits(self, payload: bytes) -> bool:
        return payload in self._waiting

    def restore(self, *, automatic: bool = True) -> None:
        self._automatic = automatic
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
        await put(store, "alarm", lane=Lane.ALARM)
        known = len(link.sent)
        await until(lambda: b"alarm" in link.sent)
    assert link.sent.index(b"alarm") <= known + 4


async def test_an_alarm_in_the_middle_of_ten_thousand_events_is_in_the_next_window(store: OutboxStore) -> None:
    """All that may go before it is what had been handed to the link when its commit became known."""
    await asyncio.gather(*(put(store, f"e{n}") for n in range(10_000)))
    link = ScriptedLink()
    window = 20
    known: list[int] = []
    async with running(Relay(store, link, max_in_flight=window)):
        for number in range(5):
            await until(lambda number=number: len(link.sent) > 1000 * (number + 1))  # type: ignore[misc]
            await put(store, f"alarm{number}", lane=Lane.ALARM)
            known.append(len(link.sent))
            await until(lambda number=number: b"alarm%d" % number in link.sent)  # type: ignore[misc]
        left = (await store.depth())[Lane.EVENT].rows
    assert left > 1000  # it was in the middle
    for number, sent in enumerate(known):
        assert link.sent.index(b"alarm%d" % number) <= sent + window


async def test_a_throttled_relay_keeps_the_rate_and_its_alarms_do_not_wait_for_it(store: OutboxStore) -> None:
    await asyncio.gather(*(put(store, f"telemetry{n:02}" + "x" * 90, lane=Lane.TELEMETRY) for n in range(40)))
    link = ScriptedLink()
    rate = 1000.0  # a second; some hundred bytes each, so that two seconds' worth go at once
    async with running(Relay(store, link, throttle=Throttle(rate, time.monotonic))):
        await until(lambda: len(link.sent) >= 19)
        await asyncio.sleep(0.3)
        waiting = len(link.sent)
        assert waiting < 30
        begun_s = asyncio.get_running_loop().time()
        await put(store, "alarm", lane=Lane.ALARM)
        await until(lambda: b"alarm" in link.sent)
        assert link.sent_at_s[link.sent.index(b"alarm")] - begun_s < 0.1
        assert link.sent.index(b"alarm") <= waiting + 1
        await asyncio.sleep(0.7)
    spent = sum(len(payload) + 1 for payload in link.sent)
    assert spent <= rate * (link.sent_at_s[-1] - link.sent_at_s[0] + 2) + 2 * 110


async def test_a_lane_that_is_due_to_turn_back_does_not_keep_the_relay_awake(store: OutboxStore) -> None:
    """An event was under way when the link was lost, and alarms fill the window of a slow broker since it is back."""
    link = ScriptedLink(automatic=False, receive_maximum=3)
    relay = Relay(store, link)
    turns = 0
    look = relay._next

    def counted(tasks: asyncio.TaskGroup) -> OutboxRecord | None:
        nonlocal turns
        turns += 1
        return look(tasks)

    relay._next = counted  # type: ignore[method-assign]
    async with running(relay):
        await put(store, "e1")
        await until(lambda: link.sent == [b"e1"])
        link.lose()
        await until(lambda: relay.stats.in_flight == 0)
        await put(store, *(f"a{n}" for n in range(5)), lane=Lane.ALARM)
        link.restore(automatic=False)
        await until(lambda: relay.stats.in_flight == 3)
        await asyncio.sleep(0.1)
        turns = 0
        await asyncio.sleep(0.2)
        assert turns <= 2
        for n in range(5):
            await until(lambda n=n: link.waits(f"a{n}".encode()))  # type: ignore[misc]
            link.acknowledge(f"a{n}".encode())
        await until(lambda: link.sent[-1] == b"e1")
        link.acknowledge(b"e1")
        await empty(store)


async def test_a_throttle_that_is_lifted_lets_everything_go(store: OutboxStore) -> None:
    await asyncio.gather(*(put(store, f"e{n}" + "x" * 100) for n in range(20)))
    link = ScriptedLink()
    throttle = Throttle(10.0, time.monotonic)
    async with running(Relay(store, link, throttle=throttle)):
        await until(lambda: len(link.sent) == 1)
        await asyncio.sleep(0.1)
        assert len(link.sent) == 1
        throttle.reconfigure(0)
        await empty(store)


async def test_what_goes_along_says_how_long_it_is_worth_keeping(store: OutboxStore) -> None:
    created = (await put(store, "e1"), (await store.fetch(Lane.EVENT, 1))[0].t_created_utc)[1]
    await put(store, "t1", lane=Lane.TELEMETRY)
    await store.put(Message(Lane.EVENT, "r1", "t", lambda _: b"r1", retain=True))
    link = ScriptedLink()
    now_utc = created + timedelta(seconds=40)
    limits = {Lane.EVENT: 100.0, Lane.TELEMETRY: 10.0}
    async with running(Relay(store, link, max_age_s=limits, now_utc=lambda: now_utc)):
        await empty(store)
    found = dict(zip(link.sent, link.envelopes, strict=True))
    first = found[b"e1"]
    assert first == Envelope(
        content_type="application/json",
        utf8=True,
        expiry_s=60,
        user_properties=(("id", "e1"), ("lane", "event"), ("sequence", "0000000000000001")),
    )
    telemetry = found[b"t1"]
    assert telemetry is not None
    assert telemetry.expiry_s == 1  # never 0, which would throw it away at once
    assert telemetry.user_properties == (("id", "t1"), ("lane", "telemetry"))
    retained = found[b"r1"]
    assert retained is not None
    assert retained.expiry_s is None


async def test_a_clock_that_was_put_right_takes_no_time_from_what_waits(store: OutboxStore) -> None:
    """What was taken from the store before the jump keeps its old time. Too old it cannot be: that is given up."""
    await put(store, "a1", lane=Lane.ALARM)
    await put(store, "t1", lane=Lane.TELEMETRY)
    created = (await store.fetch(Lane.ALARM, 1))[0].t_created_utc
    now_utc = created + timedelta(days=20_000)
    link = ScriptedLink()
    limits = {Lane.ALARM: 100.0, Lane.TELEMETRY: 10.0}
    async with running(Relay(store, link, max_age_s=limits, now_utc=lambda: now_utc)):
        await empty(store)
    assert [envelope.expiry_s for envelope in link.envelopes if envelope is not None] == [100, 1]


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


async def test_what_is_queued_again_is_sent_again_in_order_and_before_what_is_newer(store: OutboxStore) -> None:
    names = [f"e{n}" for n in range(10)]
    await put(store, *names)
    link = ScriptedLink()
    relay = Relay(store, link, max_in_flight=1)
    async with running(relay):
        await empty(store)
        await asyncio.sleep(0.05)  # idle
        done = await store.requeue(3, 6)
        relay.turn_back(done.lowest)
        await empty(store)
        assert link.sent[10:] == [b"e2", b"e3", b"e4", b"e5"]
        await asyncio.gather(*(put(store, f"new{n}") for n in range(400)))
        done = await store.requeue(1, 2)
        relay.turn_back(done.lowest)  # in mid drain
        await empty(store)
    again = link.sent[14:]
    assert [name for name in again if name.startswith(b"e")] == [b"e0", b"e1"]
    assert again.index(b"e1") < 300
    new = [name for name in again if name.startswith(b"new")]
    assert list(dict.fromkeys(new)) == [b"new%d" % n for n in range(400)]


async def test_the_age_of_what_is_queued_again_counts_from_then(tmp_path: Path) -> None:
    clock_us = 1_000_000_000_000_000
    store = await OutboxStore.open(tmp_path / "events.db", OutboxConfig(), clock_us=lambda: clock_us)
    await put(store, "e1")
    link = ScriptedLink()
    relay = Relay(store, link, max_age_s={Lane.EVENT: 100.0}, now_utc=lambda: from_us(clock_us))
    async with running(relay):
        await empty(store)
        clock_us += 3_600_000_000
        relay.turn_back((await store.requeue(1, 1)).lowest)
        await empty(store)
    await store.close()
    assert [envelope.expiry_s for envelope in link.envelopes if envelope is not None] == [100, 100]


async def test_a_quota_waits_the_longest(store: OutboxStore) -> None:
    link = ScriptedLink()
    link.answers[b"e1"] = [QuotaError("Quota exceeded (0x97)")]
    await put(store, "e1")
    async with running(Relay(store, link, backoff=BackoffConfig(initial_s=0.001, max_s=0.4))):
        await empty(store)
    assert 0.2 <= link.sent_at_s[1] - link.sent_at_s[0] < 1


async def test_a_poison_message_becomes_a_dead_letter_and_its_lane_goes_on(store: OutboxStore) -> None:
    link = ScriptedLink()
    link.answers[b"poison"] = [UnexplainedError("Unspecified error (0x80)", 0x80)] * 100
    relay = Relay(store, link, max_in_flight=1, backoff=FAST, doubts=Doubts(refusals=4, over_s=0.1))
    await put(store, "poison", "after")
    async with running(relay):
        await until(lambda: relay.stats.retried >= 6)  # nothing else was taken: perhaps it is the broker
        assert link.sent.count(b"poison") >= 6
        await put(store, "alarm", lane=Lane.ALARM)
        await empty(store)
    assert link.sent[-1] == b"after"
    (letter,) = await store.dead_letters()
    assert letter.event_id == "poison"
    assert "given up" in letter.reason
    assert "0x80" in letter.reason


async def test_lost_connections_never_make_a_dead_letter(store: OutboxStore) -> None:
    link = ScriptedLink()
    link.answers[b"e1"] = [TransientError("connection lost")] * 30
    relay = Relay(store, link, backoff=BackoffConfig(initial_s=0.001, max_s=0.002), doubts=Doubts(1, 0))
    await put(store, "e1", "e2")
    async with running(relay):
        await empty(store)
    assert await store.dead_letters() == []
    assert relay.stats.delivered == 2


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
