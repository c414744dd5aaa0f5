"""Opening the journal: one owner, a sound file, the right schema; a damaged one is set aside.

Its rollback journal is SQLite's plain one, not a write-ahead log: it is written some twenty times an update, and once a minute while
a model is on trial, and others may read it at any time without meeting the log's faults.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import structlog

from agent.durable import make_folder, sync
from agent.errors import StorageError, StorageFullError
from agent.migrations import advance, keep, migrations_of, place_of, written_by_a_newer_agent

_log = structlog.get_logger(__name__)

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_MIGRATIONS = "agent.update.migrations"
_FULL = sqlite3.SQLITE_FULL
_PRIMARY = 0xFF
_TABLES = {"actions", "slots", "feedback", "audit"}
_BUSY_S = 5.0
_KEEP_DAMAGED = 2


class InUseError(StorageError):
    """Another process has the journal."""


class DamagedError(Exception):
    """The file is no healthy journal."""


@contextlib.contextmanager
def sole_owner(path: Path) -> Iterator[None]:
    """Hold the lock file beside `path`. Raises InUseError when another process has it, StorageError."""
    with guarded(path):
        make_folder(path.parent)
        lock = path.with_name(path.name + ".lock").open("w", encoding="ascii")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(f"{path}: already in use (hint: the agent is running)") from error
        yield


@contextlib.contextmanager
def guarded(path: Path) -> Iterator[None]:
    """SQLite's and the disk's errors as StorageError, StorageFullError."""
    try:
        yield
    except sqlite3.Error as error:
        kind = StorageFullError if _code(error) == _FULL else StorageError
        raise kind(f"{path}: {error}") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error


def open_file(path: Path) -> tuple[sqlite3.Connection, str]:
    """A connection with the current schema, and what was wrong with the file that was there before (empty = nothing).

    Raises StorageError, also for a journal of a newer agent.
    """
    with guarded(path):
        make_folder(path.parent)
        try:
            return _open(path), ""
        except DamagedError as error:
            damage = str(error)
        set_aside(path)
        try:
            return _open(path), damage
        except DamagedError as error:  # the disk is
            raise StorageError(f"{path}: {error}") from error


def open_to_read(path: Path) -> sqlite3.Connection:
    """For a look while the agent runs, or after it died. Raises StorageError."""
    with guarded(path):
        try:
            return _connect_to_read(path, "ro")
        except sqlite3.OperationalError as error:
            if _code(error) not in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}:
                raise
        return _connect_to_read(path, "rw")  # a transaction was cut off, and has to be taken back first


def _connect_to_read(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_BUSY_S)
    try:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("SELECT 1 FROM actions LIMIT 1")
        _need_newest(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _need_newest(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    newest = migrations_of(_MIGRATIONS)[-1][0]
    if version < newest:
        hint = "the next start of the agent brings it up to date"
        raise StorageError(f"{path}: schema {version}, this agent reads {newest} (hint: {hint})")


def set_aside(path: Path) -> Path:
    """Rename the journal, keeping the latest few of them; returns the new name."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
    path.rename(target)
    for old in sorted(path.parent.glob(f"{path.name}.corrupt-*"))[:-_KEEP_DAMAGED]:
        old.unlink(missing_ok=True)
    sync(path.parent)
    return target


def _open(path: Path) -> sqlite3.Connection:
    fresh = not path.exists()
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA synchronous=EXTRA")  # FULL, and the folder when the rollback journal goes
        _check(connection)
        _migrate(connection, path)
    except sqlite3.DatabaseError as error:
        connection.close()
        if _code(error) in _DAMAGE:
            raise DamagedError(str(error)) from error
        raise
    except BaseException:
        connection.close()
        raise
    if fresh:
        sync(path.parent)
    return connection


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise DamagedError(str(verdict))


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Each step and its `user_version` are one transaction. What is changed is copied first."""
    migrations = migrations_of(_MIGRATIONS)
    newest = migrations[-1][0]
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    have = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if version > newest:
        raise StorageError(written_by_a_newer_agent("the journal of updates", path, version, newest))
    if bool(version) != bool(have & _TABLES) or (version and not have >= _TABLES):
        raise DamagedError(f"schema {version} with the tables {', '.join(sorted(have)) or 'none'}")
    if 0 < version < newest:
        _keep_of_schema(connection, path, version)
    advance(connection, migrations, version)


def _keep_of_schema(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Before a migration: a copy with which the agent before can go on, in the place of the last such copy.

    Where the disk has no room for both, none is made; then the log says so, and what there was stays. What is open has just been checked.
    """
    place = place_of(path, version)
    unfinished = place.with_name(f"{place.name}.part")

    def make(target: Path) -> None:
        with contextlib.closing(sqlite3.connect(unfinished)) as copy:
            connection.backup(copy)
        sync(unfinished)
        unfinished.rename(target)
        sync(path.parent)

    try:
        unfinished.unlink(missing_ok=True)  # of a start that was cut off: it takes the room looked for
        keep(path, version, make)
    except (sqlite3.Error, StorageError, OSError) as error:
        _log.warning("update_journal_not_copied_before_migration", schema=version, error=str(error))
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & _PRIMARY
