"""Opening the event database: one owner, integrity check, migrations, and a fresh start with what a damaged file still gives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from agent.durable import sync
from agent.errors import StorageError, StorageFullError
from agent.migrations import advance, migrations_of, written_by_a_newer_agent
from agent.outbox.backup import keep_of_schema
from agent.outbox.faults import is_damage, storage_error
from agent.outbox.files import SIDES, beside, remove_database
from agent.outbox.limits import missing
from agent.outbox.numbers import NEWEST, disorder, row_of
from agent.outbox.salvage import BEYOND_ANY, salvage
from agent.outbox.sequence import BLOCK, MOST, SequenceReserve, is_series, new_series, series_name
from agent.outbox.wal import inspect
from agent.types import Lane, Loss, LossReason

_BUSY_TIMEOUT_S = 2.0
_WAL_KEEP_BYTES = 16 * 1024 * 1024
_SALVAGED = ".salvaged"
_PARTS = {1: {"meta", "messages", "outbox", "dead_letters", "events"}, 3: {"cursors"}, 4: {"commands"}, 5: {"marks"}}
"""Tables and views by the schema that brought them."""
_WHOLE = "typeof({0}) <> 'integer' OR {0} NOT BETWEEN"
_NONSENSE = (
    ("messages", f"message_id < 1 OR message_id >= {BEYOND_ANY}"),
    ("outbox", f"message_id < 1 OR message_id >= {BEYOND_ANY}"),
    ("outbox", f"{_WHOLE.format('lane')} 0 AND 3"),
    ("outbox", f"{_WHOLE.format('size_bytes')} 0 AND {1 << 31}"),
    ("marks", f"{_WHOLE.format('settled')} 0 AND {BEYOND_ANY - 1}"),
    ("outbox", "typeof(t_created_us) <> 'integer' OR typeof(attempts) <> 'integer'"),
)
"""What no agent writes, by table."""
_NUMBERS = """
SELECT sequence FROM events WHERE message_id >= ? AND delivery IN ('pending', 'delivered') AND sequence >= ? ORDER BY message_id"""
"""All but those that were given up: their announcement may be among what the damage took."""
_FAR = 1_000_000_000
"""More numbers than a device gives in years."""
_KEEP_DAMAGED = 2
"""Damaged files that are kept for inspection."""


@dataclass(frozen=True, slots=True)
class OpenReport:
    """What opening the database found.

    next_sequence: the number the next alarm or event gets. created: there was no usable database.
    set_aside: where the damaged file lies now. damage: why it was set aside, or what of the write-ahead log was lost.
    skipped: numbers (first, last) that may or may not have been given out and will not be used again, or None.
    sequence_known: False when neither the database nor the reserve file could say where counting had stopped.
    salvaged: messages and pending deliveries that came over from the damaged file. losses: what has to be announced.
    generation, series: those that database and reserve file have agreed on. cut_off: the last commit was not finished, or is damaged,
    which looks the same.
    """

    next_sequence: int
    created: bool = False
    set_aside: Path | None = None
    damage: str = ""
    skipped: tuple[int, int] | None = None
    sequence_known: bool = True
    salvaged: tuple[int, int] = (0, 0)
    losses: tuple[Loss, ...] = ()
    generation: int = 0
    series: str = ""
    cut_off: bool = False


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


def open_database(
    path: Path, reserve: SequenceReserve, known_damage: str = ""
) -> tuple[sqlite3.Connection, OpenReport]:
    """The one connection that writes, in WAL mode with FULL synchronisation, checked and migrated.

    A damaged file is renamed to `<name>.corrupt-<time>`; a new one takes its place with what can still be read of it. Where commits
    may be missing (a damaged write-ahead log, an older copy), counting goes on at the bound: their numbers were given out.
    known_damage: the file is damaged, whatever its check says; a free page that is damaged shows when it is used.
    Raises StorageFullError, StorageError; the latter also for a database of a newer agent.
    """
    try:
        connection, report = _open_or_replace(path, known_damage)
        try:
            return connection, _settle_sequence(connection, reserve, report)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise storage_error(error, path) from error
    except _DamagedError as error:  # the new file is damaged too: the disk is
        raise StorageError(f"{path}: {error}") from error


def _open_or_replace(path: Path, known_damage: str) -> tuple[sqlite3.Connection, OpenReport]:
    resumed = _finish_replacing(path)
    log = inspect(beside(path, "-wal"))
    if not known_damage:
        try:
            connection, created, frames = _open_checked(path)
        except _DamagedError as error:
            known_damage = str(error)
    if known_damage:
        set_aside = _replace(path)
        connection, _, _ = _open_checked(path)
        salvaged = _count(connection)
        return connection, OpenReport(0, created=True, set_aside=set_aside, damage=known_damage, salvaged=salvaged)
    if resumed:
        damage = "a start that replaced a damaged database was cut off"
        return connection, OpenReport(0, created=True, damage=damage, salvaged=_count(connection))
    damage = "commits in the write-ahead log are damaged and lost" if log.lost(frames) else ""
    return connection, OpenReport(0, created=created, damage=damage, cut_off=log.cut_off(frames))


def _count(connection: sqlite3.Connection) -> tuple[int, int]:
    ask = "SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM outbox)"  # whatever waits is listed by salvage
    messages, pending = connection.execute(ask).fetchone()
    return messages, pending


def _replace(path: Path) -> Path:
    """Put a database with what can be salvaged in the place of the damaged one; returns where that lies now.

    The new one is complete before the old one is moved, so that a start which is cut off can be finished by the next.
    """
    unfinished = beside(path, ".salvaging")
    try:
        _build(unfinished, path)
    except sqlite3.Error as error:
        if not isinstance(storage_error(error, path), StorageFullError):
            raise
        _build(unfinished, None)  # better an agent that watches; what can be read stays in the damaged file
    unfinished.rename(beside(path, _SALVAGED))
    sync(path.parent)
    set_aside = _set_aside(path)
    _finish_replacing(path)
    _forget_older_damage(path)
    return set_aside


def _build(unfinished: Path, damaged: Path | None) -> None:
    """A new database in one file, with what can be salvaged of `damaged`."""
    remove_database(unfinished)
    connection, _, _ = _open_checked(unfinished)
    with contextlib.closing(connection):
        if damaged is not None:
            salvage(damaged, connection)
        _mark_unsettled(connection, 1)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # on a full disk this fails, unlike closing


def _finish_replacing(path: Path) -> bool:
    """Move a salvaged database to its place when nothing lies there; returns whether there was one."""
    salvaged = beside(path, _SALVAGED)
    if path.exists() or not salvaged.exists():
        remove_database(salvaged)
        return False
    for suffix in SIDES:
        beside(path, suffix).unlink(missing_ok=True)
    salvaged.rename(path)
    sync(path.parent)
    return True


def migrate(connection: sqlite3.Connection, path: Path) -> bool:
    """Bring the schema of the database in `path` up to date; True: there was none before.

    Each step and its `user_version` are one transaction. What is changed is copied first.
    """
    migrations = migrations_of("agent.outbox.migrations")
    newest = migrations[-1][0]
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > newest:
        raise StorageError(written_by_a_newer_agent("the event database", path, version, newest))
    _check_parts(connection, version)
    if 0 < version < newest:
        keep_of_schema(path, version)
    advance(connection, migrations, version)
    return bool(version == 0)


def _open_checked(path: Path) -> tuple[sqlite3.Connection, bool, int]:
    """A sound database, whether it is new, and how many good frames its write-ahead log had."""
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    try:
        connection.text_factory = _text
        if connection.execute("PRAGMA auto_vacuum").fetchone() == (
            0,
        ):  # an empty file; otherwise it would write a page
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_KEEP_BYTES}")
        connection.execute("PRAGMA temp_store=MEMORY")
        _check(connection)
        frames = _frames(connection)  # before anything is written
        created = migrate(connection, path)
        _check_values(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        if is_damage(error):
            raise _DamagedError(str(error)) from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection, created, frames


def _text(data: bytes) -> str:
    """A damaged letter must not stop the lane that its message waits in."""
    return data.decode("utf-8", "replace")


def _frames(connection: sqlite3.Connection) -> int:
    """Good frames in the write-ahead log, which are moved to the database on the way."""
    _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(frames)


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _DamagedError(verdict)


def _check_parts(connection: sqlite3.Connection, version: int) -> None:
    """Whether the schema is the one that the file says it has."""
    have = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")}
    wanted = {name for since, names in _PARTS.items() for name in names if since <= version}
    if missing_parts := wanted - have:
        raise _DamagedError(f"schema {version} without {', '.join(sorted(missing_parts))}")
    if version == 0 and have & _PARTS[1]:
        raise _DamagedError("tables of no schema")


def _check_values(connection: sqlite3.Connection) -> None:
    """SQLite's check knows nothing of what numbers mean: one flipped bit, and counting could not go on."""
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    for key in ("next_sequence", "generation", "copied"):
        if not isinstance(meta.get(key), int) or not 0 <= meta[key] < MOST:
            raise _DamagedError(f"meta: {key} is {meta.get(key)!r}")
    if not is_series(meta.get("series", 1)):  # older agents wrote none
        raise _DamagedError(f"meta: series is {meta['series']!r}")
    lanes = {lane for (lane,) in connection.execute("SELECT lane FROM marks")}
    if lanes != set(Lane):
        raise _DamagedError(f"marks: of lanes {sorted(lanes)}")
    for table, nonsense in _NONSENSE:
        found = connection.execute(f"SELECT rowid FROM {table} WHERE {nonsense} LIMIT 1").fetchone()  # noqa: S608 - constants only
        if found is not None:
            raise _DamagedError(f"{table}: in row {found[0]}: {nonsense}")
    row_id = disorder(connection)
    if row_id is not None:
        raise _DamagedError(f"messages: in row {row_id}: no number above the one before it")


