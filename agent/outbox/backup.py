"""A copy of the event database: while the agent writes it, and before its schema is changed."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from agent.durable import sync
from agent.errors import StorageError
from agent.migrations import keep, place_of
from agent.outbox.faults import storage_error
from agent.outbox.files import beside, remove_database

log = structlog.get_logger(__name__)

Report = Callable[[int, int], None]
"""Of progress: pages done and pages in all."""
_PAGES = 1024
"""Copied at a time; between two steps the agent can checkpoint."""
_UNFINISHED = ".part"
_SCHEMA_COPY_S = 30.0
"""For longer than this a start is not held up: nobody watches meanwhile."""


def back_up(database: Path, target: Path, progress: Report | None = None) -> int:
    """Copy `database` to `target`, one file, checked and synced before it gets its name; returns its size in bytes.

    The copy knows that it is one: an agent that is started on it goes on with numbers that were never given out, announces
    those in between, and sends again what was waiting when the copy was made. Only reads the original.
    Raises StorageError, StorageFullError; an existing `target` is refused.
    """
    if target.exists():
        raise StorageError(f"{target}: is there already (hint: choose a new name)")
    if not database.is_file():
        raise StorageError(f"{database}: no event database here (hint: check state_dir and outbox.file)")
    _make(database, target, progress, check=True)
    return target.stat().st_size


def keep_of_schema(database: Path, version: int) -> None:
    """Before a migration: a copy of `database`, with which the agent before can go on, in the place of the last such copy.

    None is made where the disk has no room for it, or it takes too long; then the log says so, and what there was stays.
    """
    target = place_of(database, version)
    until_s = time.monotonic() + _SCHEMA_COPY_S

    def in_time(_done: int, _total: int) -> None:
        if time.monotonic() > until_s:
            raise StorageError(f"{target}: not made within {_SCHEMA_COPY_S:.0f} s")

    try:
        remove_database(beside(target, _UNFINISHED))  # a start that was cut off: it takes the room looked for
        keep(database, version, lambda place: _make(database, place, in_time, check=False))  # opening has checked it
    except (StorageError, OSError) as error:
        log.warning("outbox_not_copied_before_migration", schema=version, error=str(error))


def _make(database: Path, target: Path, progress: Report | None, *, check: bool) -> None:
    """`target` is the copy afterwards, on the disk, or what it was before. Raises StorageError, StorageFullError."""
    unfinished = beside(target, _UNFINISHED)
    try:
        remove_database(unfinished)
        _copy(database, unfinished, progress, check=check)
        sync(unfinished)
        unfinished.rename(target)
        sync(target.absolute().parent)
    except (sqlite3.Error, OSError) as error:
        raise storage_error(error, target) from error
    finally:
        with contextlib.suppress(OSError):
            remove_database(unfinished)


def _copy(database: Path, unfinished: Path, progress: Report | None, *, check: bool) -> None:
    def report(_status: int, remaining: int, total: int) -> None:
        if progress is not None:
            progress(total - remaining, total)

    with (
        contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as copy,
    ):
        source.execute("BEGIN")  # one state of the database, however much is written meanwhile
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        source.backup(copy, pages=_PAGES, progress=report)
        copy.execute("PRAGMA journal_mode=DELETE")
        copy.execute("UPDATE meta SET value = 1 WHERE key = 'copied'")
        (verdict,) = copy.execute("PRAGMA integrity_check(1)").fetchone() if check else ("ok",)
        if verdict != "ok":
            raise StorageError(f"{database}: damaged, no copy was made: {verdict}")
