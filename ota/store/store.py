"""The database behind one door: reads on connections of their own, all writes through one that commits for many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from agent.errors import StorageError
from ota.store.engines import Backend, Done, JobFailed, open_backend, run_all, run_each
from ota.store.migrate import migrate, migrations

_log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
MAX_BATCH = 500
"""Writes in one commit, which bounds how long the first of them waits."""


@dataclass(slots=True)
class _Job:
    function: Callable[[Connection], Any]
    done: asyncio.Future[Any]


class Store:
    """Functions are given a synchronous `Connection`, in another thread or greenlet, so that several make up one transaction."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._jobs: list[_Job] = []
        self._more = asyncio.Event()
        self.commits = 0
        self.writes = 0

    async def read(self, function: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function(connection, ...)` returns. Raises StorageError."""
        return await _answer(self._backend.read(lambda connection: function(connection, *args, **kwargs)))

    async def survey(
        self, function: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `read`, for what looks at every device: one at a time, and nobody who reads waits for it."""
        return await _answer(self._backend.survey(lambda connection: function(connection, *args, **kwargs)))

    async def write(self, function: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `read`, in a transaction; returns after its commit.

        Shares the commit with the writes that wait at the same time. What `function` raises reaches this caller alone, and undoes its
        own changes alone. It may be called twice (a batch with a failure in it is done again), so it may touch nothing but the
        database. Raises StorageError.
        """
        job = _Job(lambda connection: function(connection, *args, **kwargs), asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._more.set()
        return cast(T, await job.done)

    async def run(self) -> None:
        """Writes until cancelled."""
        while True:
            await self._more.wait()
            jobs, self._jobs = self._jobs[:MAX_BATCH], self._jobs[MAX_BATCH:]
            if not self._jobs:
                self._more.clear()
            if jobs:
                await self._commit(jobs)

    async def drain(self) -> None:
        """Commits what waits, after `run` has ended."""
        while self._jobs:
            jobs, self._jobs = self._jobs[:MAX_BATCH], self._jobs[MAX_BATCH:]
            await self._commit(jobs)

    async def migrate(self) -> None:
        """Bring the tables up to date. Raises StorageError."""
        known = migrations()
        try:
            while number := await self._backend.write(lambda connection: migrate(connection, known)):
                _log.info("fleet_database_migrated", migration=number)
        except (SQLAlchemyError, OSError) as error:
            raise StorageError(f"the database cannot be opened: {_brief(error)}") from error

    async def close(self) -> None:
        await self._backend.close()

    async def _commit(self, jobs: list[_Job]) -> None:
        # A cancelled commit would leave its callers without an answer to what may be on the disk.
        task = asyncio.ensure_future(self._settle(jobs))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise

    async def _settle(self, jobs: list[_Job]) -> None:
        outcomes: list[Done | Exception]
        try:
            outcomes = await self._attempt([job.function for job in jobs])
        except (SQLAlchemyError, OSError) as error:
            _log.error("fleet_database_failed", error=_brief(error), writes=len(jobs))
            outcomes = [StorageError(f"the database does not take it: {_brief(error)}") for _ in jobs]
        except Exception as error:  # noqa: BLE001 - the task must live on and those who wait must hear of it
            outcomes = [error for _ in jobs]
        self.commits += 1
        self.writes += len(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.done.done():
                continue  # its caller has left
            if isinstance(outcome, Done):
                job.done.set_result(outcome.value)
            else:
                job.done.set_exception(_translate(outcome))

    async def _attempt(self, functions: list[Callable[[Connection], Any]]) -> list[Done | Exception]:
        """Without savepoints first: usually nothing fails."""
        try:
            return list(await self._backend.write(partial(run_all, functions=functions)))
        except JobFailed as failed:
            if len(functions) == 1:
                return [failed.error]
        return await self._backend.write(partial(run_each, functions=functions))


async def _answer(reading: Awaitable[T]) -> T:
    try:
        return await reading
    except (SQLAlchemyError, OSError) as error:
        raise StorageError(f"the database does not answer: {_brief(error)}") from error


def _translate(error: Exception) -> Exception:
    return StorageError(f"the database refuses it: {_brief(error)}") if isinstance(error, SQLAlchemyError) else error


def _brief(error: BaseException) -> str:
    """One line without the statement and its values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return " ".join(str(cause).split())[:300]


@asynccontextmanager
async def open_store(url: str) -> AsyncGenerator[Store, None]:
    """A store at work. url: `sqlite:///path` or `postgresql://user@host/name`. Raises ConfigError, StorageError."""
    store = Store(open_backend(url))
    writing: asyncio.Task[None] | None = None
    try:
        await store.migrate()
        writing = asyncio.create_task(store.run(), name="fleet-store")
        yield store
    finally:
        if writing is not None:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await store.drain()
        await store.close()
