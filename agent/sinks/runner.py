"""Takes committed alarms and events to one sink: in order, each until it is safe there, given up, or refused."""

from __future__ import annotations

import asyncio
import contextlib
import random as random_module
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Protocol

import structlog

from agent.backoff import full_jitter
from agent.config.delivery import PluginSinkConfig, SinkConfig
from agent.config.sections import BackoffConfig
from agent.errors import AccessError, BusyError, RejectedError, StorageError, TransientError, UnexplainedError
from agent.health.reasons import Reason, reason_key
from agent.ports import EventSink, HealthSink
from agent.types import GAP, OutboxRecord

_log = structlog.get_logger(__name__)

_FETCH_ROWS = 256
_SHOWN_AFTER_S = 60.0
"""A sink that fails for longer than this is a health reason."""
_LONGEST_RETRY_AFTER_S = 3600.0
"""Whatever the other side asks for, it is looked at again after this."""
_STORE_WAITS = BackoffConfig(initial_s=0.5, max_s=10.0)
_CLOSE_S = 2.0


class SinkStore(Protocol):
    """What the runner needs of the event database; `OutboxStore` is one."""

    async def fetch_after(self, sink: str, limit: int) -> list[OutboxRecord]:
        """The next alarms and events for `sink`, in order of sequence. Raises StorageError."""
        ...

    def sink_done(self, sink: str, sequence: int) -> None:
        """`sink` is done with everything up to `sequence`."""
        ...

    async def sink_refused(self, sink: str, record: OutboxRecord, reason: str) -> None:
        """`sink` will never take `record`. Raises StorageError."""
        ...

    async def sink_failed(self, sink: str) -> None:
        """Count a failed attempt for the next message of `sink`. Raises StorageError."""
        ...


@dataclass(slots=True)
class SinkStats:
    """Counters since the start. failed: deliveries that have to be tried again; refused: events given up; error: the latest."""

    delivered: int = 0
    failed: int = 0
    refused: int = 0
    error: str = ""


