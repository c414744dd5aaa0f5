"""Lets rollouts go on: asks the engine whenever a device has reported, somebody has changed something, or a wait is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog
from sqlalchemy import Connection

from agent.errors import StorageError
from ota.rollouts import records
from ota.rollouts.engine import decide, next_start_ms
from ota.rollouts.steps import Change, Moment, step
from ota.store.errors import MissingError
from ota.store.store import Store

_log = structlog.get_logger(__name__)

SWEEP_S = 20.0
"""All rollouts are looked at so often, should a report have got past unnoticed."""
GATHER_S = 0.3
"""Reports of so long are one look at the tallies."""
RETRY_S = 5.0


class Tell(Protocol):
    def __call__(self, change: Change) -> None:
        """A change that is committed."""
        ...


class Driver:
    """One per server. `wake` may be called from anywhere on the loop."""

    def __init__(self, store: Store, moment: Callable[[], Moment], tell: Tell) -> None:
        self._store = store
        self._moment = moment
        self._tell = tell
        self._due: set[int] = set()
        self._timers: dict[int, int] = {}
        self._sweep_at_s = 0.0
        self._woken = asyncio.Event()
        self.steps = 0

    def wake(self, rollout_id: int) -> None:
        self._due.add(rollout_id)
        self._woken.set()

    def wake_all(self) -> None:
        """Something happened that may be about any of them."""
        self._sweep_at_s = 0.0
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled; a database that does not answer is asked again."""
        while True:
            self._woken.clear()
            try:
                if self._now_s() >= self._sweep_at_s:
                    self._sweep_at_s = self._now_s() + SWEEP_S
                    self._due |= set(await self._store.read(records.alive))
                await self._settle_due()
            except StorageError as error:
                _log.error("rollouts_wait_for_the_database", error=str(error))
                self._sweep_at_s = 0.0
                await asyncio.sleep(RETRY_S)
                continue
            await self._rest(min(self._sweep_at_s - self._now_s(), self._next_timer_s()))

    async def settle(self, rollout_id: int) -> int | None:
        """Carry out all that is due in one rollout; when it has to be looked at again by the clock (UTC milliseconds). Raises
        StorageError."""
        while True:
            try:
                idle, soon_ms = await self._store.read(self._look, rollout_id)
                if idle:
                    return soon_ms
                changes = await self._store.write(step, rollout_id, self._moment())
            except MissingError:
                return None
            self.steps += 1
            for change in changes:
                self._tell(change)
            if not changes:  # it cannot begin yet: the next sweep tries again
                return None

    async def _settle_due(self) -> None:
        now_ms = self._moment().now_ms
        due = self._due | {rollout_id for rollout_id, at_ms in self._timers.items() if at_ms <= now_ms}
        self._due = set()  # whoever wakes one from here on may know more: it is looked at again, a moment later
        while due:
            rollout_id = due.pop()
            try:
                soon_ms = await self.settle(rollout_id)
            except StorageError:
                self._due |= due | {rollout_id}
                raise
            self._timers.pop(rollout_id, None)
            if soon_ms is not None:
                self._timers[rollout_id] = soon_ms

    def _next_timer_s(self) -> float:
        if not self._timers:
            return SWEEP_S
        return (min(self._timers.values()) - self._moment().now_ms) / 1000

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                # `wait_for` swallows a cancellation that comes as it ends (Python 3.11)
                await self._woken.wait()
        except TimeoutError:
            return
        await asyncio.sleep(GATHER_S)

    def _look(self, connection: Connection, rollout_id: int) -> tuple[bool, int | None]:
        """Whether nothing is due, and when time alone changes that."""
        rollout = records.get(connection, rollout_id).rollout
        return not decide(rollout, self._moment().now_ms), next_start_ms(rollout)
