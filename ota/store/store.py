"""The database behind one door: reads on connections of their own, all writes through one that commits for many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import structlog
from sqlalchemy import Connection, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agent.errors import ConfigError, StorageError
from ota.store.migrate import migrate, migrations

_log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
MAX_BATCH = 500
"""Writes in one commit, which bounds how long the first of them waits."""
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
_READERS = {"sqlite": 2, "postgresql": 4}


@dataclass(slots=True)
class _Job:
    function: Callable[[Connection], Any]
    done: asyncio.Future[Any]


class Store:
    """Functions are given a synchronous `Connection` (inside SQLAlchemy's greenlet), so that several make up one transaction."""

    def __init__(self, url: URL) -> None:
        self.dialect = url.get_backend_name()
        self._writer = _engine(url, readers=0)
        self._readers = _engine(url, readers=_READERS[self.dialect])
        self._jobs: list[_Job] = []
        self._more = asyncio.Event()
        self.commits = 0
        self.writes = 0

    async def read(self, function: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function(connection, ...)` returns. Raises StorageError."""
        try:
            async with self._readers.connect() as connection:
                return await connection.run_sync(function, *args, **kwargs)
        except (SQLAlchemyError, OSError) as error:
            raise StorageError(f"the database does not answer: {_brief(error)}") from error

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

    async def close(self) -> None:
        """The readers first: of two SQLite connections only the writing one may write back the log."""
        await self._readers.dispose()
        await self._writer.dispose()

    async def _commit(self, jobs: list[_Job]) -> None:
        # A cancelled commit would leave its callers without an answer to what may be on the disk.
        task = asyncio.ensure_future(self._settle(jobs))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise

    async def _settle(self, jobs: list[_Job]) -> None:
        try:
            outcomes = await self._attempt(jobs)
        except (SQLAlchemyError, OSError) as error:
            _log.error("fleet_database_failed", error=_brief(error), writes=len(jobs))
            outcomes = [StorageError(f"the database does not take it: {_brief(error)}") for _ in jobs]
        self.commits += 1
        self.writes += len(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.done.done():
                continue  # its caller has left
            if isinstance(outcome, _Result):
                job.done.set_result(outcome.value)
            else:
                job.done.set_exception(outcome)

    async def _attempt(self, jobs: list[_Job]) -> list[_Result | Exception]:
        functions = [job.function for job in jobs]
        try:
            async with self._writer.begin() as connection:
                return await connection.run_sync(_all, functions)
        except _JobFailed as failed:
            if len(functions) == 1:
                return [_translate(failed.error)]
        async with self._writer.begin() as connection:
            return await connection.run_sync(_each, functions)


@dataclass(frozen=True, slots=True)
class _Result:
    value: Any


class _JobFailed(Exception):  # noqa: N818  carries an error, is none
    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _all(connection: Connection, functions: list[Callable[[Connection], Any]]) -> list[_Result | Exception]:
    """The usual case: all of them work."""
    results: list[_Result | Exception] = []
    for function in functions:
        try:
            results.append(_Result(function(connection)))
        except Exception as error:
            if _lost(error):
                raise
            raise _JobFailed(error) from error
    return results


def _each(connection: Connection, functions: list[Callable[[Connection], Any]]) -> list[_Result | Exception]:
    """Each in a savepoint, for one of them fails."""
    results: list[_Result | Exception] = []
    for function in functions:
        try:
            with connection.begin_nested():
                results.append(_Result(function(connection)))
        except Exception as error:
            if _lost(error):
                raise
            results.append(_translate(error))
    return results


def _translate(error: Exception) -> Exception:
    return StorageError(f"the database refuses it: {_brief(error)}") if isinstance(error, SQLAlchemyError) else error


def _lost(error: Exception) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _brief(error: BaseException) -> str:
    """One line without the statement and its values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return " ".join(str(cause).split())[:300]


@asynccontextmanager
async def open_store(url: str) -> AsyncGenerator[Store, None]:
    """A store at work. url: `sqlite:///path` or `postgresql://user@host/name`. Raises ConfigError, StorageError."""
    store = Store(_parse(url))
    writing: asyncio.Task[None] | None = None
    try:
        await _migrate(store)
        writing = asyncio.create_task(store.run(), name="fleet-store")
        yield store
    finally:
        if writing is not None:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await store.drain()
        await store.close()


async def _migrate(store: Store) -> None:
    known = migrations()
    try:
        while True:
            async with store._writer.begin() as connection:  # noqa: SLF001  this module's own
                number = await connection.run_sync(migrate, known)
            if not number:
                return
            _log.info("fleet_database_migrated", migration=number)
    except (SQLAlchemyError, OSError) as error:
        raise StorageError(f"the database cannot be opened: {_brief(error)}") from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ConfigError("database: not a URL; write sqlite:///file or postgresql://user@host/name") from error
    if backend not in _DRIVERS:
        raise ConfigError(f"database: {backend} is not supported; write sqlite:///file or postgresql://user@host/name")
    return parsed.set(drivername=_DRIVERS[backend])


def _engine(url: URL, *, readers: int) -> AsyncEngine:
    """readers: connections that read, 0 = the one that writes."""
    try:
        engine = create_async_engine(
            url, pool_size=readers or 1, max_overflow=0, pool_pre_ping=url.get_backend_name() != "sqlite"
        )
    except ImportError as error:
        raise ConfigError(f"database: {error.name} is missing: pip install 'recognizer-agent[postgres]'") from error
    if url.get_backend_name() == "sqlite":
        _prepare_sqlite(engine, writes=not readers)
    return engine


def _prepare_sqlite(engine: AsyncEngine, *, writes: bool) -> None:
    """One connection writes and checkpoints: before 3.51.3 SQLite may corrupt the file when two do at once."""

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # else the driver begins transactions by itself, and none for a savepoint
        cursor = connection.cursor()
        pragmas = ["foreign_keys=ON", "busy_timeout=10000"]
        pragmas += ["journal_mode=WAL", "synchronous=FULL"] if writes else ["query_only=ON", "wal_autocheckpoint=0"]
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
