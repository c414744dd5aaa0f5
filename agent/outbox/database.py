"""Opening the event database: one owner, integrity check, migrations, and a fresh start beside a damaged file."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from agent.errors import StorageError
from agent.outbox.faults import is_damage, storage_error
from agent.outbox.sequence import BLOCK, SequenceReserve
from agent.outbox.wal import inspect

_BUSY_TIMEOUT_S = 2.0
_WAL_KEEP_BYTES = 16 * 1024 * 1024
_SIDE_FILES = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class OpenReport:
    """What opening the database found.

    next_sequence: the number the next alarm or event gets. created: there was no usable database.
    set_aside: where the damaged file lies now. damage: why it was set aside, or what of the write-ahead log was lost.
    skipped: numbers (first, last) that may or may not have been given out and will not be used again, or None.
    sequence_known: False when neither the database nor the reserve file could say where counting had stopped.
    """

    next_sequence: int
    created: bool = False
    set_aside: Path | None = None
    damage: str = ""
    skipped: tuple[int, int] | None = None
    sequence_known: bool = True


class _DamagedError(Exception):
    """The file is no healthy database."""


@contextlib.contextmanager
def sole_owner(path: Path) -> Iterator[None]:
    """Hold the lock file beside `path`: two writers would meet SQLite's WAL-reset bug. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("w", encoding="ascii")
    except OSError as error:
        raise storage_error(error, path) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            hint = "is a second agent using this state_dir?"
            raise StorageError(f"{path}: already in use by another process (hint: {hint})") from error
        yield


def open_database(path: Path, reserve: SequenceReserve) -> tuple[sqlite3.Connection, OpenReport]:
    """The one connection that writes, in WAL mode with FULL synchronisation, checked and migrated.

    A damaged file is renamed to `<name>.corrupt-<time>` and a new one takes its place. Where commits of the write-ahead log are
    damaged, counting goes on at the bound: their numbers were given out.
    Raises StorageFullError, StorageError; the latter also for a database of a newer agent.
    """
    set_aside, damage, salvaged = None, "", None
    try:
        log = inspect(path.with_name(f"{path.name}-wal"))
        try:
            connection, created, frames = _open_checked(path)
            cut = log.lost(frames)
        except _DamagedError as error:
            damage, cut = str(error), False
            set_aside = _set_aside(path)
            salvaged = _salvage_sequence(set_aside)
            connection, created, _ = _open_checked(path)
        known = set_aside is None or salvaged is not None or reserve.bound is not None
        try:
            if cut:
                damage, known = "commits in the write-ahead log are damaged and lost", reserve.bound is not None
            exact, following = _settle_sequence(connection, reserve, fresh=created or cut, salvaged=salvaged)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise storage_error(error, path) from error
    except _DamagedError as error:  # the new file is damaged too: the disk is
        raise StorageError(f"{path}: {error}") from error
    skipped = (exact, following - 1) if following > exact else None
    return connection, OpenReport(following, created, set_aside, damage, skipped, known)


def migrate(connection: sqlite3.Connection) -> bool:
    """Bring the schema up to date; each step and its `user_version` are one transaction. True: there was none before."""
    steps = sorted(
        (int(file.name.partition("_")[0]), file.read_text(encoding="utf-8"))
        for file in resources.files("agent.outbox.migrations").iterdir()
        if file.name.endswith(".sql")
    )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > steps[-1][0]:
        raise StorageError(
            f"the event database has schema {version}, this agent knows {steps[-1][0]} "
            "(hint: it was written by a newer agent; go back to that version or move the file away)"
        )
    for number, script in steps:
        if number <= version:
            continue
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version={number};\nCOMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.rollback()
            raise
    return bool(version == 0)


def _open_checked(path: Path) -> tuple[sqlite3.Connection, bool, int]:
    """A sound database, whether it is new, and how many good frames its write-ahead log had."""
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # has an effect in an empty file only
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_KEEP_BYTES}")
        connection.execute("PRAGMA temp_store=MEMORY")
        _check(connection)
        frames = _frames(connection)  # before anything is written
        created = migrate(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        if is_damage(error):
            raise _DamagedError(str(error)) from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection, created, frames


def _frames(connection: sqlite3.Connection) -> int:
    """Good frames in the write-ahead log, which are moved to the database on the way."""
    _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(frames)


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _DamagedError(verdict)


def _set_aside(path: Path) -> Path:
    """Rename the database and its side files; returns the new name of the database."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    for suffix in _SIDE_FILES:
        side = path.with_name(path.name + suffix)
        if side.exists():
            side.rename(target.with_name(target.name + suffix))
    return target


def _salvage_sequence(path: Path) -> int | None:
    """The highest next sequence that the damaged file still tells, or None."""
    found = []
    for question in (
        "SELECT value FROM meta WHERE key = 'next_sequence'",
        "SELECT max(sequence) + 1 FROM messages",
    ):
        with (
            contextlib.suppress(sqlite3.Error, TypeError, ValueError),
            contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection,
        ):
            found.append(int(connection.execute(question).fetchone()[0]))
    return max(found, default=None)


def _settle_sequence(
    connection: sqlite3.Connection, reserve: SequenceReserve, *, fresh: bool, salvaged: int | None
) -> tuple[int, int]:
    """The next number as the database knows it, and the one to go on with, which is stored in both homes."""
    (stored,) = connection.execute("SELECT value FROM meta WHERE key = 'next_sequence'").fetchone()
    (used,) = connection.execute("SELECT coalesce(max(sequence), 0) FROM messages").fetchone()
    exact = following = max(stored, used + 1, salvaged or 0)
    # A counter more than a block below the bound has lost commits: the file is an old copy.
    if reserve.bound is not None and (fresh or reserve.bound > exact + BLOCK):
        following = max(exact, reserve.bound)
    if following != stored:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'next_sequence'", (following,))
    reserve.cover(following, following + 1)
    return exact, following