class SinkRunner:
    """One sink's way through the history. At least once, in order; an event that comes twice has the same event_id.

    make: builds the sink, once for each `run`; raises ConfigError, ModelError. random: uniform in [0, 1).
    """

    def __init__(
        self,
        name: str,
        config: SinkConfig,
        store: SinkStore,
        make: Callable[[], EventSink],
        health: HealthSink,
        *,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self.stats = SinkStats()
        self._name = name
        self._config = config
        self._timeout_s = (
            config.timeout_s if isinstance(config, PluginSinkConfig) else None
        )  # the others have their own
        self._store = store
        self._make = make
        self._health = health
        self._random = random
        self._wake = asyncio.Event()
        self._resting = False
        self._place = 0  # the last number that it is done with; the store may learn of it later
        self._failures = self._store_failures = 0
        self._failing_since_s: float | None = None

    @property
    def idle(self) -> bool:
        """Everything is delivered, or nothing can be for now."""
        return (self._resting and not self._wake.is_set()) or self._failures > 0

    def wake(self) -> None:
        """Something was committed."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled. What was not safe by then comes again. Raises what `make` raises, and bugs of a plug-in."""
        sink = self._make()
        try:
            while True:
                self._wake.clear()
                try:
                    if not await self._round(sink):
                        await self._rest()
                except StorageError as error:
                    await self._wait_for_store(error)
                except TransientError as error:
                    await self._hold(error)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await sink.close()

    async def _rest(self) -> None:
        """Nothing is left, until the next commit."""
        self._recover()
        self._resting = True
        try:
            await self._wake.wait()
        finally:
            self._resting = False

    async def _round(self, sink: EventSink) -> bool:
        """Deliver what one look at the store gives; False when that is nothing."""
        found = await self._store.fetch_after(self._name, _FETCH_ROWS)
        waiting = deque(record for record in found if (record.sequence or 0) > self._place)
        if found and not waiting:
            self._store.sink_done(self._name, self._place)  # a damaged database may have forgotten that it was noted
            raise StorageError("what was delivered could not be noted")
        self._store_failures = 0
        while waiting:
            batch = list(islice(takewhile(self._wanted, waiting), sink.max_batch))
            done = await self._deliver(sink, batch) if batch else 1
            for _ in range(done):
                self._finish(waiting.popleft())
        return bool(found)

    def _wanted(self, record: OutboxRecord) -> bool:
        """What the filters let through; announcements of losses concern everybody."""
        kind = record.topic.rpartition("/")[2]
        lane = record.lane.name.lower() in self._config.lanes
        return kind == GAP or (lane and (self._config.kinds is None or kind in self._config.kinds))

    def _finish(self, record: OutboxRecord) -> None:
        if record.sequence is not None and record.sequence > self._place:
            self._place = record.sequence
            self._store.sink_done(self._name, record.sequence)

    async def _deliver(self, sink: EventSink, batch: Sequence[OutboxRecord]) -> int:
        """How many of `batch` are done with: delivered, or the first of them refused."""
        try:
            async with asyncio.timeout(self._timeout_s):
                delivered = await sink.deliver(batch)
        except TimeoutError:
            raise TransientError(
                f"no answer within {self._timeout_s:g} s" if self._timeout_s else "no answer"
            ) from None
        except UnexplainedError as error:
            await self._store.sink_failed(self._name)
            limit = self._config.give_up_after
            if not limit or batch[0].attempts + 1 < limit:
                raise
            await self._refuse(batch[0], f"given up after {batch[0].attempts + 1} answers: {error}")
            return 1
        except RejectedError as error:
            await self._refuse(batch[0], str(error))
            return 1
        if not 1 <= delivered <= len(batch):
            raise RuntimeError(f"a sink delivers 1 to {len(batch)} of {len(batch)} records, this one said {delivered}")
        self.stats.delivered += delivered
        self._recover()
        return delivered

    async def _refuse(self, record: OutboxRecord, reason: str) -> None:
        _log.warning("sink_refused", sink=self._name, event_id=record.event_id, sequence=record.sequence, error=reason)
        await self._store.sink_refused(self._name, record, reason)
        self.stats.refused += 1
        self.stats.error = reason
        self._health.raise_reason(
            reason_key(Reason.SINK_REJECTED, self._name), f"{self.stats.refused} events; the latest: {reason}"
        )
        self._recover()

    def _recover(self) -> None:
        """The other side is there and answers."""
        if self._failing_since_s is not None:
            _log.info("sink_is_well_again", sink=self._name, failures=self._failures)
            self._health.clear_reason(reason_key(Reason.SINK_FAILING, self._name))
        self._failures = 0
        self._failing_since_s = None

    async def _wait_for_store(self, error: StorageError) -> None:
        """Health has a reason of its own for the database."""
        wait_s = full_jitter(self._store_failures, _STORE_WAITS.initial_s, _STORE_WAITS.max_s, self._random)
        self._store_failures += 1
        _log.warning("sink_waits_for_store", sink=self._name, error=str(error), wait_s=round(wait_s, 3))
        await asyncio.sleep(wait_s)

    async def _hold(self, error: TransientError) -> None:
        """Wait before the next try."""
        now_s = asyncio.get_running_loop().time()
        wait_s = self._wait_s(error)
        self._failures += 1
        self.stats.failed += 1
        self.stats.error = str(error)
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        if isinstance(error, AccessError) or now_s + wait_s - self._failing_since_s > _SHOWN_AFTER_S:
            self._health.raise_reason(reason_key(Reason.SINK_FAILING, self._name), str(error))
        _log.info("sink_postponed", sink=self._name, error=str(error), failures=self._failures, wait_s=round(wait_s, 3))
        await asyncio.sleep(wait_s)

    def _wait_s(self, error: TransientError) -> float:
        backoff = self._config.backoff
        if isinstance(error, AccessError):
            return backoff.max_s * (1 + self._random()) / 2
        wait_s = full_jitter(self._failures, backoff.initial_s, backoff.max_s, self._random)
        if isinstance(error, BusyError):  # after the time that was named, and not all devices at once
            return min(error.retry_after_s, _LONGEST_RETRY_AFTER_S) + wait_s
        return wait_s