def _set_aside(path: Path) -> Path:
    """Rename the database and its side files; returns the new name of the database. It goes first: without it nobody reads its log."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    for suffix in SIDES:
        if beside(path, suffix).exists():
            os.link(beside(path, suffix), beside(target, suffix))
    path.rename(target)
    for suffix in SIDES:
        beside(path, suffix).unlink(missing_ok=True)
    sync(path.parent)
    return target


def _forget_older_damage(path: Path) -> None:
    """Damaged files must not fill the disk."""
    found = path.parent.glob(f"{path.name}.corrupt-*")
    for file in sorted(file for file in found if not file.name.endswith(SIDES))[:-_KEEP_DAMAGED]:
        remove_database(file)


def _settle_sequence(connection: sqlite3.Connection, reserve: SequenceReserve, report: OpenReport) -> OpenReport:
    """Decide with which number of which series to go on, store them and a new generation in both homes, and say what is missing.

    That numbers are missing stays in the database until it is announced: a start may be cut off in between.
    """
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    (used,) = connection.execute(NEWEST).fetchone() or (0,)
    exact = following = max(meta["next_sequence"], used + 1)
    # A counter more than a block below the bound has lost commits as well: a copy from before there were generations.
    old = meta["copied"] == 1 or meta["generation"] < reserve.generation or (reserve.bound or 0) > exact + BLOCK
    if reserve.bound is not None and (report.created or report.damage or report.cut_off or old):
        following = max(exact, reserve.bound)
    elif meta["copied"] == 1:  # without the file beside it nobody knows how far counting has gone since
        following = exact + _FAR
    elif report.damage:  # the newest message tells the number, and may be what was lost
        following = max(exact, min(meta.get("bound", 0), MOST - _FAR))
    reserve_knew = reserve.bound is not None
    generation = max(meta["generation"], reserve.generation) + 1
    series = meta.get("series") or reserve.series or new_series()
    since = min(exact, meta.get("unsettled", exact))
    losses = _losses(connection, report, since, following, interrupted=since < exact, old=old)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(
        "UPDATE meta SET value = CASE key WHEN 'next_sequence' THEN ? WHEN 'generation' THEN ? ELSE 0 END "
        "WHERE key IN ('next_sequence', 'generation', 'copied')",
        (following, generation),
    )
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('series', ?)", (series,))
    if losses:
        _mark_unsettled(connection, since)
    connection.execute("COMMIT")
    reserve.cover(following, following + 1)
    reserve.renew(generation, series)
    return replace(
        report,
        next_sequence=following,
        generation=generation,
        series=series_name(series),
        skipped=(exact, following - 1) if following > exact else None,
        sequence_known=not report.damage or reserve_knew or max(exact, meta.get("bound", 0)) > 1,
        losses=losses,
    )


def _mark_unsettled(connection: sqlite3.Connection, since: int) -> None:
    """From this number on a subscriber may wait in vain; taken away by the transaction that announces it."""
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('unsettled', ?)", (since,))


def _losses(
    connection: sqlite3.Connection, report: OpenReport, since: int, following: int, *, interrupted: bool, old: bool
) -> tuple[Loss, ...]:
    """Which numbers a subscriber must not wait for. interrupted: an earlier start could not announce them; old: a copy."""
    rows = connection.execute(_NUMBERS, (row_of(connection, since), since))
    ranges = missing((number for (number,) in rows), since, following)
    reason = LossReason.DAMAGE if report.damage or report.created or since == 1 else LossReason.RESTORED
    if report.damage and report.created:
        detail = f"{report.damage}; {report.salvaged[0]} messages were salvaged, {report.salvaged[1]} of them to be delivered"
    elif report.damage or report.created:
        detail = report.damage or "the database was gone"
    elif interrupted:
        detail = "a start was cut off before this was announced"
    elif old:
        detail = "an older copy was put back"
    else:
        reason, detail = LossReason.CUT_OFF, "the last commit was cut off, and had not been promised to anybody"
    return (Loss(reason, None, ranges, None, detail),) if ranges else ()
