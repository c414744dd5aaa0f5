"""The event feed: what changed, for whoever watches now. In memory: what is to last stands in the tables."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

KEPT = 1000
"""Events that a listener may be behind before it is told to read everything again."""
_PER_MS = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """kind: device, action, release, rollout, group, or `reset`: some were missed. id: rises, also over restarts; 0 for `reset`.
    at_ms: when it was told, UTC."""

    id: int
    at_ms: int
    kind: str
    subject: int | str
    fields: dict[str, Any]


class Feed:
    """clock_ms: wall time; ids begin with that of the start, so that a listener's last id of before it is below all of this one's."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._clock_ms = clock_ms
        self._next = clock_ms() * _PER_MS
        self._more: asyncio.Future[None] | None = None
        self.listeners = 0
        self._closed = False

    def tell(self, kind: str, subject: int | str, **fields: Any) -> None:
        """On the loop, after the commit."""
        self._events.append(Event(self._next, self._clock_ms(), kind, subject, fields))
        self._next += 1
        self._wake()

    def close(self) -> None:
        """The server stops: every `listen` ends."""
        self._closed = True
        self._wake()

    async def listen(self, last_id: int | None = None) -> AsyncGenerator[Event, None]:
        """Events after `last_id` (None: from now on) until the server stops; begins with `reset` when some of them are gone."""
        at = self._next if last_id is None else min(last_id + 1, self._next)
        self.listeners += 1
        try:
            while not self._closed:
                oldest = self._events[0].id if self._events else self._next
                if at < oldest:
                    yield Event(0, self._clock_ms(), "reset", "", {})
                    at = oldest
                for event in list(islice(self._events, at - oldest, None)):  # ids have no gaps
                    yield event
                    at = event.id + 1
                if at >= self._next:
                    await self._wait()
        finally:
            self.listeners -= 1

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)
        self._more = None

    async def _wait(self) -> None:
        if self._more is None:
            self._more = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._more)
