"""Takes committed messages to the broker: lane by lane, in order, a bounded number unacknowledged, deleted when acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import structlog

from agent.backoff import full_jitter
from agent.config.sections import BackoffConfig
from agent.errors import QuotaError, RejectedError, StorageError, TransientError, UnexplainedError
from agent.outbox.doubts import Doubts
from agent.outbox.envelopes import envelope_of
from agent.outbox.store import OutboxStore
from agent.ports import Envelope, Publisher
from agent.throttle import Throttle
from agent.types import Lane, OutboxRecord

log = structlog.get_logger(__name__)

Seal = Callable[[bytes, Envelope], tuple[bytes, Envelope]]
"""Makes the payload and the envelope that are sent out of those of a message; the same ones each time."""

_FETCH_ROWS = 256
_REFILL_BELOW = 128
"""Fetch ahead: a fetch may have to wait for a commit, and the link should not."""
_LOOK_AGAIN_S = 1.0
"""A throttled relay sleeps no longer than this: the rate may have been changed."""


class Link(Publisher, Protocol):
    """A way out that says when it is open.

    `publish` must hand its message over before it first waits: the relay starts publishes in order and relies on it.
    """

    @property
    def connected(self) -> bool: ...

    @property
    def receive_maximum(self) -> int:
        """How many publishes may be unacknowledged; 1 or more."""
        ...

    async def wait_connected(self) -> None: ...


@dataclass(slots=True)
class RelayStats:
    """Counters since the start. retried: publishes that failed for the moment; rejected: refused for good."""

    delivered: int = 0
    retried: int = 0
    rejected: int = 0
    in_flight: int = 0


@dataclass(slots=True)
class _LaneState:
    """Where the relay stands in a lane. cursor: last row id taken from the store; failed: lowest row id to go back to."""

    cursor: int = 0
    ready: deque[OutboxRecord] = field(default_factory=deque)
    fetching: bool = False
    in_flight: int = 0
    failed: int | None = None
    failures: int = 0
    not_before_s: float = 0.0


class Relay:
    """Publishes what is pending in `store` through `link`.

    At least once, in order within a lane; a message that is sent twice has the same event_id. A lane whose message
    fails for the moment stops, waits for its other acknowledgements, and goes on from the lowest failed row after a
    full-jitter wait, or as soon as the link is back when it was lost. An alarm that is committed goes before everything
    that has not been handed to the link yet.

    max_in_flight: bound on unacknowledged publishes, next to the link's own. backoff: of a lane on an open link.
    throttle: bound on bytes. doubts: when a message that is refused without a reason is given up. max_age_s: what the
    broker is told of how long a message of a lane is worth keeping; absent = for ever; may be replaced while running.
    seal: compresses, signs.
    """

    def __init__(
        self,
        store: OutboxStore,
        link: Link,
        *,
        max_in_flight: int = 20,
        backoff: BackoffConfig | None = None,
        throttle: Throttle | None = None,
        doubts: Doubts | None = None,
        max_age_s: Mapping[Lane, float] | None = None,
        seal: Seal = lambda payload, envelope: (payload, envelope),
        now_utc: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.stats = RelayStats()
        self.max_age_s: Mapping[Lane, float] = max_age_s or {}
        self._store = store
        self._link = link
        self._max_in_flight = max_in_flight
        self._backoff = backoff or BackoffConfig()
        self._throttle = throttle or Throttle(0.0, time.monotonic)
        self._doubts = doubts or Doubts()
        self._seal = seal
        self._now_utc = now_utc
        self._throttled_s = 0.0
        self._lanes = {lane: _LaneState() for lane in Lane}
        self._wake = asyncio.Event()
        store.on_commit(self._wake.set)

    async def run(self) -> None:
        """Relay until cancelled. What was not acknowledged by then stays in the store."""
        self._lanes = {lane: _LaneState() for lane in Lane}
        self.stats.in_flight = 0
        async with asyncio.TaskGroup() as tasks:
            while True:
                if not self._link.connected:
                    await self._link.wait_connected()
                self._wake.clear()
                record = self._next(tasks)
                if record is None:
                    await self._sleep()
                    continue
                lane = self._lanes[record.lane]
                envelope = envelope_of(record, self.max_age_s.get(record.lane), self._now_utc())
                payload, envelope = self._seal(record.payload, envelope)
                self._throttle.charge(len(record.topic) + len(payload), urgent=record.lane is Lane.ALARM)
                lane.in_flight += 1
                self.stats.in_flight += 1
                tasks.create_task(self._deliver(record, payload, envelope, lane), name="deliver")

    def turn_back(self, lowest: Mapping[Lane, int]) -> None:
        """Begin again at these row ids, by lane: rows at or above them are pending that were passed before."""
        for name, row_id in lowest.items():
            lane = self._lanes[name]
            lane.failed = row_id if lane.failed is None else min(lane.failed, row_id)
        self._wake.set()

    def _next(self, tasks: asyncio.TaskGroup) -> OutboxRecord | None:
        """The next record to send, of the highest lane that has one; None when there is none, or it has to wait."""
        self._throttled_s = 0.0
        # all of them, also those behind what has to wait: one that is due to turn back would keep `_sleep` from sleeping
        open_lanes = [(name, lane) for name, lane in self._lanes.items() if self._may_send(lane)]
        if self.stats.in_flight >= min(self._max_in_flight, self._link.receive_maximum):
            return None
        for name, lane in open_lanes:
            if len(lane.ready) < _REFILL_BELOW and self._store.newest[name] > lane.cursor and not lane.fetching:
                lane.fetching = True
                tasks.create_task(self._refill(name, lane), name="refill")
            if lane.ready:
                self._throttled_s = self._throttle.wait_s(urgent=name is Lane.ALARM)
                return None if self._throttled_s else lane.ready.popleft()
            if lane.fetching and name is Lane.ALARM:
                return None  # it is on its way from the store, and what went now would go before it
        return None

    async def _refill(self, name: Lane, lane: _LaneState) -> None:
        newest = self._store.newest[name]
        try:
            records = await self._store.fetch(name, _FETCH_ROWS, lane.cursor)
        except StorageError as error:
            self._hold(name, lane, lane.cursor + 1, str(error))
        else:
            lane.ready.extend(records)
            lane.cursor = records[-1].row_id if records else newest
        finally:
            lane.fetching = False
            self._wake.set()

    def _may_send(self, lane: _LaneState) -> bool:
        """Whether the lane is open; a failed lane turns back once its last acknowledgement and its wait are over."""
        if lane.failed is None:
            return True
        if lane.in_flight or lane.fetching or asyncio.get_running_loop().time() < lane.not_before_s:
            return False
        lane.cursor, lane.failed = lane.failed - 1, None
        lane.ready.clear()
        return True

    async def _sleep(self) -> None:
        """Until a commit, an acknowledgement, the end of a lane's wait, or of the throttle's."""
        waits = [
            lane.not_before_s
            for lane in self._lanes.values()
            if lane.failed is not None and not lane.in_flight and not lane.fetching
        ]
        if self._throttled_s:
            waits.append(asyncio.get_running_loop().time() + min(self._throttled_s, _LOOK_AGAIN_S))
        if not waits:
            await self._wake.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min(waits)):
                await self._wake.wait()

    async def _deliver(self, record: OutboxRecord, payload: bytes, envelope: Envelope, lane: _LaneState) -> None:
        try:
            await self._link.publish(record.topic, payload, qos=1, retain=record.retain, envelope=envelope)
        except UnexplainedError as error:
            if self._doubts.give_up(record.row_id, asyncio.get_running_loop().time()):
                await self._bury(record, lane, RejectedError(f"given up: {error}", error.reason_code))
            else:
                self._postpone(record, lane, error)
        except TransientError as error:
            self._postpone(record, lane, error)
        except RejectedError as error:
            await self._bury(record, lane, error)
        else:
            self._store.forget((record.row_id,))
            self.stats.delivered += 1
            self._doubts.delivered(record.row_id)
            lane.failures = 0
        finally:
            lane.in_flight -= 1
            self.stats.in_flight -= 1
            self._wake.set()

    def _postpone(self, record: OutboxRecord, lane: _LaneState, error: TransientError) -> None:
        """Go back to `record`. A lost link has its own backoff, so the lane adds none."""
        self.stats.retried += 1
        self._store.mark_attempt((record.row_id,))
        if self._link.connected:
            self._hold(record.lane, lane, record.row_id, str(error), longest=isinstance(error, QuotaError))
        else:
            lane.failed = record.row_id if lane.failed is None else min(lane.failed, record.row_id)

    def _hold(self, name: Lane, lane: _LaneState, row_id: int, reason: str, *, longest: bool = False) -> None:
        """Stop the lane for a while, then go on from `row_id`; one wait for all that fail together."""
        first = lane.failed is None
        lane.failed = row_id if lane.failed is None else min(lane.failed, row_id)
        if not first:
            return
        if longest:
            wait_s = random.uniform(self._backoff.max_s / 2, self._backoff.max_s)  # noqa: S311 - jitter, not a secret
        else:
            wait_s = full_jitter(lane.failures, self._backoff.initial_s, self._backoff.max_s, random.random)
        lane.failures += 1
        lane.not_before_s = asyncio.get_running_loop().time() + wait_s
        log.info("delivery_postponed", lane=name.name.lower(), error=reason, wait_s=round(wait_s, 3))

    async def _bury(self, record: OutboxRecord, lane: _LaneState, error: RejectedError) -> None:
        self.stats.rejected += 1
        log.warning(
            "delivery_refused", topic=record.topic, event_id=record.event_id, sequence=record.sequence, error=str(error)
        )
        try:
            await self._store.dead_letter(record.row_id, f"{error} (reason code 0x{error.reason_code:02x})")
        except StorageError as problem:
            self._postpone(record, lane, TransientError(f"could not be kept as a dead letter: {problem}"))
