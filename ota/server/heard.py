"""When a device was last heard of: gathered, and written for many at once."""

from __future__ import annotations

import asyncio

import structlog

from agent.errors import StorageError
from ota.store import devices
from ota.store.devices import Seen
from ota.store.store import Store

_log = structlog.get_logger(__name__)
WRITE_EVERY_S = 10.0
_TOGETHER = 500
"""In one transaction, which feedback may have to wait for."""


class Heard:
    """Losing the last seconds of it at a crash costs nothing: the device asks again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[int, Seen] = {}

    def note(self, device_id: int, at_ms: int, address: str) -> None:
        self._seen[device_id] = Seen(device_id, at_ms, address)

    async def run(self) -> None:
        """Writes until cancelled, and what is left then."""
        try:
            while True:
                await asyncio.sleep(WRITE_EVERY_S)
                await self.flush()
        finally:
            await self.flush()

    async def flush(self) -> None:
        # In the order in which they lie on the disk: each page is written once, not once for each transaction.
        seen, self._seen = sorted(self._seen.values(), key=lambda one: one.device_id), {}
        for start in range(0, len(seen), _TOGETHER):
            try:
                await self._store.write(devices.saw, seen[start : start + _TOGETHER])
            except StorageError as error:
                _log.warning("last_seen_not_written", error=str(error), devices=len(seen) - start)
                return
