"""The two kinds of database behind one face: SQLite in threads, PostgreSQL through asyncio.

Both run the same synchronous functions. SQLite's calls are so short that handing each of them to a thread (what aiosqlite does) costs
more than the calls: here a whole function goes over at once, at a quarter of the processor time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from agent.errors import ConfigError

T = TypeVar("T")
Function = Callable[[Connection], Any]
SHAPE = "write sqlite:///file or postgresql://user@host/name"
_POSTGRES = frozenset({"postgresql", "postgres"})
_READERS = 2


@dataclass(frozen=True, slots=True)
class Done:
    """A function returned `value`."""

    value: Any


class JobFailed(Exception):  # noqa: N818  carries an error, is none
    """One of several functions raised `error`: nothing of them stays."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Backend(Protocol):
    """Raises SQLAlchemyError and OSError where the database itself fails."""

    dialect: str

    async def read(self, function: Callable[[Connection], T]) -> T: ...

    async def survey(self, function: Callable[[Connection], T]) -> T:
        """A read that takes long: one at a time, in a thread of its own, which no other read waits for."""
        ...

    async def write(self, function: Callable[[Connection], T]) -> T:
        """In a transaction, committed on return."""
        ...

    async def close(self) -> None: ...


def open_backend(url: str) -> Backend:
    """url: `sqlite:///path` or `postgresql://user@host/name`. Raises ConfigError."""
    try:
        parsed = make_url(url)
        name = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ConfigError(f"database: not a URL; {SHAPE}") from error
    if name == "sqlite":
        return _Sqlite(parsed.set(drivername="sqlite"))
    if name not in _POSTGRES:
        raise ConfigError(f"database: {name} is not supported; {SHAPE}")
    try:
        return _Postgresql(parsed.set(drivername="postgresql+asyncpg"))
    except ImportError as error:
        raise ConfigError(f"database: {error.name} is missing: pip install 'recognizer-agent[postgres]'") from error


class _Sqlite:
    """One connection writes and checkpoints: before 3.51.3 SQLite may corrupt the file when two do at once."""

    def __init__(self, url: URL) -> None:
        self.dialect = "sqlite"
        self._writer = _sqlite_engine(url, writes=True)
        self._readers = _sqlite_engine(url, writes=False)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="fleet-write")
        self._read_threads = ThreadPoolExecutor(_READERS, thread_name_prefix="fleet-read")
        self._survey_thread = ThreadPoolExecutor(1, thread_name_prefix="fleet-survey")

    async def read(self, function: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._read_threads, self._read, function)

    async def survey(self, function: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._survey_thread, self._read, function)

    async def write(self, function: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._write_thread, self._write, function)

    async def close(self) -> None:
        """The readers first: whoever closes last may write the log back."""
        await asyncio.to_thread(self._survey_thread.shutdown, cancel_futures=True)
        for threads, engine in ((self._read_threads, self._readers), (self._write_thread, self._writer)):
            await asyncio.to_thread(threads.shutdown)
            engine.dispose()

    def _read(self, function: Callable[[Connection], T]) -> T:
        with self._readers.connect() as connection:
            return function(connection)

    def _write(self, function: Callable[[Connection], T]) -> T:
        with self._writer.begin() as connection:
            return function(connection)


def _sqlite_engine(url: URL, *, writes: bool) -> Engine:
    engine = create_engine(url, pool_size=1 if writes else _READERS + 1, max_overflow=0)

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # else the driver begins transactions by itself, and none for a savepoint
        pragmas = ["foreign_keys=ON", "busy_timeout=10000"]
        # Writing the log back is part of some commit, which everybody waits for: four times as often, a quarter as long.
        pragmas += (
            ["journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=250"]
            if writes
            else ["query_only=ON", "wal_autocheckpoint=0"]
        )
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


class _Postgresql:
    def __init__(self, url: URL) -> None:
        self.dialect = "postgresql"
        self._writer = create_async_engine(url, pool_size=1, max_overflow=0, pool_pre_ping=True)
        self._readers = create_async_engine(url, pool_size=2 * _READERS, max_overflow=0, pool_pre_ping=True)
        self._surveyor = create_async_engine(url, poolclass=NullPool)  # a connection belongs to the loop that opened it
        self._survey_thread = ThreadPoolExecutor(1, thread_name_prefix="fleet-survey")

    async def read(self, function: Callable[[Connection], T]) -> T:
        async with _connected(self._readers) as connection:
            return await connection.run_sync(function)

    async def survey(self, function: Callable[[Connection], T]) -> T:
        """In a loop of its own: what the function does between its queries would keep everybody else's requests."""

        async def look() -> T:
            async with _connected(self._surveyor) as connection:
                return await connection.run_sync(function)

        return await asyncio.get_running_loop().run_in_executor(self._survey_thread, lambda: asyncio.run(look()))

    async def write(self, function: Callable[[Connection], T]) -> T:
        async with _connected(self._writer) as connection, connection.begin():
            return await connection.run_sync(function)

    async def close(self) -> None:
        await asyncio.to_thread(self._survey_thread.shutdown, cancel_futures=True)
        await self._readers.dispose()
        await self._writer.dispose()


@asynccontextmanager
async def _connected(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection, None]:
    """SQLAlchemy lets through what asyncpg says of a server that turns it away (before 2.1), or that it does not understand."""
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(engine.connect())
        except (SQLAlchemyError, OSError):
            raise
        except Exception as error:
            raise ConnectionError(str(error)) from error
        yield connection


def run_all(connection: Connection, functions: list[Function]) -> list[Done]:
    """All of them, in one transaction. Raises JobFailed with the first error."""
    results: list[Done] = []
    for function in functions:
        try:
            results.append(Done(function(connection)))
        except Exception as error:
            if _lost(error):
                raise
            raise JobFailed(error) from error
    return results


def run_each(connection: Connection, functions: list[Function]) -> list[Done | Exception]:
    """Each in a savepoint: what one raises undoes its own changes alone."""
    results: list[Done | Exception] = []
    for function in functions:
        try:
            with connection.begin_nested():
                results.append(Done(function(connection)))
        except Exception as error:
            if _lost(error):
                raise
            results.append(error)
    return results


def _lost(error: Exception) -> bool:
    """The connection is gone, and with it the transaction."""
    return isinstance(error, DBAPIError) and error.connection_invalidated
