"""The one read that ten thousand devices do all day: those that ask at the same time share a query."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from agent.errors import StorageError
from ota.store import devices, tables
from ota.store.rows import ActionState, Device
from ota.store.store import Store

_MAX_TOGETHER = 200


@dataclass(frozen=True, slots=True)
class Due:
    """The oldest open action of a device."""

    action_id: int
    state: ActionState
    forced: bool


@dataclass(frozen=True, slots=True)
class Poll:
    """All that an answer to a poll is made of. installed_action_id: of the latest success."""

    device: Device
    due: Due | None
    installed_action_id: int | None


def _query() -> Any:
    """A cancellation goes first: the device would otherwise begin what it is to stop."""
    device, action, done = tables.devices, tables.actions, tables.installed
    candidate = tables.actions.alias("candidate")
    urgency = (candidate.c.state != ActionState.CANCELING, candidate.c.id)
    oldest = (
        select(candidate.c.id).where(candidate.c.device_id == device.c.id, candidate.c.open).order_by(*urgency).limit(1)
    )
    latest = select(func.max(done.c.action_id)).where(done.c.device_id == device.c.id)
    chosen = select(
        device, action.c.id.label("due_id"), action.c.state.label("due_state"), action.c.forced.label("due_forced"),
        latest.scalar_subquery().label("installed_id"),
    )  # fmt: skip
    joined = chosen.select_from(device.outerjoin(action, action.c.id == oldest.correlate(device).scalar_subquery()))
    return joined.where(device.c.controller_id.in_(bindparam("ids", expanding=True)))


_QUERY = _query()


def look(connection: Connection, controller_ids: list[str]) -> dict[str, Poll]:
    """Unknown devices are left out."""
    found = {}
    for row in connection.execute(_QUERY, {"ids": controller_ids}):
        due = Due(row.due_id, ActionState(row.due_state), row.due_forced) if row.due_id is not None else None
        found[row.controller_id] = Poll(devices.of_row(row), due, row.installed_id)
    return found


class Polls:
    """While one query is on its way the next gathers: one device waits for nobody, a thousand share."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, asyncio.Future[Poll | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def look(self, controller_id: str) -> Poll | None:
        """None for an unknown device. Raises StorageError."""
        future = self._waiting.get(controller_id)
        if future is None:
            future = self._waiting[controller_id] = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(), name="fleet-polls")
        return await asyncio.shield(future)  # several may wait for it

    async def _work(self) -> None:
        while self._waiting:
            ids = list(self._waiting)[:_MAX_TOGETHER]
            futures = {controller_id: self._waiting.pop(controller_id) for controller_id in ids}
            try:
                found = await self._store.read(look, ids)
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                for future in futures.values():
                    future.set_exception(StorageError(str(error)) if isinstance(error, StorageError) else error)
                    future.exception()  # taken note of, should the asker have left
                continue
            for controller_id, future in futures.items():
                future.set_result(found.get(controller_id))
