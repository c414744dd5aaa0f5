"""What the parts of the server share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from aiohttp import web
from sqlalchemy import Connection

from ota.server.feed import Feed
from ota.server.heard import Heard
from ota.server.limits import FailureLimits
from ota.server.metrics import Metrics
from ota.server.readers import Readers
from ota.server.settings import ServerSettings
from ota.store import audit
from ota.store.polls import Polls
from ota.store.rows import Entry, ReleaseRow
from ota.store.store import Store

P = ParamSpec("P")
T = TypeVar("T")


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Services:
    """clock_ms: wall time; gateway_hash: of the token that lets devices register themselves, None = they cannot; root: the
    repository's trusted root metadata; tasks: what runs beside the requests; sync: reads the repository now, None while there is none."""

    settings: ServerSettings
    store: Store
    clock_ms: Callable[[], int] = wall_ms
    gateway_hash: str | None = None
    root: bytes | None = None
    polls: Polls = field(init=False)
    feed: Feed = field(init=False)
    heard: Heard = field(init=False)
    readers: Readers = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    tasks: tuple[asyncio.Task[None], ...] = ()
    sync: Callable[[], Awaitable[list[ReleaseRow]]] | None = None
    failures: FailureLimits = field(default_factory=lambda: FailureLimits(time.monotonic))

    def __post_init__(self) -> None:
        self.polls = Polls(self.store)
        self.feed = Feed(self.clock_ms)
        self.heard = Heard(self.store)
        self.readers = Readers(time.monotonic)

    async def change(
        self, request: web.Request, what: str, subject: str, function: Callable[Concatenate[Connection, P], T], /,
        *args: P.args, **kwargs: P.kwargs,
    ) -> T:  # fmt: skip
        """A change and its line in the audit log, in one transaction. what: `device.create`; subject: whose."""
        return await self.change_with(request, what, subject, {}, function, *args, **kwargs)

    async def change_with(
        self, request: web.Request, what: str, subject: str, detail: Mapping[str, Any],
        function: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs,
    ) -> T:  # fmt: skip
        """As `change`, with facts for the audit log."""
        entry = entry_of(request, self.clock_ms(), what, subject, detail)

        def both(connection: Connection) -> T:
            result = function(connection, *args, **kwargs)
            audit.add(connection, entry)
            return result

        return await self.store.write(both)


def entry_of(request: web.Request, at_ms: int, what: str, subject: str, detail: Mapping[str, Any]) -> Entry:
    from ota.server.auth import client_address, who  # auth needs Services

    user = who(request)
    return Entry(at_ms, user.name, user.role, client_address(request), what, subject, detail)


SERVICES = web.AppKey("services", Services)
